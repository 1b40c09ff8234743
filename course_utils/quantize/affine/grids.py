"""Scale and zero point of some numbers that share them; from real numbers to integers and back."""

from __future__ import annotations

import torch
from torch import Tensor

from course_utils.quantize.affine.schemes import Scheme

# ---- the two formulas ------------------------------------------------------------------------------------


def absmax_scale(values: Tensor, bits: int, full_range: bool = True) -> Tensor:
    """Scale of the symmetric grid: the largest |value| of each row falls on the edge of the grid.

    Args:
        values: float [..., n]; the last dimension shares one scale.
        bits: bits of an integer.
        full_range: the edge is 2^(bits-1) - 1/2 (all integers used), else 2^(bits-1) - 1 (mirrored grid).

    Returns:
        [..., 1] in the dtype of `values`, always positive: a row of zeros gets scale 1, for any scale would
        do and 0 cannot be divided by. Every other row, however small, gets the scale of its largest |value|.
    """
    absmax = values.abs().amax(dim=-1, keepdim=True)
    edge = 2 ** (bits - 1) - (0.5 if full_range else 1.0)
    scale = absmax / edge
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def zero_point_params(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the asymmetric grid 0 ... 2^bits - 1, which covers min to max of each row.

    The range is stretched to contain 0, so that 0.0 has an integer of its own: the zero point.

    Args:
        values: float [..., n]; the last dimension shares scale and zero point.
        bits: bits of an integer.

    Returns:
        Scale (positive) and zero (whole numbers from 0 to 2^bits - 1), both [..., 1] in the dtype of
        `values`. A row of zeros gets scale 1 and zero 0.
    """
    low = values.amin(dim=-1, keepdim=True).clamp(max=0)
    high = values.amax(dim=-1, keepdim=True).clamp(min=0)
    levels = 2**bits - 1
    scale = (high - low) / levels
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = torch.round(-low / scale).clamp(0, levels)
    return scale, zero


def to_integers(values: Tensor, scale: Tensor, zero: Tensor, scheme: Scheme) -> Tensor:
    """Nearest integers of the grid, as floats: clamp(round(values / scale) + zero).

    Args:
        values: float [..., n].
        scale: positive, broadcasts against `values`.
        zero: whole numbers, broadcasts against `values`.
        scheme: says where the grid ends.

    Returns:
        Whole numbers from scheme.qmin to scheme.qmax, float [..., n].
    """
    return torch.clamp(torch.round(values / scale) + zero, scheme.qmin, scheme.qmax)


def from_integers(q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Back to real numbers: scale * (q - zero).

    Args:
        q: whole numbers [..., n].
        scale: broadcasts against `q`.
        zero: broadcasts against `q`.

    Returns:
        float [..., n].
    """
    return scale * (q - zero)


# ---- scale and zero of a scheme --------------------------------------------------------------------------


def parameters(values: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Scale and zero for values whose last dimension shares them.

    The scale is rounded to scheme.scale_dtype. GPTQ calls this for each group of columns:
    parameters(weight[:, i : i + group], scheme).

    Args:
        values: float [..., n].
        scheme: bits, symmetric or not, and the dtype that a scale is stored in.

    Returns:
        Scale and zero, both [..., 1] in the dtype of `values`.

    Raises:
        ValueError: when a scale does not fit into scale_dtype.
    """
    if scheme.symmetric:
        scale = absmax_scale(values, scheme.bits, scheme.full_range)
        return _stored(scale, scheme), torch.zeros_like(scale)
    scale, zero = zero_point_params(values, scheme.bits)
    stored = _stored(scale, scheme)
    # Zero point for the scale that is stored, not for the one before rounding.
    low = values.amin(dim=-1, keepdim=True).clamp(max=0)
    return stored, torch.round(-low / stored).clamp(scheme.qmin, scheme.qmax)


def _stored(scale: Tensor, scheme: Scheme) -> Tensor:
    """The scale after a trip through scale_dtype, never zero."""
    rounded = scale.to(scheme.scale_dtype)
    if torch.isinf(rounded).any():
        raise ValueError(f"a scale of {scale.max().item():.3g} does not fit into {scheme.scale_dtype}: "
                         "use Scheme(scale_dtype=torch.float32)")
    smallest = torch.finfo(scheme.scale_dtype).smallest_normal
    return torch.where(rounded == 0, torch.full_like(rounded, smallest), rounded).to(scale.dtype)


def search_clip(
    values: Tensor, scheme: Scheme, steps: int = 20, smallest: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Scale and zero of the clipping range with the least squared error for each group.

    Cutting off the largest values makes the step smaller for all others. The full range is tried too: never
    worse than `parameters`.

    Args:
        values: float [..., n]; the last dimension shares scale and zero.
        scheme: as for `parameters`.
        steps: number of ranges to try, from the full one downwards.
        smallest: the smallest range, as a share of the full one, above 0 and at most 1.

    Returns:
        Scale and zero, both [..., 1].

    Raises:
        ValueError: for steps below 1, another `smallest`, or a scale that does not fit into scale_dtype.
    """
    if steps < 1 or not 0 < smallest <= 1:
        raise ValueError(f"steps must be >= 1 and 0 < smallest <= 1, got steps={steps}, smallest={smallest}")
    best_scale, best_zero = parameters(values, scheme)
    best_error = _squared_error(values, best_scale, best_zero, scheme)
    for step in range(1, steps + 1):
        shrink = 1 - (1 - smallest) * step / steps
        scale, zero = parameters(values * shrink, scheme)
        error = _squared_error(values, scale, zero, scheme)
        better = error < best_error
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
        best_error = torch.where(better, error, best_error)
    return best_scale, best_zero


def _squared_error(values: Tensor, scale: Tensor, zero: Tensor, scheme: Scheme) -> Tensor:
    """Squared error of rounding `values` [..., n] to a grid, summed over the last dimension: [..., 1]."""
    restored = from_integers(to_integers(values, scale, zero, scheme), scale, zero)
    return (restored - values).square().sum(dim=-1, keepdim=True)
