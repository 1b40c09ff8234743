"""The scale of each channel: how important it is, its factor, where the factor goes, and the best ratio."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from course_utils.quantize import affine
from course_utils.quantize.affine import Scheme

RATIOS = tuple(i / 20 for i in range(20))  # 0, 0.05 ... 0.95


# ---- the formulas ----------------------------------------------------------------------------------------


def channel_importance(inputs: Tensor) -> Tensor:
    """How much each input channel carries: the mean of |x| over all tokens.

    Args:
        inputs: float [..., channels], any number of leading dimensions.

    Returns:
        float32 [channels].
    """
    return inputs.float().abs().reshape(-1, inputs.shape[-1]).mean(dim=0)


def awq_scale(importance: Tensor, ratio: float) -> Tensor:
    """The factor of each channel: s = importance^ratio, at least 1e-4, then divided by sqrt(max(s) * min(s)).

    The division centres the factors around 1: the largest is 1 / the smallest.

    Args:
        importance: float [channels], none negative.
        ratio: 0 gives ones (round to nearest), 1 would make all channels equally large.

    Returns:
        float [channels].
    """
    scale = importance.pow(ratio).clamp(min=1e-4)
    return scale / (scale.max() * scale.min()).sqrt()


def scaled_fake_quantize(weight: Tensor, scale: Tensor, scheme: Scheme) -> Tensor:
    """What a weight amounts to when its columns are scaled, rounded and scaled back.

    Stands for a layer whose input was divided by scale: affine.fake_quantize(weight * scale) / scale.

    Args:
        weight: float [out, in].
        scale: float [in].
        scheme: what to quantize to.

    Returns:
        [out, in] in the dtype of `weight`.
    """
    values = affine.to_groups(weight * scale, scheme)
    return round_in_place(values, scheme).reshape(weight.shape).to(weight.dtype).div_(scale)


def round_in_place(values: Tensor, scheme: Scheme) -> Tensor:
    """Round values to the scheme's grid in place: the same numbers as from `affine.fake_quantize`.

    The searches round every weight some thirty times. Overwriting one buffer is several times faster there
    than a new one for each step of the formula.

    Args:
        values: float [..., group]; the last dimension shares one scale. They are overwritten.
        scheme: what to round to.

    Returns:
        `values`, rounded.
    """
    step, zero = affine.parameters(values, scheme)
    values.div_(step).round_().add_(zero).clamp_(scheme.qmin, scheme.qmax)
    return values.sub_(zero).mul_(step)


# ---- the search ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScaleSearch:
    """What a search over ratios found.

    Attributes:
        ratios: those tried, 0 among them.
        errors: mean squared output error of each ratio, in order.
        importance: of each channel, float [in].
    """

    ratios: tuple[float, ...]
    errors: tuple[float, ...]
    importance: Tensor

    @property
    def ratio(self) -> float:
        """The ratio with the smallest error; of equals, the smallest ratio."""
        return self.ratios[self.errors.index(min(self.errors))]

    @property
    def gain(self) -> float:
        """Error of plain rounding over the error found: 1 means that scaling did not help."""
        return self.errors[self.ratios.index(0)] / min(self.errors) if min(self.errors) else 1.0

    @property
    def scale(self) -> Tensor:
        """The factors [in] of the best ratio."""
        return awq_scale(self.importance, self.ratio)


@torch.no_grad()
def search_scale(
    layers: list[nn.Linear],
    importance: Tensor,
    scheme: Scheme,
    output: Callable[[], Tensor],
    ratios: Iterable[float] = RATIOS,
) -> ScaleSearch:
    """Try each ratio on layers that read the same input; measure how far `output()` moves from what it was.

    Ratio 0 is always tried, so the result is never worse than round to nearest on these inputs. The weights
    are put back.

    Args:
        layers: linear layers that read the same input.
        importance: of each channel of it, float [in].
        scheme: what the weights are rounded to.
        output: runs the module to inspect (the attention for q, k, v; the MLP for gate and up; the layer
            itself for o and down) on fixed inputs and returns its output.
        ratios: to try, each from 0 to 1.

    Returns:
        The error of each ratio, and with it the best one.

    Raises:
        ValueError: when an output is not finite.
    """
    ratios = tuple(dict.fromkeys((0.0, *ratios)))
    weights = [layer.weight.data for layer in layers]
    wanted = output()
    errors = []
    try:
        for ratio in ratios:
            scale = awq_scale(importance, ratio).to(weights[0].dtype)
            for layer, weight in zip(layers, weights, strict=True):
                layer.weight.data = scaled_fake_quantize(weight, scale, scheme)
            errors.append((output() - wanted).float().square().mean().item())
    finally:
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight.data = weight
    if not all(error < float("inf") for error in errors):
        raise ValueError("a scaled layer's output is not finite: does the calibration text give NaN or inf?")
    return ScaleSearch(ratios, tuple(errors), importance)
