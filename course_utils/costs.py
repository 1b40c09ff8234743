"""What one token costs, from a model's config alone: parameters, bytes, operations, and the bound they set.

The formulas are for the Llama architecture (grouped-query attention, gated MLP, RMSNorm, no biases):
H. Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", arXiv 2302.13971, section 2.2.
"""

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # what the quoted hints name
    from transformers import LlamaConfig, PreTrainedConfig

# Kinds of layers that keep keys and values, as configs call them.
ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "attention"}


def parameter_count(config: "LlamaConfig") -> int:
    """Number of parameters of a Llama model, from its config alone.

    A layer holds seven matrices without biases (query, key, value, output; gate, up, down) and two norms of
    hidden_size numbers each. Outside the layers stand the embedding, one more norm, and an output matrix of
    the embedding's shape. Tied embeddings mean that the last is no matrix of its own.

    Args:
        config: has vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads,
            num_key_value_heads, head_dim and tie_word_embeddings.

    Returns:
        How many numbers the model stores.
    """
    query = config.num_attention_heads * config.head_dim
    key_value = config.num_key_value_heads * config.head_dim
    attention = 2 * config.hidden_size * query + 2 * config.hidden_size * key_value
    mlp = 3 * config.hidden_size * config.intermediate_size
    layer = attention + mlp + 2 * config.hidden_size
    embedding = config.vocab_size * config.hidden_size
    copies = 1 if config.tie_word_embeddings else 2
    return config.num_hidden_layers * layer + config.hidden_size + copies * embedding


