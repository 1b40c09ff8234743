"""Lesson one_token: wrong answers are rejected for their reason, right ones written otherwise pass.

test_all.py walks these dictionaries.
"""

import math
import statistics

import numpy as np
import torch
import torch.nn.functional as F

# --- parameter_count: each wrong answer is written as a learner would write it ------------------------------


def _untied_always(c):
    head = c.head_dim
    per_layer = (
        c.hidden_size * c.num_attention_heads * head * 2
        + c.hidden_size * c.num_key_value_heads * head * 2
        + 3 * c.hidden_size * c.intermediate_size
        + 2 * c.hidden_size
    )
    return 2 * c.vocab_size * c.hidden_size + c.num_hidden_layers * per_layer + c.hidden_size


def _never_an_output_matrix(c):
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    total = c.vocab_size * c.hidden_size + c.hidden_size
    for _ in range(c.num_hidden_layers):
        total += c.hidden_size * (2 * q + 2 * kv) + 3 * c.hidden_size * c.intermediate_size
        total += 2 * c.hidden_size
    return total


def _right_count(c, **wrong):
    """Sum over a list of shapes: another way to write it, and the base of some wrong answers."""
    heads = wrong.get("kv", c.num_key_value_heads)
    head_dim = wrong.get("head_dim", c.head_dim)
    d, ff = c.hidden_size, c.intermediate_size
    layer = [(d, c.num_attention_heads * head_dim)] * 2 + [(d, heads * head_dim)] * 2
    layer += [(d, ff)] * wrong.get("mlp", 3) + [(d,)] * wrong.get("norms", 2)
    shapes = layer * c.num_hidden_layers + [(c.vocab_size, d)] + [(d,)] * wrong.get("last", 1)
    shapes += [] if c.tie_word_embeddings else [(c.vocab_size, d)]
    return sum(math.prod(shape) for shape in shapes)


def _counted_by_torch(c):
    """Build the model without memory and ask it."""
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(c).num_parameters()


# --- perplexity -------------------------------------------------------------------------------------------


def _mean_nll(logits, tokens):
    return F.cross_entropy(logits[:-1].float(), tokens[1:])


def _loop(logits, tokens):
    total = 0.0
    for i in range(len(tokens) - 1):
        row = logits[i].double()
        total += float(torch.logsumexp(row, 0) - row[tokens[i + 1]])
    return math.exp(total / (len(tokens) - 1))


def _bytes_loop(parameters, bits, group_size=None, scale_bits=16, zero_bits=0):
    extra = 0
    if group_size:
        full, rest = divmod(parameters, group_size)
        extra = (full + bool(rest)) * (scale_bits + zero_bits)
    return math.ceil((parameters * bits + extra) / 8)


def _bytes_by_group(parameters, bits, group_size=None, scale_bits=16, zero_bits=0):
    starts = range(0, parameters, group_size) if group_size else ()
    total = parameters * bits + sum(scale_bits + zero_bits for _ in starts)
    whole, rest = divmod(total, 8)
    return whole + 1 if rest else whole


def _weights_only(p, bits, group_size=None, scale_bits=16, zero_bits=0):
    return math.ceil(p * bits / 8)


def _scales_only(p, bits, group_size=None, scale_bits=16, zero_bits=0):
    return _bytes_loop(p, bits, group_size, scale_bits)


def _full_groups_only(p, bits, group_size=None, scale_bits=16, zero_bits=0):
    groups = p // group_size if group_size else 0
    return math.ceil((p * bits + groups * (scale_bits + zero_bits)) / 8)


def _group_count(p, group_size):
    return len(range(0, p, group_size)) if group_size else 0


def _in_bits(p, bits, group_size=None, scale_bits=16, zero_bits=0):
    return p * bits + _group_count(p, group_size) * (scale_bits + zero_bits)


def _truncated(p, bits, group_size=None, scale_bits=16, zero_bits=0):
    return _in_bits(p, bits, group_size, scale_bits, zero_bits) // 8


