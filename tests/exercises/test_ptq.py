"""Lesson ptq: wrong answers are rejected for their reason, right ones written otherwise pass.

test_all.py walks these dictionaries.
"""

import torch

# --- absmax_scale, as learners write it ---------------------------------------------------------------------


def _max_without_abs(values, bits, full_range=True):
    edge = 2 ** (bits - 1) - 0.5 if full_range else 2 ** (bits - 1) - 1
    scale = values.max(dim=-1, keepdim=True).values / edge
    scale[scale <= 0] = 1
    return scale


def _no_keepdim(values, bits, full_range=True):
    scale = values.abs().max(dim=-1).values / (2 ** (bits - 1) - (0.5 if full_range else 1))
    return scale.masked_fill(scale == 0, 1)


def _zero_scale(values, bits, full_range=True):
    return values.abs().amax(-1, True) / (2 ** (bits - 1) - (0.5 if full_range else 1))


def _edge_power_of_two(values, bits, full_range=True):
    scale = values.abs().amax(-1, True) / 2 ** (bits - 1)
    return torch.where(scale == 0, 1.0, scale)


def _always_mirrored(values, bits, full_range=True):
    scale = values.abs().amax(-1, True) / (2 ** (bits - 1) - 1)
    return torch.where(scale == 0, 1.0, scale)


def _whole_tensor(values, bits, full_range=True):
    return values.abs().max() / (2 ** (bits - 1) - (0.5 if full_range else 1))


def _absmax_by_norm(values, bits, full_range=True):
    largest = torch.linalg.vector_norm(values, ord=float("inf"), dim=-1, keepdim=True)
    largest[largest == 0] = (2**bits - 1) / 2 if full_range else 2 ** (bits - 1) - 1
    return 2 * largest / (2**bits - 1) if full_range else largest / (2 ** (bits - 1) - 1)


def _absmax_from_both_ends(values, bits, full_range=True):
    largest = torch.maximum(values.amax(-1), -values.amin(-1)).unsqueeze(-1)
    scale = largest / {True: 2 ** (bits - 1) - 0.5, False: 2 ** (bits - 1) - 1}[full_range]
    return scale + (scale == 0).to(scale.dtype)


# --- zero_point_params --------------------------------------------------------------------------------------


def _not_stretched(values, bits):
    low, high = values.amin(-1, True), values.amax(-1, True)
    scale = (high - low) / (2**bits - 1)
    scale = torch.where(scale == 0, 1.0, scale)
    return scale, torch.round(-low / scale)


def _not_rounded(values, bits):
    low, high = values.amin(-1, True).clamp(max=0), values.amax(-1, True).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    scale = torch.where(scale == 0, 1.0, scale)
    return scale, -low / scale


def _too_many_steps(values, bits):
    low, high = values.amin(-1, True).clamp(max=0), values.amax(-1, True).clamp(min=0)
    scale = (high - low) / 2**bits
    scale = torch.where(scale == 0, 1.0, scale)
    return scale, torch.round(-low / scale)


def _absmax_again(values, bits):
    high = values.abs().amax(-1, True)
    scale = 2 * high / (2**bits - 1)
    scale = torch.where(scale == 0, 1.0, scale)
    return scale, torch.round(high / scale)


def _division_by_zero(values, bits):
    low, high = values.amin(-1, True).clamp(max=0), values.amax(-1, True).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    return scale, torch.round(-low / scale)


