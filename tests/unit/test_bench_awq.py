"""The bench of AWQ: what its ablation changes in the model."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from authoring.bench import awq as bench
from course_utils.quantize import awq, layerwise
from course_utils.quantize.affine import Scheme


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8))  # fmt: skip


def test_weight_size_folds_gptqmodels_term_and_keeps_the_output() -> None:
    model, before = tiny(), tiny()
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        wanted = model(tokens).logits
        bench.divide_by_weight_size(model, Scheme(4, 16, symmetric=False))
        assert torch.allclose(model(tokens).logits, wanted, atol=1e-5)
    for (_, block), (_, old) in zip(layerwise.find_blocks(model), layerwise.find_blocks(before), strict=True):
        for group, was in zip(awq.scaling_groups(block), awq.scaling_groups(old), strict=True):
            if "mlp.down_proj" not in group.layers:
                continue
            weight = was.layers["mlp.down_proj"].weight.detach()
            share = [(column.abs() / weight[:, j // 16 * 16:][:, :16].abs().amax(dim=1)).mean()
                     for j, column in enumerate(weight.T)]
            factor = group.layers["mlp.down_proj"].weight / weight
            assert torch.allclose(factor[0], 1 / torch.stack(share), rtol=1e-3)
