"""HQQ, half-quadratic quantization: a better zero point, found without any data.

Round to nearest takes scale and zero point from the smallest and the largest weight. HQQ keeps that scale and
moves the zero point, which becomes a real number, so that most weights are restored very well while a few may
be far off. "A few may be far off" is what the norm |error|^p with p < 1 says: it grows slowly, so one large
error costs less than many middling ones. Such a norm has no usable gradient (steep at 0, and the rounding is
flat), so the problem is split in two that both have a solution in one line:

1. given the zero point, split the error W - W_restored into an outlier part E and a rest (`shrink`);
2. given E, the best zero point is a mean.

The two are repeated while beta, which ties them together, grows by the factor kappa.

What it gives up: with a real zero point no integer stands for 0.0 any more, so weights near 0 all get one
small error. Where a channel carries huge inputs and has small weights for that very reason, that costs more
than the rest gains. The lesson on AWQ measures it.
Source: Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023,
https://mobiusml.github.io/hqq_blog/ and the reference code mobiusml/hqq (hqq/core/optimize.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from course_utils.quantize import affine
from course_utils.quantize.affine import Quantized, Scheme

LARGEST_ZERO = 1024  # up to here FP16 tells half steps apart; only a nearly constant group would go beyond


def shrink(error: Tensor, beta: float, p: float = 0.7) -> Tensor:
    """The outlier part of each error: sign(x) * max(0, |x| - |x|^(p-1) / beta).

    It (nearly) minimises |e|^p + beta/2 (e - x)^2 over e: small errors are taken for rounding noise and
    become 0, large ones stay almost as they are.

    Args:
        error: x, float of any shape.
        beta: the larger, the less is taken away.
        p: of the norm; 1 is the soft threshold of the lasso.

    Returns:
        float of the same shape.
    """
    size = error.abs()
    kept = size.pow(p - 1).div_(-beta).add_(size).clamp_(min=0)
    return kept.copysign_(error)


def hqq_parameters(values: Tensor, scheme: Scheme, iterations: int = 20, p: float = 0.7, beta: float = 10.0,
                   kappa: float = 1.01) -> tuple[Tensor, Tensor]:
    """Scale and zero for values whose last dimension shares them.

    The scale is that of min/max (max - min over 2^bits - 1). The zero point is a real number: it starts at
    -min / scale and is moved as the module's text says. Each group keeps the zero point that gave the
    smallest mean |error|, so no group ends worse than it started. Both are rounded to scheme.scale_dtype.

    Args:
        values: float [..., n].
        scheme: its bits and scale_dtype are used.
        iterations: rounds at most; it ends before when no group gains anything.
        p: of the norm, below 1.
        beta: ties the two parts of the problem together, see `shrink`.
        kappa: factor by which beta grows each round.

    Returns:
        Scale and zero, both float [..., 1].

    Raises:
        ValueError: when one of them does not fit into scale_dtype.
    """
    scale, zero = range_parameters(values, scheme)
    best_zero, best_error = zero, torch.full_like(zero, torch.inf)
    for _ in range(iterations + 1):
        q = to_integers(values, scale, zero, scheme)
        error = (q - zero).mul_(-scale).add_(values)
        size = error.abs().mean(dim=-1, keepdim=True)
        better = size < best_error
        if not better.any():  # no group has gained anything in this round
            break
        best_zero, best_error = torch.where(better, zero, best_zero), torch.where(better, size, best_error)
        inliers = values - shrink(error, beta, p)
        zero = _stored(q.sub_(inliers.div_(scale)).mean(dim=-1, keepdim=True), scheme)
        beta *= kappa
    return scale, best_zero


def range_parameters(values: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Where HQQ starts: the scale and real-valued zero point that map min...max to 0...2^bits - 1.

    Unlike `affine.zero_point_params` the range need not contain 0, and the zero point is not rounded.

    Args:
        values: float [..., n]; the last dimension shares scale and zero.
        scheme: its bits and scale_dtype are used.

    Returns:
        Scale and zero, both float [..., 1].

    Raises:
        ValueError: when one of them does not fit into scale_dtype.
    """
    low, high = values.amin(dim=-1, keepdim=True), values.amax(dim=-1, keepdim=True)
    scale = torch.maximum((high - low) / (2**scheme.bits - 1), torch.maximum(-low, high) / LARGEST_ZERO)
    scale = _stored(scale, scheme)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))  # a group of zeros
    return scale, _stored(-low / scale, scheme)


