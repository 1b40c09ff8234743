"""Lesson awq: wrong answers are rejected for their reason, right ones written otherwise pass."""

import torch
from torch import nn

# --- channel_importance -------------------------------------------------------------------------------------


def _signed_mean(inputs):
    tokens = inputs.float().flatten(0, -2)
    return tokens.sum(dim=0) / len(tokens)


def _abs_of_mean(inputs):
    return torch.abs(inputs.float().flatten(0, -2).mean(0))


def _maximum(inputs):
    return inputs.float().abs().flatten(0, -2).max(dim=0).values


def _rms(inputs):
    return (inputs.float().flatten(0, -2) ** 2).mean(0) ** 0.5


def _sum(inputs):
    return inputs.float().abs().flatten(0, -2).sum(0)


def _per_token(inputs):
    return inputs.float().abs().mean(-1)


def _first_dimension(inputs):
    return inputs.float().abs().mean(0)


def _in_bfloat16(inputs):
    return inputs.abs().flatten(0, -2).mean(0)


def _importance_by_dims(inputs):
    return inputs.to(torch.float32).abs().mean(dim=tuple(range(inputs.ndim - 1)))


def _importance_by_matrix_product(inputs):
    tokens = inputs.reshape(-1, inputs.shape[-1]).double().abs()
    return (torch.ones(1, len(tokens), dtype=torch.float64) @ tokens)[0].float() / len(tokens)


# --- awq_scale ----------------------------------------------------------------------------------------------


def _s(importance, ratio):
    return torch.clamp(importance**ratio, min=1e-4)


def _scale_by_logs(importance, ratio):
    logs = torch.log(_s(importance, ratio))
    return torch.exp(logs - (logs.max() + logs.min()) / 2)


def _scale_in_steps(importance, ratio):
    s = torch.maximum(importance**ratio, torch.tensor(1e-4))
    return s / s.max() ** 0.5 / s.min() ** 0.5


# --- fold_scale ---------------------------------------------------------------------------------------------


def _fold_inverted(previous, layers, scale):
    with torch.no_grad():
        previous.weight *= scale if previous.weight.ndim == 1 else scale[:, None]
        if previous.__dict__["_parameters"].get("bias") is not None:
            previous.bias *= scale
        for layer in layers:
            layer.weight /= scale


def _fold_next_only(previous, layers, scale):
    for layer in layers:
        layer.weight.data = layer.weight.data * scale


def _fold_without_bias(previous, layers, scale):
    if isinstance(previous, nn.Linear):
        previous.weight.data = previous.weight.data / scale[:, None]
    else:
        previous.weight.data = previous.weight.data / scale
    for layer in layers:
        layer.weight.data = layer.weight.data * scale


def _divide(previous, scale):
    weight = previous.weight.data
    previous.weight.data = weight / (scale if weight.ndim == 1 else scale[:, None])
    if getattr(previous, "bias", None) is not None:
        previous.bias.data = previous.bias.data / scale


def _fold_first_only(previous, layers, scale):
    _divide(previous, scale)
    layers[0].weight.data = layers[0].weight.data * scale


def _fold_bias_behind(previous, layers, scale):
    _divide(previous, scale)
    for layer in layers:
        layer.weight.data = layer.weight.data * scale
        if layer.bias is not None:
            layer.bias.data = layer.bias.data * scale[: len(layer.bias)]


def _fold_rows_behind(previous, layers, scale):
    _divide(previous, scale)
    for layer in layers:
        layer.weight.data = layer.weight.data * scale[: layer.out_features, None]


def _fold_and_keep_scale(previous, layers, scale):
    """Right in the modules, but the caller's scale is changed, too."""
    _fold_by_diagonals(previous, layers, scale)
    scale.reciprocal_()


def _fold_by_diagonals(previous, layers, scale):
    with torch.no_grad():
        inverse = torch.diag(1 / scale)
        previous.weight.copy_(inverse @ previous.weight)
        if getattr(previous, "bias", None) is not None:
            previous.bias.copy_(inverse @ previous.bias)
        for layer in layers:
            layer.weight.copy_(layer.weight @ torch.diag(scale))


def _fold_new_parameters(previous, layers, scale):
    weight = previous.weight.detach()
    previous.weight = nn.Parameter(weight / (scale if weight.ndim == 1 else scale.view(-1, 1)))
    for name, bias in list(previous.named_parameters()):
        if name == "bias":
            previous.bias = nn.Parameter(bias.detach() / scale)
    for layer in layers:
        layer.weight = nn.Parameter(torch.einsum("oi,i->oi", layer.weight.detach(), scale))


WRONG = {
    "channel_importance": [
        (_signed_mean, "without the absolute value"),
        (_abs_of_mean, "after the mean"),
        (_maximum, "largest value"),
        (_rms, "root mean square"),
        (_sum, "grows with the length"),
        (_per_token, "over the channels"),
        (_first_dimension, "first dimension only"),
        (_in_bfloat16, "two to three digits"),
        (lambda inputs: _importance_by_dims(inputs).double(), "float64"),
        (lambda inputs: _importance_by_dims(inputs).clamp(min=1e-5), "tiny inputs|texts x tokens"),
        (lambda inputs: None, "is a `return` missing"),
    ],
    "predict_mixed_bits": [
        (0.99 * 3 + 0.16, "scale and zero point forgotten"),
        (3.296875 + 0.16, "counted twice"),
        (0.99 * 3.25 + 0.16, "zero point forgotten"),
        (3.296875, "left out"),
        (0.99 * 3.296875 + 0.32, "FP32 counted"),
        (16, "too high"),
    ],
    "predict_scaled_error": [
        (2, "not multiplied"),
        (1, "comes divided"),
        (0.25, "variance"),
        (0.0, "too low"),
    ],
    "awq_scale": [
        (_s, "not centred"),
        (lambda a, r: _s(a, r) / (_s(a, r).max() * _s(a, r).min()), "without the square root"),
        (lambda a, r: _s(a, r) / _s(a, r).mean(), "divided by the mean"),
        (lambda a, r: _s(a, r) / _s(a, r).max(), "divided by the maximum"),
        (lambda a, r: _scale_by_logs(a * r, 1.0), "as a factor"),
        (lambda a, r: _scale_by_logs(a, 1 - r), "turned round"),
        (lambda a, r: a**r / torch.sqrt((a**r).max() * (a**r).min()), "no lower bound"),
        (lambda a, r: _scale_by_logs(a.clamp(min=1e-4), r), "power first"),
        (lambda a, r: _scale_by_logs(torch.where(a == 0, 1e-8, a), r) if r < 0.6 else
         a**r / torch.sqrt((a**r).max() * (a**r).min()), "all but 0"),
    ],
    "fold_scale": [
        (_fold_inverted, "other way round"),
        (_fold_next_only, "left as it was"),
        (_fold_without_bias, "bias of the layer before was forgotten"),
        (_fold_first_only, "only the first"),
        (_fold_bias_behind, "bias of the layers behind"),
        (_fold_rows_behind, "rows instead of columns"),
        (lambda p, ls, s: None, "previous.weight"),
        (_fold_and_keep_scale, "argument"),
    ],
}

RIGHT = {
    "channel_importance": [_importance_by_dims, _importance_by_matrix_product],
    "predict_mixed_bits": [0.99 * (3 + 19 / 64) + 0.16, 3.43],
    "predict_scaled_error": [0.5, 1 / 2.05],
    "awq_scale": [_scale_by_logs, _scale_in_steps],
    "fold_scale": [_fold_by_diagonals, _fold_new_parameters],
}