def bytes_at_bits(
    parameters: int, bits: int, group_size: int | None = None, scale_bits: int = 16, zero_bits: int = 0
) -> int:
    """Bytes that quantized parameters take, with the scales that belong to them.

    Args:
        parameters: how many numbers are stored.
        bits: bits of one number.
        group_size: so many neighbours share one scale (and one zero point); None: no scales are stored.
        scale_bits: bits of one scale.
        zero_bits: bits of one zero point; 0: none is stored.

    Returns:
        Whole bytes, rounded up. A last, incomplete group needs its scale too.
    """
    total = parameters * bits
    if group_size is not None:
        groups = -(-parameters // group_size)
        total += groups * (scale_bits + zero_bits)
    return -(-total // 8)


def stored_bytes(config: "LlamaConfig", block_bits: float, table_bits: float, norm_bits: float = 32) -> int:
    """Bytes of a Llama model whose blocks and whose token table are stored in different widths.

    Quantizing usually means the matrices of the blocks. The norms stay as they are, and the token table (the
    embedding, and the output matrix where it is no copy) stays or gets a width of its own.

    Args:
        config: as in `parameter_count`.
        block_bits: bits of one weight of the blocks' matrices, with its share of scales and zero points.
        table_bits: bits of one number of the token table, with its share of scales.
        norm_bits: bits of one number of the norms.

    Returns:
        Whole bytes, rounded up.
    """
    copies = 1 if config.tie_word_embeddings else 2
    table = copies * config.vocab_size * config.hidden_size
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    matrices = parameter_count(config) - table - norms
    return math.ceil((matrices * block_bits + table * table_bits + norms * norm_bits) / 8)


def arithmetic_intensity(rows: int, inner: int, columns: int, element_bytes: float) -> float:
    """Operations for each byte moved, of the matrix product [rows, inner] x [inner, columns].

    Source: S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model",
    CACM 52 (2009).

    Args:
        rows: rows of the first matrix and of the result.
        inner: columns of the first matrix, rows of the second.
        columns: columns of the second matrix and of the result.
        element_bytes: bytes of one number, in all three matrices.

    Returns:
        FLOP per byte. A multiplication and an addition count as two operations; both inputs are read once
        and the result is written once.
    """
    flops = 2 * rows * inner * columns
    moved = (rows * inner + inner * columns + rows * columns) * element_bytes
    return flops / moved


def perplexity_from_logits(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """Perplexity of one text, from the logits a model gave for it.

    Args:
        logits: float tensor [n, vocabulary]; row i is the model's guess about token i + 1.
        tokens: integer tensor [n], the text.

    Returns:
        exp of the mean negative log-probability (natural logarithm, computed in float32) of tokens 1 to
        n - 1. Token 0 has nothing before it; the last row is about a token that is not there.
    """
    log_probabilities = torch.log_softmax(logits[:-1].float(), dim=-1)
    chosen = log_probabilities.gather(1, tokens[1:, None])
    return torch.exp(-chosen.mean()).item()


def weights_read(config: "LlamaConfig") -> int:
    """Parameters that one step multiplies by: all of them, but an untied embedding is only looked up.

    Args:
        config: as in `parameter_count`.

    Returns:
        How many numbers one step reads.
    """
    looked_up = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    return parameter_count(config) - looked_up


def kv_bytes_per_token(config: "PreTrainedConfig", bits: int = 16) -> int:
    """Bytes that one token takes in the KV cache of a transformer.

    Each layer keeps a key and a value of head_dim numbers for each key-value head. Query heads keep nothing.
    Source: W. Kwon et al., arXiv 2309.06180, section 3.

    Args:
        config: has num_hidden_layers, num_key_value_heads and head_dim. (`kv_shape` finds them where other
            models keep them.)
        bits: bits of one cached number.

    Returns:
        Bytes of all layers together, rounded down.
    """
    layers, heads, width = kv_shape(config)
    return 2 * layers * heads * width * bits // 8


def kv_shape(config: "PreTrainedConfig") -> tuple[int, int, int]:
    """What a model keeps of a token: a key and a value for each layer and each key-value head.

    Configs name it in different ways. Older models have a key for each query head and say nothing about it.

    Args:
        config: of a causal language model of transformers.

    Returns:
        (layers, key-value heads, numbers in a key), as they come to a KV cache.

    Raises:
        ValueError: the model keeps something else, or in only some of its layers.
    """
    config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    kind, has = getattr(config, "model_type", type(config).__name__), lambda name: getattr(config, name, None)
    others = set(has("layer_types") or has("layers_block_type") or ()) - ATTENTION_LAYERS
    reason = ("has settings of its own for some layers" if has("is_heterogeneous") else
              "has an encoder" if has("is_encoder_decoder") else
              "has no attention heads" if not has("num_attention_heads") else
              "keeps keys and values compressed, of different widths" if has("kv_lora_rank") else
              "has layers that use the keys of others" if has("num_kv_shared_layers") else
              f"has layers of another kind, {min(others)}" if others else "")  # fmt: skip
    if reason:
        raise ValueError(f"{kind} {reason}: not each of its layers keeps a key and a value of one width for "
                         "each token")
    heads = has("num_key_value_heads") or config.num_attention_heads
    if has("multi_query"):  # one key for all query heads: Falcon, GPT BigCode
        heads = 1
    if has("new_decoder_architecture"):  # Falcon copies its few keys for each query head, then keeps them
        heads = config.num_attention_heads
    width = has("head_dim") or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, heads, width


def attention_window(config: "PreTrainedConfig") -> int | None:
    """How far back a model's layers look, where that is limited.

    Args:
        config: of a causal language model of transformers.

    Returns:
        The smallest window of all layers in tokens, or None when all layers see everything.
    """
    config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    types = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    windows = [getattr(config, name, None) for name, kind in
               (("sliding_window", "sliding_attention"), ("attention_chunk_size", "chunked_attention"),
                ("window_size", "local")) if types is None or kind in types]
    return min((window for window in windows if window), default=None)


def forward_flops(config: "LlamaConfig", tokens: int, cached: int = 0) -> int:
    """Floating-point operations of one forward pass that gives the logits of its last token.

    Counts the matrix products, as torch's FlopCounterMode does: two operations per weight and token, and
    in attention the products with keys and values (whole, as computed before the causal mask).

    Args:
        config: as in `parameter_count`.
        tokens: tokens in this pass.
        cached: tokens already in the KV cache.

    Returns:
        FLOP.
    """
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    output = config.vocab_size * config.hidden_size  # used for the last token only
    matrices = weights_read(config) - norms - output
    query = config.num_attention_heads * config.head_dim
    attention = 4 * config.num_hidden_layers * tokens * (cached + tokens) * query
    return 2 * matrices * tokens + 2 * output + attention


def forward_bytes(config: "LlamaConfig", tokens: int, cached: int = 0, bits: int = 32) -> int:
    """Fewest bytes that the same pass must move: each weight once, the KV cache read once and extended.

    Activations are left out: a good implementation keeps most of them in the processor's caches.

    Args:
        config: as in `parameter_count`.
        tokens: tokens in this pass.
        cached: tokens already in the KV cache.
        bits: bits of one weight and of one cached number.

    Returns:
        Bytes.
    """
    return weights_read(config) * bits // 8 + (cached + tokens) * kv_bytes_per_token(config, bits)


def decode_bound(weight_bytes: float, bandwidth: float, cache_bytes: float = 0, batch: int = 1) -> float:
    """Most tokens a second that decoding can reach, when reading memory is all that takes time.

    Source: the roofline of S. Williams et al., CACM 52(4), 2009.

    Args:
        weight_bytes: bytes of the weights, read once in each step for the whole batch.
        bandwidth: bytes per second of the memory.
        cache_bytes: bytes of the KV cache of one sequence, read in each step.
        batch: sequences that get a token in a step.

    Returns:
        Tokens per second of all sequences together.

    Raises:
        ValueError: the bandwidth or the number of bytes to read is not positive.
    """
    read = weight_bytes + batch * cache_bytes
    if bandwidth <= 0 or read <= 0:
        raise ValueError(f"bandwidth and bytes to read must be positive, not {bandwidth} and {read}")
    return batch * bandwidth / read


def roofline(intensity: float, flops: float, bandwidth: float) -> float:
    """Highest speed that a machine can reach at an arithmetic intensity.

    Args:
        intensity: FLOP per byte.
        flops: FLOP/s of the machine.
        bandwidth: bytes per second of its memory.

    Returns:
        FLOP/s.
    """
    return min(flops, intensity * bandwidth)
