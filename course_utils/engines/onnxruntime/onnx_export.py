"""A causal language model as an ONNX graph with a KV cache, a mask and dynamic shapes.

Inputs: input_ids int64 [batch, tokens]; attention_mask int64 [batch, past + tokens], 0 where padding stands;
kept int64 [n], the positions whose scores are wanted (the output layer is a fifth of the work, and a prompt
needs it once); past_key_i and past_value_i, FP32 [batch, KV heads, past, head dim] for each layer i, with
past = 0 for the first call. Outputs: logits FP32 [batch, n, vocabulary]; present_key_i and present_value_i,
past and new tokens together.

Attention is one node of the graph: the operator Attention of ONNX's operator set 23, which also joins past
and new tokens and knows that several query heads share one key-value head. Spelled out in small operators it
is slower. (https://onnx.ai/onnx/operators/onnx__Attention.html)
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache

OPERATOR_SET = 23


class TensorCache(Cache):
    """The cache as plain tensors, which is all that an ONNX graph knows: [key, value, key, value, ...].

    transformers hands new keys and values to `update` and would get all of them back. Here it gets the new
    ones, because the operator Attention does the joining; `attend` puts what comes out into `present`.
    """

    def __init__(self, past: list[torch.Tensor]) -> None:
        self.layers, self.past, self.present = [], past, []

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the new keys and values back as they come."""
        return keys, values

    def get_seq_length(self, *_: Any) -> int:
        """Tokens in the cache before this pass."""
        return self.past[0].shape[2]

    def attend(
        self, layer: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        mask: torch.Tensor, scaling: float | None = None, **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attention as transformers calls it.

        Args:
            layer: the attention layer.
            query: [batch, heads, tokens, head dim].
            key: [batch, KV heads, tokens, head dim], of the new tokens only.
            value: like `key`.
            mask: bool [batch, 1, tokens, past + tokens], True where a token is seen.
            scaling: of the scores.

        Returns:
            The output [batch, tokens, heads, head dim], and no weights.
        """
        output, *present, _ = torch.onnx.ops.attention(
            query, key, value, mask, *self.past[2 * layer.layer_idx:][:2], scale=scaling,
            q_num_heads=query.shape[1], kv_num_heads=key.shape[1])  # OpenVINO wants to be told
        self.present += present
        return output.transpose(1, 2), None


class WithCache(torch.nn.Module):
    """The model with mask and cache as tensors that go in and come out."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        AttentionInterface.register("onnx", lambda *inputs, **named: self.cache.attend(*inputs, **named))
        model.set_attn_implementation("onnx")

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, kept: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Read new tokens after those of the cache; shapes as at the top of this file.

        Args:
            input_ids: the new tokens.
            attention_mask: of past and new tokens.
            kept: positions whose scores are wanted.
            past: [key, value, key, value, ...], one pair a layer.

        Returns:
            The logits, and the cache with the new tokens, like `past`.
        """
        seen, new = past[0].shape[2], input_ids.shape[1]
        keys = torch.arange(seen + new)[None, None, :]
        queries = torch.arange(new)[None, :, None] + seen
        # A token sees those before it, except padding, and itself. So padding sees itself: a softmax over
        # nothing is 0 / 0. ONNX Runtime says 0 then; by the formula it is not a number, which would spread.
        visible = (keys < queries) & attention_mask[:, None, :].bool() | (keys == queries)
        positions = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, seen:]
        self.cache = TensorCache(past)
        hidden = self.model.model(
            input_ids=input_ids, attention_mask=visible[:, None], position_ids=positions,
            past_key_values=self.cache, use_cache=True).last_hidden_state[:, kept]
        # As a linear layer with [vocabulary, hidden] weights: the tied embedding then needs no second,
        # transposed copy in the file.
        logits = torch.nn.functional.linear(hidden.flatten(0, 1), self.model.lm_head.weight)
        return logits.view(hidden.shape[0], hidden.shape[1], -1), self.cache.present


def export(model_folder: str | Path, file: str | Path) -> None:
    """Write the graph to `file` (.onnx), its weights beside it in `file`.data.

    Raises:
        ValueError: the model is no Llama-like one with `model.model` and `model.lm_head`.
    """
    model = AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=torch.float32, local_files_only=True).eval()
    if not hasattr(model, "model") or not hasattr(model, "lm_head"):
        raise ValueError(f"{type(model).__name__} is not built like a Llama")
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = config.num_hidden_layers
    # Example shapes: all different and none of them 0 or 1, which an export may take for constants.
    past = [torch.randn(2, config.num_key_value_heads, 5, width) for _ in range(2 * layers)]
    mask = torch.ones(2, 5 + 3, dtype=torch.int64)
    example = torch.arange(2 * 3).view(2, 3), mask, torch.tensor([0, 2]), past
    dynamic = torch.export.Dim.DYNAMIC
    shapes = ({0: dynamic, 1: dynamic}, {0: dynamic, 1: dynamic}, {0: dynamic},
              [{0: dynamic, 2: dynamic}] * len(past))  # fmt: skip
    names = [f"{kind}_{i}" for i in range(layers) for kind in ("key", "value")]
    with torch.no_grad():
        torch.onnx.export(
            WithCache(model).eval(), example, str(file), dynamo=True, external_data=True,
            dynamic_shapes=shapes, input_names=["input_ids", "attention_mask", "kept",
                                                *(f"past_{name}" for name in names)],
            output_names=["logits", *(f"present_{name}" for name in names)],
            opset_version=OPERATOR_SET, verbose=False)
