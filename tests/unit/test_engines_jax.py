"""JAX's Llama and its distillation step against PyTorch's, on a tiny model."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from course_utils import distill, engines
from tests.unit.kvcache.common import tiny_llama, tokens

PARTS = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
         "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
         "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


def test_loss_gradients_and_step_are_torchs(tmp_path):
    if not engines.is_installed(engines.find("jax")):
        pytest.skip("course engines install jax")
    model, ids = tiny_llama().float(), tokens(n=10)[0]
    model.lm_head.weight = model.model.embed_tokens.weight
    teacher = torch.randn(10, model.config.vocab_size, generator=torch.Generator().manual_seed(3))
    weights = {f"{i}.{short}": block.get_submodule(name).weight
               for i, block in enumerate(model.model.layers) for short, name in PARTS.items()}

    def loss():
        return distill.kd_loss(model(input_ids=ids[None]).logits[0], teacher, 2.0)

    rest = {"ids": ids.int(), "teacher": teacher, "embedding": model.lm_head.weight,
            "norm": model.model.norm.weight}
    whole = {name: value.detach().contiguous() for name, value in (rest | weights).items()}
    save_file(whole, tmp_path / "in")
    before = loss()
    expected = torch.autograd.grad(before, list(weights.values()))
    config = {"head_dim": model.config.head_dim, "rms_norm_eps": model.config.rms_norm_eps,
              "rope_theta": model.config.rope_parameters["rope_theta"]}
    answer = engines.run("jax", {
        "task": "distill", "weights": str(tmp_path / "in"), "out": str(tmp_path / "out"), "config": config,
        "temperature": 2.0, "lr": 0.01, "steps": 1}, timeout=120)
    assert answer, answer
    found = load_file(tmp_path / "out")
    for (name, weight), gradient in zip(weights.items(), expected, strict=True):
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-6), name
        weight.data -= 0.01 * gradient
    assert answer.values["losses"] == pytest.approx([before.item(), loss().item()], rel=1e-4)
