"""GPTQ: round one column at a time, and let the columns still to come make up for each rounding error.

Round to nearest makes each weight's error small. What matters is the error of the layer's *output*, and there
errors can cancel: inputs are correlated, so a weight rounded up can be paid for by a neighbour moved down.
Three steps lead to the method, each a function of this module:

optimal_brain_row   one row, exact and slow: pick a weight, round it, move all others by the best amount,
                    remove it from the inverse Hessian (Optimal Brain Quantizer, arXiv 2208.11580).
column_update       the same step for all rows at once. It needs one order of the columns for all rows, and
                    with a fixed order the inverse Hessians of all steps are rows of one Cholesky factor.
gptq                column after column, scales taken group by group, far columns updated in blocks
                    (arXiv 2210.17323, algorithm 1; reference code IST-DASLab/gptq).

Shapes: weight [out, in] as in nn.Linear, Hessian [in, in] = 2 X^T X / n of the layer's inputs X [n, in]
(`layerwise.Hessian`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from course_utils.quantize import affine, layerwise
from course_utils.quantize.affine import Scheme

BLOCK = 32  # columns between two updates of the far columns (the paper: 128). It changes the speed only
ORDERS = ("natural", "activation", "grouped")


@dataclass(frozen=True)
class GPTQWeight:
    """What GPTQ found for one matrix, in the original order of the columns.

    q: int8 (symmetric) or uint8 [out, in], integers of the scheme's grid.
    scale, zero: float32 [out, groups]; zero is all 0 when symmetric.
    g_idx: int32 [in], the group of each column (arange(in) // group unless order="activation").
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


# ---- what is minimised -----------------------------------------------------------------------------------


def output_error(weight: Tensor, quantized: Tensor, hessian: Tensor) -> float:
    """Squared error of the layer's output for one input vector, on average, summed over the outputs.

    |X W^T - X Q^T|^2 / n = trace(D H D^T) / 2 with D = W - Q: the Hessian replaces the inputs.
    """
    difference = (weight - quantized).to(hessian.dtype)
    return float((difference @ hessian * difference).sum() / 2)


# ---- one row, exactly ------------------------------------------------------------------------------------


def optimal_brain_row(
    row: Tensor,
    hessian: Tensor,
    nearest: Callable[[Tensor], Tensor],
    order: str = "greedy",
    limit: float = float("inf"),
) -> tuple[Tensor, list[int]]:
    """Optimal Brain Quantizer on one row of weights (arXiv 2208.11580, algorithm 3). Slow: O(in^3) a row.

    row: float [in]. hessian: float [in, in], positive definite (damp it first).
    nearest: maps weights [in] to their nearest grid values, element by element.
    order: "greedy" rounds next the weight whose rounding costs least; "natural" goes from left to right.
    limit: half a step of the grid. A weight further off than that was pushed past the grid's end; the greedy
    order would leave it to the very last, when nothing can make up for it, so it is rounded at once (section
    5 of the paper). Unused in natural order.
    Returns the quantized row [in] in the dtype of `row`, and the order in which weights were rounded.
    """
    if order not in ("greedy", "natural"):
        raise ValueError(f'order must be "greedy" or "natural", got {order!r}')
    weights = row.double().clone()
    inverse = torch.linalg.inv(hessian.double())
    left = torch.ones(len(row), dtype=torch.bool, device=row.device)
    visited = []
    while left.any():
        error = weights - nearest(weights.to(row.dtype)).double()
        # Rounding weight j and moving the others as well as possible costs error_j^2 / (2 inverse_jj).
        cost = torch.where(left, error.square() / inverse.diagonal(), torch.inf)
        cost = torch.where(left & (error.abs() > limit), -error.abs(), cost)
        j = int(cost.argmin()) if order == "greedy" else int(left.int().argmax())
        step = inverse[:, j] / inverse[j, j]
        weights = weights - error[j] * step
        # The inverse of the Hessian without row and column j: one step of Gaussian elimination.
        inverse.addr_(step, inverse[j].clone(), alpha=-1)
        left[j] = False
        # Exactly zero from here on. Rounding errors would otherwise move what is already on the grid.
        inverse[:, j], inverse[j, :] = 0, 0
        inverse[j, j] = 1
        visited.append(j)
    return weights.to(row.dtype), visited


# ---- all rows at once ------------------------------------------------------------------------------------


def inverse_factor(hessian: Tensor, damping: float = 0.01) -> tuple[Tensor, float]:
    """Upper triangular U with U^T U = (H + damping * mean(diag H) * I)^-1, and the damping that was used.

    Row j of U, divided by U[j, j], is the step of the Optimal Brain Quantizer for column j when columns
    0 ... j-1 are already rounded: all downdates of the inverse in one decomposition.
    If H is too close to singular for float32, the damping is raised tenfold, with a warning, until it works.
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

    weight: float [out, in]; columns left of `column` are already on the grid and must not move.
    rounded: float [out], the grid values that weight[:, column] becomes.
    factor: float [in, in], upper triangular: `inverse_factor` of the Hessian.
    Returns the new weight [out, in] (a new tensor), and the column's scaled error [out]:
    (weight[:, column] - rounded) / factor[column, column].
    """
    error = (weight[:, column] - rounded) / factor[column, column]
    return weight - torch.outer(error, factor[column]), error


def column_order(hessian: Tensor, order: str, group: int) -> Tensor:
    """The order in which columns are rounded, LongTensor [in].

    "natural": left to right. "activation" (act-order, desc_act): largest diagonal of the Hessian first, while
    many columns are left to make up for the error; columns of a group are then scattered over the matrix.
    "grouped": groups in the order of their largest diagonal, columns sorted inside a group; a group stays a
    group of neighbours, so the kernel needs no g_idx (arXiv 2505.14638).
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
    """Quantize one matrix with GPTQ.

    weight: float [out, in]. hessian: float [in, in]. Computed in float32, or float64 if `hessian` is.
    scheme: bits, group (None: one scale a row), symmetric or not.
    order: see `column_order`. damping: share of the mean diagonal added to the diagonal.
    clip_search: choose each group's range by squared error (`affine.search_clip`), not by min and max.
    static_groups: take all scales from the original weights, before any is moved. By default, and in the
    paper, a group's scale comes from its weights as all groups before it have moved them. Static groups are
    groups of neighbours in every order.
    Inputs that are always 0 (diagonal 0) get weight 0: nothing depends on them.
    Raises ValueError or TypeError for what `affine.quantize` refuses, and for shapes that do not fit.
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
    """Copies of both, with weight 0 and diagonal 1 where an input was always 0."""
    weight, hessian = weight.detach().to(hessian.dtype, copy=True), hessian.clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1
    weight[:, dead] = 0
    return weight, hessian


def _check(weight: Tensor, hessian: Tensor, scheme: Scheme, order: str, damping: float) -> None:
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


# ---- a whole model ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerReport:
    """One linear layer. Errors: `output_error` on the calibration text, as a share of the output's energy."""

    name: str
    nearest_error: float
    gptq_error: float
    damping: float


def quantize_model(
    model: nn.Module,
    tokens: Tensor | list[dict],
    scheme: Scheme,
    *,
    order: str = "natural",
    damping: float = 0.01,
    clip_search: bool = False,
    static_groups: bool = False,
    sequential: bool = False,
    batch_size: int = 4,
    progress: bool = True,
    keep: dict[str, GPTQWeight] | None = None,
) -> list[LayerReport]:
    """Quantize the linear layers of all blocks in place, block by block; returns one line for each layer.

    tokens: calibration text, LongTensor [n, length] or dicts of tensors (`layerwise.walk`).
    scheme, order, damping, clip_search, static_groups: as for `gptq`.
    sequential: measure a layer's inputs after the layers before it in its block were rounded. Four passes a
    block instead of one.
    keep: a dict that receives the integers and scales of each layer by full name, for `checkpoint.save`.

    Layers with one input in common (q, k and v; gate and up) have one Hessian: their rows are stacked, so
    that the decomposition and the walk over the columns are done once for all of them.
    The model is put back as it was when anything goes wrong or the run is interrupted.
    """
    reports: list[LayerReport] = []

    def quantize_group(block: layerwise.Block, names: list[str], hessian: Tensor) -> None:
        weights = [block.linears[name].weight for name in names]
        stacked = torch.cat([weight.detach().float() for weight in weights])
        try:
            found = gptq(stacked, hessian, scheme, order=order, damping=damping, clip_search=clip_search,
                         static_groups=static_groups)
        except ValueError as error:
            raise ValueError(f"{block.name}.{names[0]}: {error}") from None
        results = _split_rows(found, [len(weight) for weight in weights])
        for name, weight, result in zip(names, weights, results, strict=True):
            full_name = f"{block.name}.{name}"
            reports.append(_report(full_name, weight, result, hessian))
            weight.data.copy_(result.dequantize())
            if keep is not None:
                keep[full_name] = result

    def edit(block: layerwise.Block) -> None:
        everything = None if sequential else block.statistics
        for names in block.shared:
            statistics = block.collect(names) if sequential else everything
            quantize_group(block, names, statistics[names[0]].matrix)

    layerwise.walk(model, tokens, edit, layerwise.Hessian, batch_size=batch_size, progress=progress,
                   description=f"GPTQ {scheme}")
    return reports


def _split_rows(whole: GPTQWeight, sizes: list[int]) -> list[GPTQWeight]:
    """The rows of stacked layers, given back to each layer."""
    parts = zip(whole.q.split(sizes), whole.scale.split(sizes), whole.zero.split(sizes), strict=True)
    return [GPTQWeight(q, scale, zero, whole.g_idx, whole.scheme, whole.damping) for q, scale, zero in parts]


def _report(name: str, weight: Tensor, result: GPTQWeight, hessian: Tensor) -> LayerReport:
    weight = weight.detach().float()
    energy = output_error(weight, torch.zeros_like(weight), hessian)
    nearest = affine.fake_quantize(weight, result.scheme)
    return LayerReport(
        name,
        output_error(weight, nearest, hessian) / energy,
        output_error(weight, result.dequantize(), hessian) / energy,
        result.damping,
    )
