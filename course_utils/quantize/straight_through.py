"""The straight-through estimator (Bengio et al., arXiv 1308.3432) with both directions written out.

`course_utils.quantize.qat.straight_through` gets the same in one line, by a value that is cut off from the
gradient. An `autograd.Function` is longer, and leaves nothing to puzzle over.
"""

from typing import Any

import torch
from torch import Tensor


class StraightThrough(torch.autograd.Function):
    """Round to the nearest integer from low to high: `StraightThrough.apply(steps, low, high)`.

    Value and gradient are those of `course_utils.quantize.qat.straight_through`.
    """

    @staticmethod
    def forward(ctx: Any, steps: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
        """Round and clip, and keep which values were not clipped.

        Args:
            ctx: what is kept for the way back.
            steps: float [...], a value counted in steps of the grid.
            low: smallest integer of the grid, a number or a tensor that broadcasts.
            high: largest integer, likewise.

        Returns:
            float [...] of whole numbers.
        """
        nearest = torch.round(steps)
        ctx.save_for_backward((nearest >= low) & (nearest <= high))
        return torch.clamp(nearest, low, high)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Let the gradient of what was not clipped pass.

        Args:
            ctx: what `forward` kept.
            gradient: float [...], the gradient of the result.

        Returns:
            float [...], the gradient of `steps`; None for `low` and `high`, which get none.
        """
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None
