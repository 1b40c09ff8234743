"""GPTQ on one matrix: column by column, all rows at once."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from course_utils.quantize import affine
from course_utils.quantize.affine import Scheme

BLOCK = 32  # columns between two updates of the far columns (the paper: 128). It changes the speed only
ORDERS = ("natural", "activation", "grouped")


@dataclass(frozen=True)
class GPTQWeight:
    """What GPTQ found for one matrix, in the original order of the columns.

    Attributes:
        q: int8 (symmetric) or uint8 [out, in], integers of the scheme's grid.
        scale: float32 [out, groups].
        zero: float32 [out, groups], all 0 when symmetric.
        g_idx: int32 [in], the group of each column (arange(in) // group unless order="activation").
        scheme: what it was quantized to.
        damping: what was added to the Hessian's diagonal, as a share of its mean.
    """

    q: Tensor
    scale: Tensor
    zero: Tensor
    g_idx: Tensor
    scheme: Scheme
    damping: float

    def dequantize(self) -> Tensor:
        """The matrix [out, in] that the integers stand for, float32."""
        group = self.g_idx.long()
        return affine.from_integers(self.q.float(), self.scale[:, group], self.zero[:, group])


def inverse_factor(hessian: Tensor, damping: float = 0.01) -> tuple[Tensor, float]:
    """Upper triangular U with U^T U = (H + damping * mean(diag H) * I)^-1.

    Row j of U, divided by U[j, j], is the step of the Optimal Brain Quantizer for column j when columns
    0 ... j-1 are already rounded: all downdates of the inverse in one decomposition.

    Args:
        hessian: H, float [in, in].
        damping: share of the mean diagonal that is added to the diagonal. If H is too close to singular for
            float32, it is raised tenfold, with a warning, until the decomposition works.

    Returns:
        U [in, in], and the damping that was used.

    Raises:
        ValueError: when even heavy damping does not help.
    """
    mean = hessian.diagonal().mean()
    while True:
        damped = hessian.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and bool(torch.isfinite(upper).all()):
                return upper, damping
        if damping > 1e3:
            raise ValueError("the Hessian has no Cholesky factor even with heavy damping: does it hold NaN "
                             "or infinite values?")
        raised = max(10 * damping, 1e-4)
        warnings.warn(f"Cholesky failed with damping {damping:g}: raised to {raised:g}", stacklevel=2)
        damping = raised


def column_update(weight: Tensor, column: int, rounded: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Round one column of all rows, and move the columns to its right so that the output changes least.

    Args:
        weight: float [out, in]; columns left of `column` are already on the grid and must not move.
        column: number of the column, from 0.
        rounded: float [out], the grid values that weight[:, column] becomes.
        factor: float [in, in], upper triangular: `inverse_factor` of the Hessian.

    Returns:
        The new weight [out, in] (a new tensor), and the column's scaled error [out]:
        (weight[:, column] - rounded) / factor[column, column].
    """
    error = (weight[:, column] - rounded) / factor[column, column]
    return weight - torch.outer(error, factor[column]), error


def column_order(hessian: Tensor, order: str, group: int) -> Tensor:
    """The order in which columns are rounded.

    Args:
        hessian: float [in, in].
        order: "natural": left to right.
            "activation" (act-order, desc_act): largest diagonal of the Hessian first, while many columns are
            left to make up for the error; columns of a group are then scattered over the matrix.
            "grouped": groups in the order of their largest diagonal, columns sorted inside a group; a group
            stays a group of neighbours, so the kernel needs no g_idx (arXiv 2505.14638).
        group: columns of a group; read only by "grouped".

    Returns:
        Column numbers, LongTensor [in].
    """
    size = hessian.diagonal()
    if order == "natural":
        return torch.arange(len(size), device=size.device)
    if order == "activation":
        return size.argsort(descending=True, stable=True)
    by_group = size.view(-1, group)
    groups = by_group.amax(dim=1).argsort(descending=True, stable=True)
    inside = by_group.argsort(dim=1, descending=True, stable=True)
    return (groups[:, None] * group + inside[groups]).flatten()


def gptq(
    weight: Tensor,
    hessian: Tensor,
    scheme: Scheme,
    *,
    order: str = "natural",
    damping: float = 0.01,
    clip_search: bool = False,
    static_groups: bool = False,
) -> GPTQWeight:
    """Quantize one matrix with GPTQ. Computed in float32, or float64 if `hessian` is.

    Inputs that are always 0 (diagonal 0) get weight 0: nothing depends on them.

    Args:
        weight: float [out, in].
        hessian: float [in, in].
        scheme: bits, group (None: one scale a row), symmetric or not.
        order: see `column_order`.
        damping: share of the mean diagonal added to the diagonal.
        clip_search: choose each group's range by squared error (`affine.search_clip`), not by min and max.
        static_groups: take all scales from the original weights, before any is moved. By default, and in the
            paper, a group's scale comes from its weights as all groups before it have moved them. Static
            groups are groups of neighbours in every order.

    Returns:
        Integers, scales and zero points, in the original order of the columns.

    Raises:
        TypeError: for what `affine.quantize` refuses.
        ValueError: for what `affine.quantize` refuses, and for shapes that do not fit.
    """
    _check(weight, hessian, scheme, order, damping)
    width = weight.shape[1]
    group = scheme.group or width
    work, hessian = without_dead_columns(weight, hessian)
    columns = column_order(hessian, order, group)
    find_parameters = affine.search_clip if clip_search else affine.parameters
    if static_groups:  # a column takes its group's scale along when columns change places
        scales, zeros = (part.squeeze(-1)[:, columns // group]
                         for part in find_parameters(affine.to_groups(work, scheme), scheme))
    else:
        scales, zeros = torch.empty_like(work), torch.empty_like(work)
    work = work[:, columns]
    factor, damping = inverse_factor(hessian[columns][:, columns], damping)

    q = torch.empty_like(work)
    for start in range(0, width, group):
        if not static_groups:
            here = slice(start, start + group)
            # The scale of a group comes from its weights as they are *now*, moved by all groups before it.
            scales[:, here], zeros[:, here] = find_parameters(work[:, here], scheme)
        for left in range(start, start + group, BLOCK):
            right = min(left + BLOCK, start + group)
            q[:, left:right], errors = _round_block(
                work[:, left:right], factor[left:right, left:right], scales[:, left:right],
                zeros[:, left:right], scheme)
            # Far columns are not needed inside the block: one matrix product for all its columns.
            work[:, right:] -= errors @ factor[left:right, right:]

    back = columns.argsort()
    neighbours = static_groups or order != "activation"
    g_idx = (torch.arange(width, device=back.device) if neighbours else back) // group
    q, scales, zeros = q[:, back], scales[:, back], zeros[:, back]
    first = g_idx.argsort(stable=True)[::group]  # one column of each group
    q = q.to(torch.int8 if scheme.symmetric else torch.uint8)
    return GPTQWeight(q, scales[:, first].float(), zeros[:, first].float(), g_idx.to(torch.int32), scheme,
                      damping)


def _round_block(
    block: Tensor, factor: Tensor, scale: Tensor, zero: Tensor, scheme: Scheme
) -> tuple[Tensor, Tensor]:
    """Integers and scaled errors of the columns of one block, from left to right. All are [out, columns]."""
    integers, errors = torch.empty_like(block), torch.empty_like(block)
    for column in range(block.shape[1]):
        q = affine.to_integers(block[:, column], scale[:, column], zero[:, column], scheme)
        rounded = affine.from_integers(q, scale[:, column], zero[:, column])
        block, errors[:, column] = column_update(block, column, rounded, factor)
        integers[:, column] = q
    return integers, errors


def without_dead_columns(weight: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Give the inputs that were always 0 weight 0 and diagonal 1, so that the Hessian can be inverted.

    Args:
        weight: float [out, in].
        hessian: float [in, in].

    Returns:
        Copies of both, in the dtype of `hessian`.
    """
    weight, hessian = weight.detach().to(hessian.dtype, copy=True), hessian.clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    weight[:, dead] = 0
    return weight, hessian


def _check(weight: Tensor, hessian: Tensor, scheme: Scheme, order: str, damping: float) -> None:
    """Refuse what does not fit together, before anything is computed: TypeError or ValueError."""
    affine.check_weight(weight)
    width = weight.shape[1]
    if scheme.group == "tensor":
        raise ValueError("GPTQ takes scales by row or by group, not one for the whole matrix: "
                         "use Scheme(group=None) or a number")
    affine.check_group(scheme, width)
    if hessian.shape != (width, width):
        raise ValueError(f"weight {list(weight.shape)} needs a Hessian [{width}, {width}], "
                         f"got {list(hessian.shape)}")
    if not torch.isfinite(hessian).all():
        raise ValueError("the Hessian holds NaN or infinite values: look at the calibration inputs")
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    if not damping >= 0:
        raise ValueError(f"damping must be 0 or more, got {damping}")
