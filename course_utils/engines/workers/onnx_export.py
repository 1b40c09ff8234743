"""A causal language model as an ONNX graph with a KV cache and dynamic shapes.

Inputs: input_ids int64 [batch, tokens]; kept int64 [n], the positions whose scores are wanted (the output
layer is a fifth of the work, and a prompt needs it once); past_key_i and past_value_i, FP32 [batch, KV heads,
past, head dim] for each layer i, with past = 0 for the first call. Outputs: logits FP32 [batch, n,
vocabulary]; present_key_i and present_value_i, past and new tokens together. There is no padding.
"""

import torch
from transformers import AutoModelForCausalLM, DynamicCache


class WithCache(torch.nn.Module):
    """The model with its cache as plain tensors, which is all that an ONNX graph knows."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, kept, past):
        """past: [key, value, key, value, ...], one pair a layer. Returns (logits, present like past)."""
        seen, new = past[0].shape[2], input_ids.shape[1]
        positions = torch.arange(new, device=input_ids.device) + seen
        # A token sees those before it and itself. Written out, so that the mask is part of the graph.
        mask = (torch.arange(seen + new)[None, :] <= positions[:, None])[None, None]
        cache = DynamicCache([(past[i], past[i + 1]) for i in range(0, len(past), 2)])
        hidden = self.model.model(
            input_ids=input_ids, attention_mask=mask, position_ids=positions[None],
            past_key_values=cache, use_cache=True).last_hidden_state[:, kept]
        # As a linear layer with [vocabulary, hidden] weights: the tied embedding then needs no second,
        # transposed copy in the file.
        logits = torch.nn.functional.linear(hidden.flatten(0, 1), self.model.lm_head.weight)
        logits = logits.view(hidden.shape[0], hidden.shape[1], -1)
        return logits, [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def export(model_folder, file):
    """Write the graph to `file` (.onnx), its weights beside it in `file`.data.

    Raises ValueError for a model that is no Llama-like one with `model.model` and `model.lm_head`.
    """
    model = AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=torch.float32, local_files_only=True, attn_implementation="sdpa").eval()
    if not hasattr(model, "model") or not hasattr(model, "lm_head"):
        raise ValueError(f"{type(model).__name__} is not built like a Llama")
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = config.num_hidden_layers
    # Example shapes: all different and none of them 0 or 1, which an export may take for constants.
    past = [torch.randn(2, config.num_key_value_heads, 5, width) for _ in range(2 * layers)]
    example = torch.arange(2 * 3).view(2, 3), torch.tensor([0, 2]), past
    dynamic = torch.export.Dim.DYNAMIC
    shapes = {0: dynamic, 1: dynamic}, {0: dynamic}, [{0: dynamic, 2: dynamic}] * len(past)
    names = [f"{kind}_{i}" for i in range(layers) for kind in ("key", "value")]
    with torch.no_grad():
        torch.onnx.export(
            WithCache(model), example, str(file), dynamo=True, external_data=True, dynamic_shapes=shapes,
            input_names=["input_ids", "kept", *(f"past_{name}" for name in names)],
            output_names=["logits", *(f"present_{name}" for name in names)], opset_version=20, verbose=False)
