"""SparseGPT: remove weights column by column, and let the columns still to come make up for it.

It is GPTQ with another grid (Frantar and Alistarh, arXiv 2301.00774; reference code IST-DASLab/sparsegpt).
Where GPTQ rounds a weight to the nearest value of a grid, SparseGPT keeps it or makes it zero. The error that
is left moves the columns to the right by the same row of the same Cholesky factor, so both come from
`quantize.gptq`. Which weights go is decided for some columns at a time, by what their removal costs *now*:
w^2 / (2 [H^-1]_jj), the cost of the Optimal Brain Surgeon.

Shapes: weight [out, in] as in nn.Linear, Hessian [in, in] = 2 X^T X / n (`layerwise.Hessian`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from course_utils.prune.unstructured import Sparsity, check_pattern, describe, mask_of, wanda_score
from course_utils.quantize import affine, gptq, layerwise

BLOCK = 128  # columns whose weights are chosen together, as in the paper


def sparsegpt(weight: Tensor, hessian: Tensor, sparsity: Sparsity = 0.5, *, damping: float = 0.01) -> Tensor:
    """Prune one matrix with SparseGPT.

    Inputs that are always 0 (diagonal 0) lose their weights first: nothing depends on them.

    Args:
        weight: float [out, in]; it is not changed.
        hessian: float [in, in]; computed in its dtype.
        sparsity: share of weights that go, in each block of 128 columns; or (n, m): n of each m neighbours
            stay.
        damping: share of the mean diagonal of the Hessian added to its diagonal. Little text needs more.

    Returns:
        The new weight, float [out, in], zeros exactly 0.

    Raises:
        TypeError: for a weight that is no float.
        ValueError: for shapes and values that do not fit.
    """
    affine.check_weight(weight)
    width = weight.shape[1]
    if hessian.shape != (width, width):
        raise ValueError(f"weight {list(weight.shape)} needs a Hessian [{width}, {width}], "
                         f"got {list(hessian.shape)}")
    if not torch.isfinite(hessian).all():
        raise ValueError("the Hessian holds NaN or infinite values: look at the calibration inputs")
    if not damping >= 0:
        raise ValueError(f"damping must be 0 or more, got {damping}")
    weight, hessian = gptq.without_dead_columns(weight, hessian)
    factor, _ = gptq.inverse_factor(hessian, damping)
    return prune_columns(weight, factor, sparsity)


def prune_columns(weight: Tensor, factor: Tensor, sparsity: Sparsity) -> Tensor:
    """SparseGPT with the Cholesky factor given.

    Args:
        weight: float [out, in]; it is not changed.
        factor: upper triangular [in, in], of the same dtype: `gptq.inverse_factor` of the Hessian.
        sparsity: as for `sparsegpt`.

    Returns:
        The new weight [out, in].

    Raises:
        ValueError: for a pattern that does not fit the columns.
    """
    _check_sparsity(sparsity, weight.shape[1])
    # Transposed, a column of the weight lies in one piece of memory: the loop is several times as fast.
    work = weight.T.contiguous().clone()
    for start in range(0, len(work), BLOCK):
        stop = min(start + BLOCK, len(work))
        errors = _prune_block(work[start:stop], factor[start:stop, start:stop], sparsity)
        # Far columns are not needed inside the block: one matrix product for all its columns.
        work[stop:] -= factor[start:stop, stop:].T @ errors
    return work.T.contiguous()


def _prune_block(block: Tensor, factor: Tensor, sparsity: Sparsity) -> Tensor:
    """Prune some columns in place; returns their scaled errors. Both [columns, out]: transposed."""
    pattern = isinstance(sparsity, tuple)
    together = sparsity[1] if pattern else len(block)  # weights of so many columns are chosen together
    diagonal = factor.diagonal()
    errors = torch.empty_like(block)
    for start in range(0, len(block), together):
        stop = min(start + together, len(block))
        cost = (block[start:stop] / diagonal[start:stop, None]).square()
        mask = mask_of(cost.T, sparsity).T
        removed = ~mask / diagonal[start:stop, None]
        for j in range(start, stop):
            # gptq.column_update for a column that keeps some weights and loses the others: the error is the
            # weight where it goes and 0 where it stays. In place, and for the columns to the right alone.
            torch.mul(block[j], removed[j - start], out=errors[j])
            block[j + 1 :].addr_(factor[j, j + 1 :], errors[j], alpha=-1)
        block[start:stop] *= mask
    return errors


def _check_sparsity(sparsity: Sparsity, width: int) -> None:
    """Refuse a pattern whose groups do not fit the blocks and the columns: ValueError."""
    if not isinstance(sparsity, tuple):
        return
    check_pattern(sparsity)
    if BLOCK % sparsity[1] or width % sparsity[1]:
        raise ValueError(f"groups of {sparsity[1]} must divide {BLOCK} and the {width} columns")


# ---- a whole model ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerReport:
    """One linear layer, with its `gptq.output_error` on the calibration text.

    Attributes:
        name: the layer's full name.
        wanda_error: for Wanda's choice.
        sparsegpt_error: for SparseGPT.
    """

    name: str
    wanda_error: float
    sparsegpt_error: float


def sparsegpt_model(
    model: nn.Module,
    tokens: Tensor | list[dict],
    sparsity: Sparsity = 0.5,
    *,
    damping: float = 0.01,
    batch_size: int = 4,
    progress: bool = True,
    minimum_share: float = layerwise.MINIMUM_SHARE,
) -> list[LayerReport]:
    """Prune the linear layers of all blocks in place, block by block.

    Layers with one input in common share one decomposition. The model is put back as it was when anything
    goes wrong or the run is interrupted.

    Args:
        model: as for `layerwise.walk`.
        tokens: calibration text, LongTensor [n, length] or dicts of tensors (`layerwise.walk`).
        sparsity: as for `sparsegpt`.
        damping: as for `sparsegpt`.
        batch_size: rows of `tokens` that run together.
        progress: show a progress bar.
        minimum_share: as for `layerwise.check_coverage`.

    Returns:
        A report of each layer.

    Raises:
        TypeError: as `layerwise.walk`.
        ValueError: as `layerwise.check_coverage`, `layerwise.walk` and, with the layer's name, `sparsegpt`.
    """
    layerwise.check_coverage(model, minimum_share)
    reports: list[LayerReport] = []

    def edit(block: layerwise.Block) -> None:
        statistics = block.statistics
        for names in block.shared:
            hessian = statistics[names[0]].matrix
            for name in names:
                weight = block.linears[name].weight
                alive, damped = gptq.without_dead_columns(weight, hessian)
                if name == names[0]:
                    factor, _ = gptq.inverse_factor(damped, damping)
                try:
                    pruned = prune_columns(alive, factor, sparsity)
                except ValueError as error:
                    raise ValueError(f"{block.name}.{name}: {error}") from None
                reports.append(_report(f"{block.name}.{name}", weight, pruned, hessian, sparsity))
                weight.data.copy_(pruned)

    layerwise.walk(model, tokens, edit, layerwise.Hessian, batch_size=batch_size, progress=progress,
                   description=f"SparseGPT {describe(sparsity)}")
    return reports


def _report(name: str, weight: Tensor, pruned: Tensor, hessian: Tensor, sparsity: Sparsity) -> LayerReport:
    """The errors of Wanda's choice and of SparseGPT for one layer with weight [out, in]."""
    weight = weight.detach().float()
    norm = hessian.diagonal().sqrt()  # proportional to the length of each input: the ranking is the same
    wanda = weight * mask_of(wanda_score(weight, norm[None]), sparsity, "row")
    return LayerReport(name, gptq.output_error(weight, wanda, hessian),
                       gptq.output_error(weight, pruned, hessian))
