"""A Llama-like model as an ExecuTorch program (.pte) for XNNPACK, its KV cache inside.

Inputs: input_ids int64 [1, tokens]; start int64 [1], how many tokens were read before them; kept int64 [n],
positions among the new tokens whose scores are wanted, KEPT at most. Output: logits FP32 [n, vocabulary].

The cache is a buffer of the program, with room for POSITIONS tokens. Attention never looks beyond the last
new token, so a pass with start = 0 forgets all that was read before.
"""

from pathlib import Path
from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  makes torch.ops.llama
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PreTrainedModel

POSITIONS = 1024
KEPT = 128  # memory for so many rows of scores is planned ahead: 25 MB with 49,152 tokens
GROUP = 32  # INT4 weights with one scale; a row of 576 is no multiple of 128


class WithCache(torch.nn.Module):
    """The model with a cache of fixed length in each attention layer."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.head = model.model, model.lm_head
        for layer in self.model.layers:
            shape = 1, POSITIONS, model.config.num_key_value_heads, layer.self_attn.head_dim
            for name in ("keys", "values"):
                layer.self_attn.register_buffer(name, torch.zeros(shape), persistent=False)

    def forward(self, input_ids: torch.Tensor, start: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Logits at the positions `kept`; shapes as at the top of this file."""
        first, new = start.item(), input_ids.shape[1]
        torch._check(first >= 0)
        torch._check(first + new <= POSITIONS)
        positions = start + torch.arange(new)
        hidden = self.model(input_ids=input_ids, position_ids=positions[None], use_cache=False, start=first)
        return self.head(hidden.last_hidden_state[0, kept])


def attend(
    layer: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: None,
    scaling: float, start: int, **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention by ExecuTorch's own operators: write keys and values at `start`, look back from there.

    Args:
        layer: the attention layer, with the buffers `keys` and `values`.
        query: [1, heads, tokens, head dim].
        key: [1, KV heads, tokens, head dim].
        value: like `key`.
        mask: the operator makes its own.
        scaling: of the scores.
        start: how many tokens were read before.

    Returns:
        The output [1, tokens, heads, head dim], and no weights.
    """
    query, key, value = (heads.transpose(1, 2) for heads in (query, key, value))
    torch.ops.llama.update_cache(key, layer.keys, start)
    torch.ops.llama.update_cache(value, layer.values, start)
    causal = True
    return torch.ops.llama.custom_sdpa(
        query, layer.keys, layer.values, start, None, 0.0, causal, scaling), None


def quantize(model: PreTrainedModel) -> None:
    """Weights INT4 in groups, output layer INT8 by rows, both with activations made INT8 as they come.

    The embedding becomes INT8, too. It was tied to the output layer; the two are rounded apart.
    """
    from torchao.quantization import (
        Int8DynamicActivationIntxWeightConfig,
        IntxWeightOnlyConfig,
        PerAxis,
        PerGroup,
        quantize_,
    )

    def is_linear(module: torch.nn.Module, name: str) -> bool:
        return isinstance(module, torch.nn.Linear) and name != "lm_head"

    rule = {"intx_choose_qparams_algorithm": "hqq_scale_only"}  # scales with the least error
    quantize_(model, Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4, weight_granularity=PerGroup(GROUP), **rule), is_linear)
    quantize_(model, Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int8, weight_granularity=PerAxis(0), **rule), lambda _, name: name == "lm_head")
    quantize_(model, IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0), **rule),
              lambda module, _: isinstance(module, torch.nn.Embedding))


def export(model_folder: str | Path, file: str | Path, int4: bool = False) -> int:
    """Write the program to `file`, its weights in it.

    Args:
        model_folder: folder of the model.
        file: path of the .pte file.
        int4: quantize the weights.

    Returns:
        Bytes of the embedding's numbers, which are in the file beside those of the output layer.

    Raises:
        ValueError: the model is no Llama-like one with `model.model` and `model.lm_head`.
    """
    AttentionInterface.register("executorch", attend)
    AttentionMaskInterface.register("executorch", lambda *_, **__: None)  # the operator makes its own
    model = AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=torch.float32, local_files_only=True, attn_implementation="executorch").eval()
    if not hasattr(model, "model") or not hasattr(model, "lm_head"):
        raise ValueError(f"{type(model).__name__} is not built like a Llama")
    model.model.embed_tokens.padding_idx = None  # matters in training only, and hides the look-up from a pass
    if int4:
        quantize(model)
    example = torch.arange(5)[None], torch.tensor([3]), torch.tensor([0, 4])
    shapes = {1: torch.export.Dim("tokens", max=POSITIONS)}, None, {0: torch.export.Dim("kept", max=KEPT)}
    with torch.no_grad():
        graph = torch.export.export(WithCache(model), example, dynamic_shapes=shapes)
    program = to_edge_transform_and_lower(
        graph, partitioner=[XnnpackPartitioner()], compile_config=EdgeCompileConfig(_check_ir_validity=False))
    # The pass makes the embedding's look-up one in INT8 rows.
    settings = ExecutorchBackendConfig(do_quant_fusion_and_const_prop=int4)
    with open(file, "wb") as out:
        program.to_executorch(settings).write_to_file(out)
    return model.get_input_embeddings().weight.numel() * (1 if int4 else 4)
