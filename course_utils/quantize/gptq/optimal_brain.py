"""The error of a layer's output, and the Optimal Brain Quantizer, which makes it small one row at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def output_error(weight: Tensor, quantized: Tensor, hessian: Tensor) -> float:
    """Squared error of the layer's output for one input vector, on average, summed over the outputs.

    |X W^T - X Q^T|^2 / n = trace(D H D^T) / 2 with D = W - Q: the Hessian replaces the inputs.

    Args:
        weight: W, float [out, in].
        quantized: Q, float [out, in].
        hessian: H, float [in, in]; computed in its dtype.

    Returns:
        The error, 0 or more.
    """
    difference = (weight - quantized).to(hessian.dtype)
    return float((difference @ hessian * difference).sum() / 2)


def optimal_brain_row(
    row: Tensor,
    hessian: Tensor,
    nearest: Callable[[Tensor], Tensor],
    order: str = "greedy",
    limit: float = float("inf"),
) -> tuple[Tensor, list[int]]:
    """Optimal Brain Quantizer on one row of weights. Slow: O(in^3) a row.

    Source: arXiv 2208.11580, algorithm 3.

    Args:
        row: float [in].
        hessian: float [in, in], positive definite (damp it first).
        nearest: maps weights [in] to their nearest grid values, element by element.
        order: "greedy" rounds next the weight whose rounding costs least; "natural" goes from left to right.
        limit: half a step of the grid. A weight further off than that was pushed past the grid's end; the
            greedy order would leave it to the very last, when nothing can make up for it, so it is rounded at
            once (section 5 of the paper). Unused in natural order.

    Returns:
        The quantized row [in] in the dtype of `row`, and the order in which weights were rounded.

    Raises:
        ValueError: for another order.
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
