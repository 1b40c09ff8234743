"""The range of each group: how far to shrink it so that the output error is smallest."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from course_utils.quantize import affine
from course_utils.quantize.affine import Scheme
from course_utils.quantize.awq.scaling import round_in_place

SHRINKS = tuple(1 - i / 20 for i in range(11))  # 1, 0.95 ... 0.5


def search_clip(
    weight: Tensor, inputs: Tensor, scheme: Scheme, shrinks: Iterable[float] = SHRINKS
) -> Tensor:
    """Largest |weight| to allow in each group: the bound with the least output error on `inputs`.

    Unlike `affine.search_clip`, which counts weight error, this counts the error in what the group adds to
    the output. With d a group's weight error and X its n inputs, that error is |X d|^2. Only X^T X matters,
    so X may be replaced by the triangular factor R of X = QR: at most as many rows as the group is wide.

    Args:
        weight: float [out, in].
        inputs: float [n, in].
        scheme: what the weight will be rounded to.
        shrinks: shares of max |weight| to try, 1 (no clipping) first.

    Returns:
        Bounds [out, groups], for `clip`.
    """
    groups = affine.to_groups(weight, scheme)  # [out, groups, group]
    x = affine.to_groups(inputs, scheme).transpose(0, 1)  # [groups, n, group]
    if x.shape[1] > x.shape[2]:
        x = torch.linalg.qr(x, mode="r").R
    largest = groups.abs().amax(dim=-1)
    bounds, least = largest.clone(), torch.full_like(largest, torch.inf)
    for shrink in shrinks:
        bound = largest * shrink
        limit = bound.unsqueeze(-1)
        moved = round_in_place(groups.clamp(-limit, limit), scheme).sub_(groups)
        error = (moved.transpose(0, 1) @ x.transpose(1, 2)).square_().sum(dim=-1).T  # over [groups, out, n]
        better = error < least
        bounds, least = torch.where(better, bound, bounds), torch.where(better, error, least)
    return bounds


def clip(weight: Tensor, bounds: Tensor) -> Tensor:
    """Cut each group of a weight off at its own bound.

    Args:
        weight: float [out, in].
        bounds: largest |weight| of each group, [out, groups].

    Returns:
        [out, in], each group from -bound to bound.
    """
    groups = weight.reshape(*bounds.shape, -1)
    limit = bounds.unsqueeze(-1).to(weight.dtype)
    return groups.clamp(-limit, limit).reshape(weight.shape)
