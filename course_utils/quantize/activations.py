"""Quantized activations: the inputs of a linear layer in 8 bits, as an integer matrix product needs them.

Weights are known beforehand; activations are not. Their scale is either taken from each token as it comes
("dynamic") or fixed beforehand from calibration text ("static"). A few input channels of a language model are
many times larger than the rest and spoil the scale of all others; two cures are here:

LLM.int8()   keeps those channels in floating point (Dettmers et al., arXiv 2208.07339)
SmoothQuant  moves a factor from them into the weights (Xiao et al., arXiv 2211.10438)

All integers here are on the restricted grid, -(2^(bits-1) - 1) to 2^(bits-1) - 1, as INT8 kernels use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.quantize import layerwise
from course_utils.quantize.layerwise import AbsMax

# ---- one scale a token, or one for all -------------------------------------------------------------------


def quantize_per_token(x: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Dynamic quantization: each token (row) gets the scale that its own largest value asks for.

    Args:
        x: float [..., in].
        bits: of an integer.

    Returns:
        Whole numbers (as floats) [..., in] and the scale [..., 1]; x is near their product.
    """
    edge = 2 ** (bits - 1) - 1
    absmax = x.abs().amax(dim=-1, keepdim=True)
    scale = torch.where(absmax > 0, absmax / edge, torch.ones_like(absmax))
    return torch.round(x / scale), scale