def to_integers(values: Tensor, scale: Tensor, zero: Tensor, scheme: Scheme) -> Tensor:
    """Nearest integers of the grid for a zero point that is a real number: it is added before rounding.

    Args:
        values: float [..., n].
        scale: float [..., 1], positive.
        zero: float [..., 1].
        scheme: its bits say where the grid ends.

    Returns:
        Whole numbers from 0 to 2^bits - 1, float [..., n].
    """
    return (values / scale).add_(zero).round_().clamp_(0, 2**scheme.bits - 1)


def hqq_quantize(weight: Tensor, scheme: Scheme, **options: Any) -> Quantized:
    """Quantize a weight by HQQ. No calibration data.

    `affine.dequantize` restores the result. Its `zero` holds real numbers here, see `hqq_bits_per_weight`.

    Args:
        weight: [out, in], any floating dtype.
        scheme: bits and group; it must be asymmetric, for a zero point is all that HQQ improves.
        **options: for `hqq_parameters`.

    Returns:
        The integers with their scales and zero points.

    Raises:
        TypeError: as `affine.quantize`.
        ValueError: as `affine.quantize`, and for a symmetric scheme or one scale a tensor.
    """
    _check(scheme)
    affine.check_weight(weight)
    values = affine.to_groups(weight.detach(), scheme)
    scale, zero = hqq_parameters(values, scheme, **options)
    q = to_integers(values, scale, zero, scheme).to(torch.uint8).reshape(weight.shape)
    return Quantized(q, scale.squeeze(-1), zero.squeeze(-1), scheme, weight.dtype)


def hqq_fake_quantize(weight: Tensor, scheme: Scheme, **options: Any) -> Tensor:
    """`hqq_quantize`, then `affine.dequantize`: the weight with HQQ's error in it.

    Args:
        weight: [out, in], any floating dtype.
        scheme: as for `hqq_quantize`.
        **options: for `hqq_parameters`.

    Returns:
        [out, in] in the dtype of `weight`.

    Raises:
        TypeError: as `hqq_quantize`.
        ValueError: as `hqq_quantize`.
    """
    return affine.dequantize(hqq_quantize(weight, scheme, **options))


def hqq_bits_per_weight(scheme: Scheme, width: int) -> float:
    """Bits stored for each weight, with scales and zero points counted.

    Like `affine.bits_per_weight`, but the zero point takes as many bits as the scale, because it is no
    integer. Example: 4 bits, group 64, FP16: 4 + 32/64 = 4.5.

    Args:
        scheme: what the matrix is quantized to.
        width: columns of the matrix.

    Returns:
        Bits a weight.

    Raises:
        ValueError: for a symmetric scheme, one scale a tensor, or a group that does not divide the width.
    """
    _check(scheme)
    return affine.bits_per_weight(scheme, width) + (
        (scheme.scale_dtype.itemsize * 8 - scheme.bits) / (scheme.group or width))


def _stored(number: Tensor, scheme: Scheme) -> Tensor:
    """A scale or zero point after a trip through the dtype it is stored in."""
    rounded = number.to(scheme.scale_dtype)
    if torch.isinf(rounded).any():
        raise ValueError(f"a scale or zero point of {number.abs().max().item():.3g} does not fit into "
                         f"{scheme.scale_dtype}: use Scheme(scale_dtype=torch.float32)")
    return rounded.to(number.dtype)


def _check(scheme: Scheme) -> None:
    """Refuse a scheme without a zero point for each group or row: ValueError."""
    if scheme.symmetric or scheme.group == "tensor":
        raise ValueError(f"HQQ moves the zero point of each group or row, {scheme} has none: use "
                         "Scheme(bits, group, symmetric=False)")
