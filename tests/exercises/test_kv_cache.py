"""Lesson kv_cache: wrong answers are rejected for their reason, right ones written otherwise pass."""

import itertools

import torch

# --- kv_bytes_per_token -------------------------------------------------------------------------------------


def _bytes(config, bits=16, heads="num_key_value_heads", parts=2, layers=True, width=None):
    one = getattr(config, heads) * (width or config.head_dim) * parts * bits
    return one * (config.num_hidden_layers if layers else 1) // 8


def _bytes_by_elements(config, bits=16):
    key = torch.empty(config.num_key_value_heads, config.head_dim)
    return sum(2 * key.numel() * bits for _ in range(config.num_hidden_layers)) // 8


def _bytes_layer_by_layer(config, bits=16):
    return config.num_hidden_layers * _bytes(config, bits, layers=False)


def _bytes_by_width(config, bits=16):
    width = config.num_key_value_heads * config.head_dim
    keys = values = config.num_hidden_layers * width * (bits / 8)
    return int(keys + values)


# --- window_mask --------------------------------------------------------------------------------------------


def _mask_by_loops(tokens, window, sinks=0, dtype=torch.float32, after=False, most=0, low=None):
    if window < 1 or sinks < 0:
        raise ValueError("too small")
    mask = torch.full((1, 1, tokens, tokens), torch.finfo(dtype).min if low is None else low, dtype=dtype)
    for query in range(tokens):
        for key in range(tokens if after else query + 1):
            if key < sinks or query - key < window + most:
                mask[0, 0, query, key] = 0
    return mask


def _mask_by_triangles(tokens, window, sinks=0, dtype=torch.float32):
    if min(window, sinks + 1) < 1:
        raise ValueError("too small")
    visible = torch.ones(tokens, tokens).tril() - torch.ones(tokens, tokens).tril(-window)
    visible[:, :sinks] = torch.ones(tokens, min(sinks, tokens)).tril()
    lowest = torch.full((tokens, tokens), torch.finfo(dtype).min, dtype=dtype)
    return torch.where(visible.bool(), torch.zeros((), dtype=dtype), lowest).reshape(1, 1, tokens, tokens)


def _mask_with_columns_of_zeros(tokens, window, sinks=0, dtype=torch.float32):
    mask = _mask_by_loops(tokens, window, sinks, dtype)
    for first in range(min(sinks, tokens)):
        mask[0, 0, :, first] = 0
    return mask


# --- reusable -----------------------------------------------------------------------------------------------


def _reusable_by_takewhile(kept, ids):
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(kept, ids[:-1], strict=False))
    return len(list(pairs))


def _reusable_by_slices(kept, ids):
    return max(n for n in range(len(ids)) if n <= len(kept) and list(kept[:n]) == list(ids[:n]))


WRONG = {
    "predict_context_megabytes": [
        (94.4, "keys and values are kept"),
        (566, "query heads"),
        (377, "FP32"),
        (6.3, "one layer"),
        (1, "too low"),
    ],
    "kv_bytes_per_token": [
        (lambda c, bits=16: _bytes(c, bits, parts=1), "a key and a value"),
        (lambda c, bits=16: _bytes(c, bits, heads="num_attention_heads"), "query heads"),
        (lambda c, bits=16: 2 * c.hidden_size * c.num_hidden_layers * bits // 8,
         "hidden size taken"),
        (lambda c, bits=16: _bytes(c, bits, layers=False), "one layer only"),
        (lambda c, bits=16: _bytes(c, bits, parts=16), "bits"),
        (lambda c, bits=16: _bytes(c), "whatever `bits` says"),
        (lambda c, bits=16: _bytes(c, 8), "numbers, not bytes"),
        (lambda c, bits=16: 2 * c.num_hidden_layers * c.head_dim * bits // 8, "one head only"),
        (_bytes_layer_by_layer, "all layers together"),
        (lambda c, bits=16: _bytes(c, bits, parts=2.0), r"23040 \(float\)"),
        (lambda c, bits=16: None, "is a `return` missing"),
    ],
    "predict_bits": [
        (4, "codes alone"),
        (4.375, "minimum forgotten"),
        (5.5, "both overheads"),
        (5.0, "right for the keys"),
        (4.5, "right for the values"),
    ],
    "window_mask": [
        (_mask_with_columns_of_zeros, "that stand before them"),
        (lambda n, w, sinks=0, dtype=torch.float32: _mask_by_loops(n, w, sinks, dtype, after=True),
         "comes after it"),
        (lambda n, w, sinks=0, dtype=torch.float32: _mask_by_loops(n, w, sinks, dtype, most=1),
         "one token too many"),
        (lambda n, w, sinks=0, dtype=torch.float32: _mask_by_loops(n, w, sinks, dtype, low=float("-inf")),
         "minus infinity"),
        (lambda n, w, sinks=0, dtype=torch.float32: _mask_by_triangles(n, w, min(sinks, 0), dtype),
         "not seen besides"),
        (lambda n, w, sinks=0, dtype=torch.float32: _mask_by_triangles(n, w, sinks, dtype).mT, "exchanged"),
        (lambda n, w, sinks=0, dtype=torch.float32: _mask_by_triangles(n, w, sinks, dtype)[0, 0],
         "two dimensions in front"),
        (lambda n, w, sinks=0, dtype=torch.float32: (_mask_by_triangles(n, w, sinks, dtype) == 0).to(dtype),
         "ones and zeros"),
        (lambda n, w, sinks=0, dtype=torch.float32: _mask_by_triangles(n, w, sinks), "float"),
        (lambda n, w, sinks=0, dtype=torch.float32: _mask_by_triangles(n, max(w, 1), sinks, dtype),
         "a window of no token"),
    ],
    "reusable": [
        (lambda kept, ids: _reusable_by_takewhile(kept, [*ids, 0]), "whole new prompt"),
        (lambda kept, ids: max(0, _reusable_by_takewhile(kept, [*ids, 0]) - 1), "always one token less"),
        (lambda kept, ids: min(len(ids) - 1, [a == b for a, b in zip(kept, ids, strict=False)].count(True)),
         "behind a difference"),
        (lambda kept, ids: len(set(kept) & set(ids)), "alike for two tokens"),
        (lambda kept, ids: float(_reusable_by_slices(kept, ids)), "float"),
    ],
}

RIGHT = {
    "predict_context_megabytes": [188.7, 8192 * 23040 / 1e6],
    "kv_bytes_per_token": [_bytes_by_elements, _bytes_by_width],
    "predict_bits": [4.75, 4 + (1 + 0.5) / 2],
    "window_mask": [_mask_by_loops, _mask_by_triangles],
    "reusable": [_reusable_by_takewhile, _reusable_by_slices],
}
