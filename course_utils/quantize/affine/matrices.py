"""Whole matrices [out, in]: quantize, dequantize, both in one (fake quantization)."""

from __future__ import annotations

import torch
from torch import Tensor

from course_utils.quantize.affine.grids import from_integers, parameters, search_clip, to_integers
from course_utils.quantize.affine.schemes import Quantized, Scheme, check_group


def quantize(weight: Tensor, scheme: Scheme, clip_search: bool = False) -> Quantized:
    """Quantize a matrix to the nearest integers of the scheme.

    Args:
        weight: [out, in], any floating dtype, any strides.
        scheme: what to quantize to.
        clip_search: choose each group's range by squared error (`search_clip`) instead of min/max.

    Returns:
        The integers with their scales and zero points.

    Raises:
        TypeError: for integer input.
        ValueError: for NaN, inf, another number of dimensions, or a group that does not divide the width.
    """
    check_weight(weight)
    values = to_groups(weight.detach(), scheme)
    scale, zero = (search_clip if clip_search else parameters)(values, scheme)
    q = to_integers(values, scale, zero, scheme)
    q = q.to(torch.int8 if scheme.symmetric else torch.uint8).reshape(weight.shape)
    return Quantized(q, scale.squeeze(-1), zero.squeeze(-1), scheme, weight.dtype)


def dequantize(quantized: Quantized) -> Tensor:
    """The matrix that the integers stand for.

    Args:
        quantized: integers with their scales and zero points.

    Returns:
        [out, in] in the dtype the weight came in.
    """
    q = to_groups(quantized.q, quantized.scheme)
    values = from_integers(q, quantized.scale.unsqueeze(-1), quantized.zero.unsqueeze(-1))
    return values.reshape(quantized.q.shape).to(quantized.dtype)


def fake_quantize(weight: Tensor, scheme: Scheme, clip_search: bool = False) -> Tensor:
    """Quantize, then dequantize: the weight [out, in] with the rounding error in it, still a float.

    Args:
        weight: [out, in], any floating dtype.
        scheme: what to quantize to.
        clip_search: as for `quantize`.

    Returns:
        [out, in] in the dtype of `weight`.

    Raises:
        TypeError: as `quantize`.
        ValueError: as `quantize`.
    """
    return dequantize(quantize(weight, scheme, clip_search))


def to_groups(matrix: Tensor, scheme: Scheme) -> Tensor:
    """Cut a matrix into the groups that share a scale.

    Args:
        matrix: [out, in].
        scheme: its group is how many neighbours share a scale.

    Returns:
        float32 (float64 stays) [out, groups, group]; per tensor [1, 1, out * in].

    Raises:
        ValueError: when the group does not divide the width.
    """
    matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
    if scheme.group == "tensor":
        return matrix.reshape(1, 1, -1)
    rows, width = matrix.shape
    check_group(scheme, width)
    return matrix.reshape(rows, -1, scheme.group or width)


def check_weight(weight: Tensor) -> None:
    """Refuse what is not a finite floating-point matrix.

    Args:
        weight: what should be one.

    Raises:
        TypeError: when it is no tensor or holds no floats.
        ValueError: when it is no matrix, is empty, or holds NaN or infinite values.
    """
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        kind = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"weight must be a floating-point tensor, got {kind}")
    if weight.ndim != 2 or weight.numel() == 0:
        raise ValueError(f"weight must be a non-empty matrix [out, in], got shape {list(weight.shape)}")
    finite = torch.isfinite(weight)
    if not finite.all():
        bad = weight.numel() - int(finite.sum())
        raise ValueError(f"weight holds {bad} NaN or infinite value(s): no scale can be taken from them")