def quantize_static(x: Tensor, absmax: float | Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Static quantization: one scale for the whole tensor, fixed beforehand; larger values are clipped.

    Args:
        x: float [..., in].
        absmax: largest |value| in the calibration text.
        bits: of an integer.

    Returns:
        Whole numbers (as floats) [..., in] and the scale, a tensor of one number.
    """
    edge = 2 ** (bits - 1) - 1
    scale = torch.as_tensor(absmax, dtype=x.dtype, device=x.device) / edge
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return torch.round(x / scale).clamp(-edge, edge), scale


def int8_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer with both sides in 8 bits: x per token, the weight per row.

    The product is taken between whole numbers and scaled once at the end. A GPU or CPU kernel does the same
    in INT8 with INT32 sums; here the whole numbers are floats, so that it runs anywhere.

    Args:
        x: float [..., in].
        weight: float [out, in].
        bias: float [out], not rounded, or None.

    Returns:
        float [..., out].
    """
    xq, x_scale = quantize_per_token(x)
    wq, w_scale = quantize_per_token(weight)
    y = F.linear(xq, wq) * x_scale * w_scale.squeeze(-1)
    return y if bias is None else y + bias


# ---- LLM.int8() ------------------------------------------------------------------------------------------


def split_outliers(
    x: Tensor, weight: Tensor, threshold: float = 6.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split a product x W^T at the input channels where some token reaches |x| >= threshold.

    Source: LLM.int8(), arXiv 2208.07339, section 3.2; bitsandbytes compares with >=.

    Args:
        x: float [..., in].
        weight: W, float [out, in].
        threshold: from this size on a value is an outlier.

    Returns:
        x without those channels, weight without them, x of those channels alone, weight of those channels
        alone. Channels keep their order, so that x W^T = first @ second^T + third @ fourth^T.
    """
    outlier = (x.abs() >= threshold).reshape(-1, x.shape[-1]).any(dim=0)
    return x[..., ~outlier], weight[:, ~outlier], x[..., outlier], weight[:, outlier]


def llm_int8_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, threshold: float = 6.0) -> Tensor:
    """LLM.int8(): outlier channels are multiplied in floating point, the others in 8 bits.

    Args:
        x: float [..., in].
        weight: float [out, in].
        bias: float [out] or None.
        threshold: as for `split_outliers`.

    Returns:
        float [..., out].
    """
    x_regular, w_regular, x_outlier, w_outlier = split_outliers(x, weight, threshold)
    if x_regular.shape[-1] == 0:
        return F.linear(x, weight, bias)
    return int8_linear(x_regular, w_regular, bias) + F.linear(x_outlier, w_outlier)


# ---- SmoothQuant -----------------------------------------------------------------------------------------


def smoothing_scale(x_absmax: Tensor, w_absmax: Tensor, alpha: float = 0.5) -> Tensor:
    """SmoothQuant's factor for each input channel: s = x_absmax^alpha / w_absmax^(1 - alpha), at least 1e-5.

    Dividing activations and multiplying weights by s leaves the product as it is.

    Args:
        x_absmax: float [in], the largest |activation| of each input channel, taken as at least 1e-5.
        w_absmax: float [in], the largest |weight| of each input channel, taken as at least 1e-5.
        alpha: 1 moves the whole difficulty to the weights; 0.5 gives both sides one largest value (equation
            4).

    Returns:
        s, [in] in the dtype of `x_absmax`.
    """
    x_absmax, w_absmax = x_absmax.clamp(min=1e-5), w_absmax.clamp(min=1e-5)
    return (x_absmax**alpha / w_absmax ** (1 - alpha)).clamp(min=1e-5)


def smooth(model: nn.Module, statistics: dict[str, AbsMax], alpha: float = 0.5) -> dict[str, Tensor]:
    """Apply SmoothQuant to a model in place: the model computes what it did before.

    Layers that read a norm (in a Llama block q, k, v; gate, up) are smoothed; the others (o and down) stay as
    they are.

    Args:
        model: its norms must be able to take a factor. That is tried on a short made-up text.
        statistics: AbsMax of each layer's input, from layerwise.collect_statistics(model, tokens, AbsMax).
        alpha: as for `smoothing_scale`, from 0 to 1.

    Returns:
        The largest |activation| to expect at each layer's input afterwards, by full name: float [in].

    Raises:
        ValueError: when alpha is not from 0 to 1, a norm cannot take a factor (`layerwise.norm_readers`), no
            linear layer reads a norm, or a statistic is missing. The model is then as it was.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 to 1, got {alpha}")
    expected = {name: statistic.absmax for name, statistic in statistics.items()}
    pairs: list[tuple[nn.Module, dict[str, nn.Linear]]] = []

    def find(block: layerwise.Block) -> bool:
        pairs.extend((norm, {f"{block.name}.{name}": linear for name, linear in linears.items()})
                     for norm, linears in layerwise.norm_readers(block))
        return False  # nothing is changed yet

    layerwise.walk(model, layerwise.short_text(model), find, progress=False)
    if not pairs:
        raise ValueError(f"no linear layer of {type(model).__name__} reads a norm: nothing can be smoothed")
    for name in (name for _, linears in pairs for name in linears):
        if name not in expected:
            raise ValueError(f"there is no statistic of {name}: take them by layerwise.collect_statistics")
    for norm, linears in pairs:
        x_absmax = expected[next(iter(linears))]
        weights = torch.cat([linear.weight for linear in linears.values()])
        scale = smoothing_scale(x_absmax, weights.detach().abs().amax(dim=0), alpha)
        layerwise.fold_scale(norm, list(linears.values()), scale)
        expected.update({name: x_absmax / scale for name in linears})
    return expected


# ---- trying it on a whole model --------------------------------------------------------------------------


@contextmanager
def linear_calls(
    model: nn.Module, call: Callable[[str, nn.Linear, Tensor], Tensor],
    minimum_share: float = layerwise.MINIMUM_SHARE,
) -> Iterator[None]:
    """Let every linear layer of the model's blocks compute something else inside the `with` block.

        with linear_calls(model, lambda name, layer, x: llm_int8_linear(x, layer.weight, layer.bias)):
            measure.perplexity(model, tokens)

    Args:
        model: any model with blocks.
        call: call(full name, layer, x [..., in]) -> [..., out].
        minimum_share: of the model's matrix weights, as for `layerwise.check_coverage`.

    Raises:
        ValueError: as `layerwise.check_coverage` and `layerwise.check_replaceable`.
    """
    layerwise.check_coverage(model, minimum_share)
    layerwise.check_replaceable(model)
    layers = layerwise.block_linears(model)
    try:
        for name, layer in layers.items():
            layer.forward = partial(call, name, layer)
        yield
    finally:
        for layer in layers.values():
            layer.__dict__.pop("forward", None)


def dynamic_call(name: str, layer: nn.Linear, x: Tensor) -> Tensor:
    """For `linear_calls`: inputs per token in 8 bits, weights as they are.

    Args:
        name: full name of the layer, not used.
        layer: the linear layer.
        x: its input, float [..., in].

    Returns:
        float [..., out].
    """
    xq, scale = quantize_per_token(x)
    return F.linear(xq * scale, layer.weight, layer.bias)


def static_call(absmax: dict[str, Tensor]) -> Callable[[str, nn.Linear, Tensor], Tensor]:
    """For `linear_calls`: inputs in 8 bits by one fixed scale a layer, weights as they are.

    Args:
        absmax: largest |input| of each layer by full name; a tensor [in] counts by its largest entry.

    Returns:
        A function for `linear_calls`.
    """
    largest = {name: value.max() for name, value in absmax.items()}

    def call(name: str, layer: nn.Linear, x: Tensor) -> Tensor:
        xq, scale = quantize_static(x, largest[name])
        return F.linear(xq * scale, layer.weight, layer.bias)

    return call
