"""Scores: how much each weight is needed."""

from __future__ import annotations

import torch
from torch import Tensor


def random_score(weight: Tensor, generator: torch.Generator) -> Tensor:
    """A random number from 0 to 1 for each weight.

    Args:
        weight: float [out, in].
        generator: on the CPU, seeded.

    Returns:
        float32 [out, in].
    """
    return torch.rand(weight.shape, generator=generator).to(weight.device)


def magnitude_score(weight: Tensor) -> Tensor:
    """The size of each weight.

    Args:
        weight: float [out, in].

    Returns:
        [out, in].
    """
    return weight.detach().abs()


def wanda_score(weight: Tensor, inputs: Tensor) -> Tensor:
    """Wanda's score of each weight: its size times the length of the inputs that it multiplies.

    Args:
        weight: float [out, in], as in nn.Linear.
        inputs: float [tokens, in], what reached the layer. The length of input j is the root of the sum of
            its squares over all tokens: one number for each column of the weight.

    Returns:
        The scores, [out, in].
    """
    length = inputs.square().sum(dim=0).sqrt()
    return weight.abs() * length


class InputNorm:
    """Root of the sum of squares of each input channel, for `layerwise.walk`."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0

    def add(self, x: Tensor) -> None:
        """Take in the inputs of one batch.

        Args:
            x: float32 [tokens, in].
        """
        self.total = self.total + x.square().sum(dim=0)

    @property
    def norm(self) -> Tensor:
        """Root of the sum of squares of each input channel, float32 [in]."""
        return self.total.sqrt()
