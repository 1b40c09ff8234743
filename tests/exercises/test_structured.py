"""Lesson structured: wrong answers are rejected for their reason, right ones written otherwise pass."""

import torch
from torch import nn

# --- head_importance --------------------------------------------------------------------------------------


def _products(output, gradient, head_dim):
    examples, tokens, channels = output.shape
    return (output * gradient).reshape(examples, tokens, channels // head_dim, head_dim)


def _importance_loop(output, gradient, head_dim):
    scores = []
    for start in range(0, output.shape[-1], head_dim):
        part = slice(start, start + head_dim)
        scores.append(torch.stack([(o[:, part] * g[:, part]).sum().abs()
                                   for o, g in zip(output, gradient, strict=True)]).mean())
    return torch.stack(scores)


def _importance_einsum(output, gradient, head_dim):
    o, g = (x.reshape(*x.shape[:2], -1, head_dim) for x in (output, gradient))
    return torch.einsum("bthd,bthd->bh", o, g).abs().sum(0) / len(o)


# --- slice_heads ------------------------------------------------------------------------------------------


def _linear(weight, bias=None):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def _rows_of(layer, rows, bias=True):
    return _linear(layer.weight[rows], layer.bias[rows] if bias and layer.bias is not None else None)


def _places(heads, d):
    return torch.tensor([h * d + i for h in heads for i in range(d)], dtype=torch.long)


def _cut(q, k, v, o, query_heads, kv_heads, d, bias=True):
    rows, kv_rows = _places(query_heads, d), _places(kv_heads, d)
    return (_rows_of(q, rows, bias), _rows_of(k, kv_rows, bias), _rows_of(v, kv_rows, bias),
            _linear(o.weight[:, rows], o.bias))


def _query_heads(q, k, keep, d):
    group = q.out_features // k.out_features
    return [h for h in range(q.out_features // d) if h // group in keep]


def _slice_by_mask(query, key, value, output, keep, head_dim):
    """Boolean masks over rows."""
    stays = torch.zeros(key.out_features // head_dim, dtype=torch.bool)
    stays[keep] = True
    kv = stays.repeat_interleave(head_dim)
    q = kv.view(-1, head_dim).repeat_interleave(query.out_features // key.out_features, dim=0).flatten()
    return (_rows_of(query, q), _rows_of(key, kv), _rows_of(value, kv),
            _linear(output.weight[:, q], output.bias))


def _slice_by_view(query, key, value, output, keep, head_dim):
    """Weights seen as [key-value heads, rows of each, in]."""
    kv_heads = key.out_features // head_dim

    def part(layer):
        weight = layer.weight.detach().view(kv_heads, -1, layer.in_features)[keep].flatten(0, 1)
        bias = None if layer.bias is None else layer.bias.detach().view(kv_heads, -1)[keep].flatten()
        return _linear(weight, bias)

    columns = output.weight.detach().T.reshape(kv_heads, -1, output.out_features)[keep].flatten(0, 1).T
    return part(query), part(key), part(value), _linear(columns, output.bias)


def _slice_removed(q, k, v, o, keep, d):
    keep = [h for h in range(k.out_features // d) if h not in keep]
    return _cut(q, k, v, o, _query_heads(q, k, keep, d), keep, d)


def _slice_whole_keys(q, k, v, o, keep, d):
    rows = _places(_query_heads(q, k, keep, d), d)
    return _rows_of(q, rows), k, v, _linear(o.weight[:, rows], o.bias)


def _slice_output_rows(q, k, v, o, keep, d):
    rows = _places(_query_heads(q, k, keep, d), d)
    kv = _places(keep, d)
    return _rows_of(q, rows), _rows_of(k, kv), _rows_of(v, kv), _rows_of(o, rows % o.out_features)


def _slice_every_third(q, k, v, o, keep, d):
    n = k.out_features // d
    return _cut(q, k, v, o, [h for h in range(q.out_features // d) if h % n in keep], keep, d)


def _slice_row_numbers(q, k, v, o, keep, d):
    return _rows_of(q, keep), _rows_of(k, keep), _rows_of(v, keep), _linear(o.weight[:, keep], o.bias)


def _slice_scattered(q, k, v, o, keep, d):
    def scattered(layer_rows, heads):
        return [i * (layer_rows // d) + h for h in heads for i in range(d)]

    queries = scattered(q.out_features, _query_heads(q, k, keep, d))
    keys = scattered(k.out_features, keep)
    return _rows_of(q, queries), _rows_of(k, keys), _rows_of(v, keys), _linear(o.weight[:, queries], o.bias)


def _slice_zeroed(q, k, v, o, keep, d):
    with torch.no_grad():
        out = []
        for layer, heads in ((q, _query_heads(q, k, keep, d)), (k, keep), (v, keep)):
            gate = torch.zeros(layer.out_features)
            gate[_places(heads, d)] = 1
            bias = None if layer.bias is None else layer.bias * gate
            out.append(_linear(layer.weight * gate[:, None], bias))
        gate = torch.zeros(o.in_features)
        gate[_places(_query_heads(q, k, keep, d), d)] = 1
        return (*out, _linear(o.weight * gate, o.bias))


def _slice_view_of_whole(q, k, v, o, keep, d):
    """Right numbers, but each new weight is a view: the old matrix stays in memory."""
    layers = _slice_by_mask(q, k, v, o, keep, d)
    for layer in layers:
        whole = torch.zeros(layer.out_features + 5, layer.in_features)
        whole[: layer.out_features] = layer.weight.detach()
        layer.weight = nn.Parameter(whole[: layer.out_features])
    return layers


def _slice_in_place(q, k, v, o, keep, d):
    layers = _slice_by_mask(q, k, v, o, keep, d)
    q.weight.data = layers[0].weight.data
    return layers


# --- block_influence --------------------------------------------------------------------------------------


def _unit(x):
    return x.float() / x.float().norm(dim=-1, keepdim=True)


def _influence_normalized(before, after):
    return 1 - (_unit(before) * _unit(after)).sum(-1).mean().item()


def _influence_double(before, after):
    """1 - cos = |u - v|^2 / 2 for unit vectors."""
    u, v = (x.double() / x.double().norm(dim=-1, keepdim=True) for x in (before, after))
    return float((u - v).square().sum(-1).mean() / 2)


def _cos(before, after, dim=-1):
    return torch.cosine_similarity(before.float(), after.float(), dim=dim)


WRONG = {
    "predict_head_parameters": [
        (32 * 384, "one matrix"),
        (3 * 32 * 384, "output matrix forgotten"),
        (4 * 384 * 384, "whole block"),
        (4 * 64 * 384, "heads of 64"),
        (1000, "too low"),
    ],
    "head_importance": [
        (lambda o, g, d: _products(o, g, d).abs().sum((1, 3)).mean(0), "before the sum"),
        (lambda o, g, d: _products(o, g, d).sum((1, 3)).mean(0).abs(), "before the absolute value"),
        (lambda o, g, d: _products(o, g, d).sum((1, 3)).abs().sum(0), "sum over the examples"),
        (lambda o, g, d: _products(o, g, d).mean((1, 3)).abs().mean(0), "mean over tokens"),
        (lambda o, g, d: _importance_loop(torch.ones_like(o), g, d), "gradient alone"),
        (lambda o, g, d: (o * g).reshape(*o.shape[:2], d, -1).sum((1, 2)).abs().mean(0), "mixed"),
        (lambda o, g, d: (_products(o, g, d).sum((1, 3)) ** 2).mean(0), "square"),
        (lambda o, g, d: None, "is a `return` missing"),
    ],
    "slice_heads": [
        (_slice_removed, "ones that stay"),
        (_slice_whole_keys, "keys and values were left whole"),
        (_slice_output_rows, "rows of the output layer"),
        (_slice_every_third, "not every third one"),
        (lambda q, k, v, o, keep, d: _cut(q, k, v, o, keep, keep, d), "serves several query heads"),
        (lambda q, k, v, o, keep, d: _cut(q, k, v, o, _query_heads(q, k, keep, d), keep, d, bias=False),
         "biases are lost"),
        (_slice_row_numbers, "used as row numbers"),
        (_slice_scattered, "from all over the matrix"),
        (_slice_zeroed, "zeros instead of a cut"),
        (_slice_view_of_whole, "bytes in memory"),
        (_slice_in_place, "changes it in place"),
    ],
    "predict_shrink": [
        (33.3, "not a third of the model"),
        (11.1, "blocks alone"),
        (1.3, "one of the four"),
        (0.052, "too low"),
    ],
    "block_influence": [
        (lambda x, y: _cos(x, y).mean().item(), "cosine itself"),
        (lambda x, y: 1 - _cos(x.reshape(-1), y.reshape(-1), 0).item(), "all numbers together"),
        (lambda x, y: 1 - _cos(x.float().reshape(-1, x.shape[-1]).mean(0),
                               y.float().reshape(-1, y.shape[-1]).mean(0), 0).item(), "averaged before"),
        (lambda x, y: ((y.float() - x.float()).norm(dim=-1) / x.float().norm(dim=-1)).mean().item(),
         "length of the change"),
        (lambda x, y: 1 - (x.float() * y.float()).sum(-1).mean().item(), "not divided by both lengths"),
        (lambda x, y: 1 - _cos(x, y, dim=-2).mean().item(), "over the tokens"),
        (lambda x, y: float((_cos(x, y).clamp(-1, 1).arccos() / torch.pi).mean()), "an angle"),
        (lambda x, y: 1 - torch.cosine_similarity(x, y, dim=-1).mean().item(), "in bfloat16"),
    ],
}

RIGHT = {
    "predict_head_parameters": [4 * 32 * 384, 49_248],
    "head_importance": [_importance_loop, _importance_einsum],
    "slice_heads": [_slice_by_mask, _slice_by_view],
    "predict_shrink": [5.2, 100 * 24 * 49_152 / 22.7e6],
    "block_influence": [_influence_normalized, _influence_double],
}