def _zero_point_with_pad(values, bits):
    """Append a 0 to each row instead of clamping the range."""
    padded = torch.cat([values, torch.zeros_like(values[..., :1])], dim=-1)
    low, high = padded.aminmax(dim=-1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    scale = scale.masked_fill(scale == 0, 1)
    return scale, (-low / scale).round()


def _zero_point_through_maximum(values, bits):
    nothing = torch.zeros(())
    low = torch.minimum(values.min(dim=-1, keepdim=True)[0], nothing)
    high = torch.maximum(values.max(dim=-1, keepdim=True)[0], nothing)
    width = high - low
    width = torch.where(width > 0, width, torch.tensor(2.0**bits - 1))
    scale = width / (2**bits - 1)
    return scale, torch.round(low.abs() / scale)


# --- fake_quantize_groups -----------------------------------------------------------------------------------


def _check_divides(weight, group):
    if weight.shape[1] % group:
        raise ValueError(f"{group} does not divide {weight.shape[1]}")


def _one_scale_a_row(weight, bits, group):
    _check_divides(weight, group)
    scale = weight.abs().amax(1, True) / (2 ** (bits - 1) - 0.5)
    return (weight / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale


def _no_clamp(weight, bits, group):
    _check_divides(weight, group)
    values = weight.reshape(len(weight), -1, group)
    scale = values.abs().amax(-1, True) / (2 ** (bits - 1) - 0.5)
    scale[scale == 0] = 1
    return (torch.round(values / scale) * scale).reshape(weight.shape)


def _integers(weight, bits, group):
    _check_divides(weight, group)
    values = weight.reshape(len(weight), -1, group)
    scale = values.abs().amax(-1, True) / (2 ** (bits - 1) - 0.5)
    scale[scale == 0] = 1
    return torch.round(values / scale).clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).reshape(weight.shape)


def _mirrored_groups(weight, bits, group):
    _check_divides(weight, group)
    values = weight.reshape(len(weight), -1, group)
    scale = values.abs().amax(-1, True) / (2 ** (bits - 1) - 1)
    scale[scale == 0] = 1
    return (torch.round(values / scale) * scale).reshape(weight.shape)


def _columns(weight, bits, group):
    _check_divides(weight, group)
    scale = weight.abs().amax(0, True) / (2 ** (bits - 1) - 0.5)
    return (weight / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale


def _groups_by_loop(weight, bits, group):
    _check_divides(weight, group)
    half, result = 2 ** (bits - 1), weight.clone()
    for start in range(0, weight.shape[1], group):
        part = weight[:, start : start + group]
        scale = part.abs().amax(1, keepdim=True) / (half - 0.5)
        scale = scale.masked_fill(scale == 0, 1.0)
        result[:, start : start + group] = torch.round(part / scale).clamp(-half, half - 1) * scale
    return result


def _groups_by_unfold(weight, bits, group):
    _check_divides(weight, group)
    half = 2 ** (bits - 1)
    parts = weight.unfold(1, group, group)
    inverse = (half - 0.5) / parts.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    return (torch.round(parts * inverse).clamp(-half, half - 1) / inverse).flatten(1)


# --- split_outliers -----------------------------------------------------------------------------------------


def _positive_only(x, weight, threshold=6.0):
    mask = (x >= threshold).flatten(0, -2).any(0)
    return x[..., ~mask], weight[:, ~mask], x[..., mask], weight[:, mask]


def _strictly(x, weight, threshold=6.0):
    mask = (x.abs() > threshold).flatten(0, -2).any(0)
    return x[..., ~mask], weight[:, ~mask], x[..., mask], weight[:, mask]


def _every_token(x, weight, threshold=6.0):
    mask = x.abs().flatten(0, -2).amin(0) >= threshold
    return x[..., ~mask], weight[:, ~mask], x[..., mask], weight[:, mask]


def _rows_of_the_weight(x, weight, threshold=6.0):
    mask = (x.abs() >= threshold).flatten(0, -2).any(0)
    return x[..., ~mask], weight[~mask, :], x[..., mask], weight[mask, :]


def _set_to_zero(x, weight, threshold=6.0):
    mask = (x.abs() >= threshold).flatten(0, -2).any(0)
    keep, out = (~mask).float(), mask.float()
    return x * keep, weight * keep, x * out, weight * out


def _fixed_threshold(x, weight, threshold=6.0):
    mask = (x.abs() >= 6).flatten(0, -2).any(0)
    return x[..., ~mask], weight[:, ~mask], x[..., mask], weight[:, mask]


def _outliers_first(x, weight, threshold=6.0):
    mask = (x.abs() >= threshold).flatten(0, -2).any(0)
    return x[..., mask], weight[:, mask], x[..., ~mask], weight[:, ~mask]


def _split_by_index(x, weight, threshold=6.0):
    largest = x.reshape(-1, x.shape[-1]).abs().max(dim=0).values
    keep = torch.nonzero(largest < threshold).flatten()
    out = torch.nonzero(largest >= threshold).flatten()
    return (x.index_select(-1, keep), weight.index_select(1, keep),
            x.index_select(-1, out), weight.index_select(1, out))


def _split_by_list(x, weight, threshold=6.0):
    rows = x.reshape(-1, x.shape[-1])
    out = [c for c in range(x.shape[-1]) if bool((rows[:, c].abs() >= threshold).any())]
    keep = [c for c in range(x.shape[-1]) if c not in out]
    return x[..., keep], weight[:, keep], x[..., out], weight[:, out]


# --- smoothing_scale ----------------------------------------------------------------------------------------


def _alpha_swapped(x, w, alpha=0.5):
    x, w = torch.clamp(x, min=1e-5), torch.clamp(w, min=1e-5)
    return torch.clamp(x ** (1 - alpha) / w**alpha, min=1e-5)


def _product(x, w, alpha=0.5):
    x, w = torch.clamp(x, min=1e-5), torch.clamp(w, min=1e-5)
    return torch.clamp(x**alpha * w ** (1 - alpha), min=1e-5)


def _no_floor(x, w, alpha=0.5):
    return torch.pow(x, alpha) / torch.pow(w, 1 - alpha)


def _inverse(x, w, alpha=0.5):
    x, w = torch.clamp(x, min=1e-5), torch.clamp(w, min=1e-5)
    return w ** (1 - alpha) / x**alpha


def _half(x, w, alpha=0.5):
    return torch.sqrt(x.clamp(min=1e-5) / w.clamp(min=1e-5))


def _smoothing_by_logs(x, w, alpha=0.5):
    x, w = x.clamp(min=1e-5).log(), w.clamp(min=1e-5).log()
    return torch.exp(alpha * x - (1 - alpha) * w).clamp(min=1e-5)


def _smoothing_by_power(x, w, alpha=0.5):
    floor = torch.tensor(1e-5)
    factor = torch.maximum(x, floor).pow(alpha) * torch.maximum(w, floor).pow(alpha - 1)
    return torch.maximum(factor, floor)


# --- what passed once: thresholds that are not 0, checks and grids that are cruder than asked for -----------


def _absmax_epsilon(values, bits, full_range=True):
    scale = values.abs().amax(-1, True) / (2 ** (bits - 1) - (0.5 if full_range else 1))
    return torch.where(scale > 1e-8, scale, 1.0)


def _absmax_float32(values, bits, full_range=True):
    return _absmax_from_both_ends(values.float(), bits, full_range)


def _zero_point_epsilon(values, bits):
    scale, zero = _zero_point_with_pad(values, bits)
    return torch.where(scale > 1e-8, scale, 1.0), torch.where(scale > 1e-8, zero, 0.0)


def _zero_point_by_the_matrix(values, bits):
    """Decides for all rows at once whether 0 is inside."""
    low, high = values.amin(-1, True), values.amax(-1, True)
    low = low.clamp(max=0) if values.min() > 0 else low
    high = high.clamp(min=0) if values.max() < 0 else high
    scale = (high - low) / (2**bits - 1)
    scale = torch.where(scale == 0, 1.0, scale)
    return scale, torch.round(-low / scale).clamp(0, 2**bits - 1)


def _groups_checked_by_numel(weight, bits, group):
    if weight.numel() % group:
        raise ValueError("does not fit")
    values = weight.reshape(-1, group)
    scale = _absmax_from_both_ends(values, bits)
    half = 2 ** (bits - 1)
    return (torch.round(values / scale).clamp(-half, half - 1) * scale).reshape(weight.shape)


def _groups_lowest_unused(weight, bits, group):
    _check_divides(weight, group)
    values = weight.reshape(len(weight), -1, group)
    scale = _absmax_from_both_ends(values, bits)
    top = 2 ** (bits - 1) - 1
    return (torch.round(values / scale).clamp(-top, top) * scale).reshape(weight.shape)


def _groups_epsilon(weight, bits, group):
    _check_divides(weight, group)
    values = weight.reshape(len(weight), -1, group)
    scale = values.abs().amax(-1, True).clamp(min=1e-5) / (2 ** (bits - 1) - 0.5)
    half = 2 ** (bits - 1)
    return (torch.round(values / scale).clamp(-half, half - 1) * scale).reshape(weight.shape)


def _split_returns_arguments(x, weight, threshold=6.0):
    if not (x.abs() >= threshold).any():
        return x, weight, x[..., :0], weight[:, :0]
    return _split_by_index(x, weight, threshold)


def _split_default_for_zero(x, weight, threshold=6.0):
    return _split_by_index(x, weight, threshold or 6.0)


def _smoothing_inputs_only(x, w, alpha=0.5):
    return x.clamp(min=1e-5) ** alpha / w.clamp(min=1e-5) ** (1 - alpha)


def _smoothing_result_only(x, w, alpha=0.5):
    return (x**alpha / (w + 1e-5) ** (1 - alpha)).clamp(min=1e-5)


def _smoothing_in_float64(x, w, alpha=0.5):
    x, w = x.double().clamp(min=1e-5), w.double().clamp(min=1e-5)
    return (x**alpha / w ** (1 - alpha)).clamp(min=1e-5).float()


def _absmax_by_sorting(values, bits, full_range=True):
    scale = values.abs().sort(dim=-1).values[..., -1:] * (2 / (2**bits - (1 if full_range else 2)))
    scale[scale == 0] = 1
    return scale


WRONG = {
    "absmax_scale": [
        (_max_without_abs, "largest absolute value"),
        (_no_keepdim, "last dimension is gone"),
        (_zero_scale, "row of zeros"),
        (_edge_power_of_two, r"not 2\^\(bits-1\)"),
        (_always_mirrored, "always take the mirrored grid"),
        (_whole_tensor, "whole tensor|last dimension"),
        (_absmax_epsilon, "values of 1e-30"),
        (_absmax_float32, "float64"),
    ],
    "zero_point_params": [
        (_not_stretched, "need not contain 0"),
        (_not_rounded, "not rounded"),
        (_too_many_steps, r"2\^bits - 1 steps"),
        (_absmax_again, "absmax again"),
        (_division_by_zero, "row of zeros"),
        (_zero_point_epsilon, "values of 1e-30"),
        (_zero_point_by_the_matrix, "a transposed matrix"),
    ],
    "fake_quantize_groups": [
        (_one_scale_a_row, "scale for a whole row"),
        (_no_clamp, "falls off the grid"),
        (_integers, "these are the integers"),
        (_mirrored_groups, "mirrored grid"),
        (_columns, "down a column"),
        (_groups_checked_by_numel, "not the width"),
        (_groups_lowest_unused, "lowest integer, -8"),
        (_groups_epsilon, "values of 1e-6"),
    ],
    "split_outliers": [
        (_positive_only, "negative values are outliers"),
        (_strictly, ">= instead of >"),
        (_every_token, "all tokens are large"),
        (_rows_of_the_weight, "along its rows"),
        (_set_to_zero, "fewer columns"),
        (_fixed_threshold, "threshold is always 6"),
        (_outliers_first, "the order"),
        (_split_returns_arguments, "`x` itself"),
        (_split_default_for_zero, "all are outliers"),
    ],
    "smoothing_scale": [
        (_alpha_swapped, "wrong way round"),
        (_product, "instead of a quotient"),
        (_no_floor, "channel of zeros"),
        (_inverse, "this is the inverse"),
        (_half, "always 0.5"),
        (_smoothing_inputs_only, "a factor below 1e-5"),
        (_smoothing_result_only, "expected"),
    ],
    "predict_saving": [
        (75, "stays in FP32"),
        (50, "8 bits against 16"),
        (79, "do not vanish"),
        (41, "what remains"),
        (0.59, "the unit"),
    ],
    "predict_step": [
        (9.4, "two signs|negative values"),
        (37.8, "not in all"),
        (0.053, "upside down"),
        (1000, "integer 127"),
    ],
}

RIGHT = {
    "absmax_scale": [_absmax_by_norm, _absmax_from_both_ends, _absmax_by_sorting],
    "zero_point_params": [_zero_point_with_pad, _zero_point_through_maximum],
    "fake_quantize_groups": [_groups_by_loop, _groups_by_unfold],
    "split_outliers": [_split_by_index, _split_by_list],
    "smoothing_scale": [_smoothing_by_logs, _smoothing_by_power, _smoothing_in_float64],
    "predict_saving": [59, 59.1, 60],
    "predict_step": [18.9, 2400 / 127, 19],
}
