"""Tiny models with random weights, one for each way in which causal language models of the hub differ."""

from functools import cache

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY, HIDDEN, INNER, HEADS, BLOCKS, POSITIONS = 96, 64, 96, 4, 4, 128
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": BLOCKS,
         "num_attention_heads": HEADS, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS}
NEOX = LLAMA | {"num_key_value_heads": HEADS}
GPT = {"n_embd": HIDDEN, "n_layer": BLOCKS, "n_head": HEADS, "n_positions": POSITIONS}
WINDOW = 8

# name: (transformers' model type, its configuration beside VOCABULARY and ENDS)
FAMILIES = {
    "llama": ("llama", LLAMA),
    "mistral": ("mistral", LLAMA | {"sliding_window": WINDOW}),
    "qwen2": ("qwen2", LLAMA),
    "qwen2 with a window": ("qwen2", LLAMA | {
        "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}),
    "qwen3": ("qwen3", LLAMA | {"head_dim": 32}),
    "gemma": ("gemma", LLAMA | {"head_dim": 16}),
    "gemma2": ("gemma2", LLAMA | {"head_dim": 16, "sliding_window": WINDOW}),
    "gemma3": ("gemma3_text", LLAMA | {
        "head_dim": 16, "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"] * (BLOCKS // 2)}),
    "phi": ("phi", NEOX),
    "phi3": ("phi3", LLAMA),
    "smollm3": ("smollm3", LLAMA | {"no_rope_layers": [1, 0, 1, 0]}),
    "olmo2": ("olmo2", LLAMA),
    "granite": ("granite", LLAMA | {"residual_multiplier": 0.5, "attention_multiplier": 0.2}),
    "cohere": ("cohere", LLAMA),
    "starcoder2": ("starcoder2", LLAMA),
    "stablelm": ("stablelm", LLAMA),
    "gpt2": ("gpt2", GPT),
    "gptj": ("gptj", GPT | {"rotary_dim": 8}),
    "gpt_neox": ("gpt_neox", NEOX),
    "opt": ("opt", {"hidden_size": HIDDEN, "ffn_dim": INNER, "num_hidden_layers": BLOCKS,
                    "num_attention_heads": HEADS, "max_position_embeddings": POSITIONS,
                    "word_embed_proj_dim": HIDDEN}),
    "bloom": ("bloom", {"hidden_size": HIDDEN, "n_layer": BLOCKS, "n_head": HEADS}),
    "falcon": ("falcon", {"hidden_size": HIDDEN, "num_hidden_layers": BLOCKS,
                          "num_attention_heads": HEADS, "alibi": False}),
    "mixtral": ("mixtral", LLAMA | {"num_local_experts": 4}),
    "qwen2_moe": ("qwen2_moe", LLAMA | {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 48}),
    "qwen3_moe": ("qwen3_moe", LLAMA | {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}),
}

# Rarer kinds: a norm of 1 + weight with a bias, norms without a weight, dense blocks and then blocks with
# experts, attention with a gate and linear attention, attention sinks, linear layers whose weights are read
# (Mamba, RWKV), attention beside the MLP, norms after the sum.
MORE_FAMILIES = {
    "nemotron": ("nemotron", LLAMA),
    "olmo": ("olmo", LLAMA),
    "deepseek_v3": ("deepseek_v3", NEOX | {
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
        "moe_intermediate_size": 32, "first_k_dense_replace": 2, "q_lora_rank": 32, "kv_lora_rank": 16,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}),
    "qwen3_next": ("qwen3_next", LLAMA | {
        "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 48, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 16, "linear_value_head_dim": 16}),
    "gpt_oss": ("gpt_oss", LLAMA | {"head_dim": 16, "num_local_experts": 4, "sliding_window": WINDOW}),
    "mamba": ("mamba", {"hidden_size": HIDDEN, "num_hidden_layers": BLOCKS, "state_size": 8,
                        "time_step_rank": 16}),
    "rwkv": ("rwkv", {"hidden_size": HIDDEN, "num_hidden_layers": BLOCKS, "attention_hidden_size": HIDDEN}),
    "stablelm in parallel": ("stablelm", LLAMA | {"use_parallel_residual": True, "qk_layernorm": True}),
    "opt, norms last": ("opt", FAMILIES["opt"][1] | {
        "do_layer_norm_before": False, "word_embed_proj_dim": HIDDEN // 2}),
}


def tiny(family, **changes):
    """A fresh model of the family in eval mode, FP32, its weights drawn anew with seed 0.

    Norms and biases are drawn too: at their usual 1 and 0 a wrong fold would not be seen.
    """
    name, settings = (FAMILIES | MORE_FAMILIES)[family]
    config = AutoConfig.for_model(name, **({"vocab_size": VOCABULARY} | ENDS | settings | changes))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.3 * torch.randn_like(parameter)
            else:
                parameter.data = torch.randn_like(parameter) * parameter.shape[-1] ** -0.5
    return model


@cache
def tokens(rows=2, length=24):
    """Token ids, LongTensor [rows, length], the same each time; longer than the families' windows."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model, ids=None):
    """What the model says, FloatTensor [rows, length, VOCABULARY]."""
    return model(tokens() if ids is None else ids, use_cache=False).logits.float()


def off(model, expected):
    """Root mean square difference of the model's logits from the expected ones, relative to their spread."""
    return ((logits(model) - expected).pow(2).mean() / expected.var()).sqrt().item()