def _bytes_each(p, bits, group_size=None, scale_bits=16, zero_bits=0):
    return p * (bits // 8) + _group_count(p, group_size) * ((scale_bits + zero_bits) // 8)


def _intensity(r, k, c, size, pair=2):
    return pair * r * k * c / ((r * k + k * c + r * c) * size)


def _overflows(logits, tokens):
    chosen = logits[:-1].float().exp().sum(-1).log() - logits[:-1].float().gather(1, tokens[1:, None])[:, 0]
    return chosen.mean().exp().item()


# --- paired_difference, by numpy ---------------------------------------------------------------------------


def _with_numpy(a, b, tokens, ddof=1, total=None, weights=None):
    gaps, sizes = np.subtract(a, b), np.array(tokens)
    if gaps.shape != sizes.shape:
        raise ValueError("another number of windows")
    mean = gaps.sum() / sizes.sum()
    if len(gaps) == 1:
        return float(mean), float("nan")
    spread = np.sqrt(((gaps - mean * sizes) ** 2).sum() / (len(gaps) - ddof))
    return float(mean), float(spread * np.sqrt(len(gaps)) / (total or sizes.sum()))


def _by_ratio_of_means(a, b, tokens):
    """Cochran's own notation: residuals over the mean size of a window."""
    count = len(tokens)
    rest = [x - y for x, y in zip(a, b, strict=True)]
    ratio = sum(rest) / sum(tokens)
    if count < 2:
        return ratio, float("nan")
    residual = statistics.stdev([gap - ratio * n for gap, n in zip(rest, tokens, strict=True)])
    return ratio, residual / statistics.mean(tokens) / count**0.5


def _separate(a, b, tokens):
    mean = _with_numpy(a, b, tokens)[0]
    zeros = [0.0] * len(tokens)
    alone = [_with_numpy(sums, zeros, tokens)[1] for sums in (a, b)]
    return mean, math.hypot(*alone)


def _each_token(a, b, tokens):
    gaps, sizes = np.subtract(a, b), np.array(tokens)
    if gaps.shape != sizes.shape:
        raise ValueError
    tokenwise = np.repeat(gaps / sizes, sizes)
    return float(tokenwise.mean()), float(tokenwise.std(ddof=1) / np.sqrt(len(tokenwise)))


def _plain_means(a, b, tokens):
    if len(a) != len(b) or len(a) != len(tokens):
        raise ValueError
    each = [(x - y) / n for x, y, n in zip(a, b, tokens, strict=True)]
    error = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else float("nan")
    return statistics.mean(each), error


WRONG = {
    "parameter_count": [
        (_untied_always, "although it is tied"),
        (_never_an_output_matrix, "although it is not tied"),
        (lambda c: _right_count(c, kv=c.num_attention_heads), "Grouped-query"),
        (lambda c: _right_count(c, mlp=2), "three of them"),
        (lambda c: _right_count(c, norms=0, last=0), "no norms"),
        (lambda c: _right_count(c, last=0), "norm after the last layer"),
        (lambda c: _right_count(c, head_dim=c.hidden_size // c.num_attention_heads), "head_dim"),
        (lambda c: float(_right_count(c)), r"\(float\)"),
        (lambda c: c.vocab_size * c.hidden_size, "shape of each matrix"),
    ],
    "bytes_at_bits": [
        (_weights_only, "scales are missing"),
        (_scales_only, "zero points are missing"),
        (_full_groups_only, "got no scale"),
        (_in_bits, "bits instead of bytes"),
        (_truncated, "rounded down"),
        (_bytes_each, "share bytes"),
        (lambda n, *a, **k: float(_bytes_loop(n, *a, **k)), r"\(float\)"),
        (lambda n, b, g=None, s=16, z=0: _bytes_loop(n, b, g or n, s, z), "no scales"),
        (lambda n, b, g=None, s=16, z=0: _bytes_loop(n, b, g and min(g, 32), s, z), "group"),
    ],
    "arithmetic_intensity": [
        (lambda r, k, c, size: _intensity(r, k, c, size, pair=1), "two"),
        (lambda r, k, c, size: 2 * r * k * c / (size * (r * k + k * c)), "written"),
        (lambda r, k, c, size: 2 * r / size, "only the second matrix"),
        (lambda r, k, c, size: _intensity(r, k, c, 1), "element_bytes"),
        (lambda r, k, c, size: 1 / _intensity(r, k, c, size), "upside down"),
        (lambda r, k, c, size: _intensity(r, k, c, max(1, size)), "half a byte"),
    ],
    "perplexity_from_logits": [
        (lambda logits, tokens: F.cross_entropy(logits.float(), tokens).exp().item(), "next token"),
        (
            lambda logits, tokens: F.cross_entropy(logits[1:].float(), tokens[:-1]).exp().item(),
            "wrong way",
        ),
        (lambda logits, tokens: _mean_nll(logits, tokens).item(), "exponential"),
        (lambda logits, tokens: 2 ** _mean_nll(logits, tokens).item(), "same base"),
        (
            lambda logits, tokens: F.cross_entropy(logits[:-1].float(), tokens[1:], reduction="none")
            .exp()
            .mean()
            .item(),
            "own perplexity",
        ),
        (
            lambda logits, tokens: math.exp(
                -sum(logits[i, tokens[i + 1]].item() for i in range(len(tokens) - 1)) / (len(tokens) - 1)
            ),
            "sum to one",
        ),
        (lambda logits, tokens: F.cross_entropy(logits[:-1], tokens[1:]).exp().item(), "float32"),
        (
            lambda logits, tokens: F.nll_loss(logits[:-1].float().softmax(-1).log(), tokens[1:]).exp().item(),
            "small probabilities",
        ),
        (lambda logits, tokens: _mean_nll(logits, tokens).exp(), "tensor"),
        (_overflows, "FP16|near ten thousand"),
    ],
    "paired_difference": [
        (_separate, "what is hard for both cancels"),
        (lambda a, b, n: _with_numpy(a, b, n, ddof=0), r"windows / \(windows - 1\)"),
        (_each_token, "one window, one observation"),
        (_plain_means, "A short window counts less"),
        (lambda a, b, n: _with_numpy(b, a, n), "b - a"),
        (lambda a, b, n: (_with_numpy(a, b, n)[0], _with_numpy(a, b, n)[1] ** 2), "variance"),
        (lambda a, b, n: _with_numpy(a, b, n)[0], "differences first|tuple"),
        (lambda a, b, n: (_with_numpy(a, b, n)[0], 1.96 * _with_numpy(a, b, n)[1]), "one standard error"),
        (lambda a, b, n: (_with_numpy(a, b, n)[0], _with_numpy(a, b, n)[1] * len(n) ** 0.5),
         "spread of one window"),
        (lambda a, b, n: (_with_numpy(a, b, n)[0], 0.0 if len(n) == 1 else _with_numpy(a, b, n)[1]),
         "NaN|one window"),
    ],
    "predict_bytes": [(134.5e6, "one byte"), (269e6, "two bytes"), (4.3e9, "bits, not bytes"), (538, "unit")],
    "predict_embedding_share": [(34.8, "tied"), (0.21, "percent"), (3.2, "equally large"), (26.7, "whole")],
    "predict_decode_rate": [(148, "one byte"), (74, "FP16"), (0.027, "seconds"), (1000, "20 GB")],
    "predict_uniform_perplexity": [(10.8027, "exp"), (1, "perfect"), (100, "left"), (1 / 49152, "inverse")],
    "predict_paired_error": [(0.02, "itself"), (0.1, "cancels"), (0.1414, "different texts"), (1, "spread")],
    "predict_13b_gigabytes": [(26, "FP32 has four"), (13, "one byte"), (48.5, "GiB"), (300, "32 bits")],
}

RIGHT = {
    "parameter_count": [_right_count, _counted_by_torch],
    "bytes_at_bits": [_bytes_loop, _bytes_by_group],
    "arithmetic_intensity": [
        lambda r, k, c, size: 2 / size / (1 / c + 1 / r + 1 / k),
        lambda r, k, c, size: sum(2 * k for _ in range(r * c)) / sum(size * n for n in (r * k, k * c, r * c)),
    ],
    "perplexity_from_logits": [lambda logits, tokens: _mean_nll(logits, tokens).exp().item(), _loop],
    "paired_difference": [_with_numpy, _by_ratio_of_means],
    "predict_bytes": [538_060_032, 135e6 * 4],
    "predict_embedding_share": [21, 21.05],
    "predict_decode_rate": [37, 37.2],
    "predict_uniform_perplexity": [49152, 49152.0],
    "predict_paired_error": [0, 0.0],
    "predict_13b_gigabytes": [52, 52.06],
}
