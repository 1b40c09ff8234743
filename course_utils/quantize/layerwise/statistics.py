"""Statistics: what a method may want to know about a layer's inputs, accumulated batch by batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Hessian:
    """The matrix 2 X^T X / n over the n input vectors X seen so far.

    Source: Frantar et al., arXiv 2210.17323, section 3.
    """

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        """Take in the inputs of one batch.

        Args:
            x: float32 [tokens, in].
        """
        self.total = self.total + x.T @ x
        self.tokens += len(x)

    @property
    def matrix(self) -> Tensor:
        """2 X^T X / n, float32 [in, in]."""
        return self.total * (2 / self.tokens)


class MeanAbs:
    """Mean |x| of each input channel (AWQ's measure of importance)."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        """Take in the inputs of one batch.

        Args:
            x: float32 [tokens, in].
        """
        self.total = self.total + x.abs().sum(dim=0)
        self.tokens += len(x)

    @property
    def mean(self) -> Tensor:
        """Mean |x| of each input channel, float32 [in]."""
        return self.total / self.tokens


class AbsMax:
    """Largest |x| of each input channel (SmoothQuant, static quantization).

    Attributes:
        absmax: float32 [in]; None before the first batch.
    """

    def __init__(self) -> None:
        self.absmax: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Take in the inputs of one batch.

        Args:
            x: float32 [tokens, in].
        """
        largest = x.abs().amax(dim=0)
        self.absmax = largest if self.absmax is None else torch.maximum(self.absmax, largest)


class Sample:
    """Some of the input vectors seen, spread over the text.

    Keeps every k-th vector of what comes and doubles k when the store is full: bounded and deterministic.

    Attributes:
        limit: so many vectors are kept at most.
        inputs: float32 [<= limit, in]; None before the first batch.
        stride: k.
        seen: the number of vectors seen.
    """

    def __init__(self, limit: int = 512) -> None:
        self.limit, self.stride, self.seen = limit, 1, 0
        self.inputs: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Take in the inputs of one batch.

        Args:
            x: float32 [tokens, in].
        """
        kept = x[(-self.seen) % self.stride :: self.stride]
        self.seen += len(x)
        self.inputs = kept.clone() if self.inputs is None else torch.cat([self.inputs, kept])
        while len(self.inputs) > self.limit:
            self.inputs, self.stride = self.inputs[::2].clone(), self.stride * 2


class Together:
    """Several statistics of one input, each an attribute by its name.

        lambda: Together(absmax=AbsMax(), sample=Sample(256))

    Attributes:
        parts: the statistics by name.
    """

    def __init__(self, **parts: Any) -> None:
        self.parts = parts
        self.__dict__.update(parts)

    def add(self, x: Tensor) -> None:
        """Take in the inputs of one batch.

        Args:
            x: float32 [tokens, in].
        """
        for part in self.parts.values():
            part.add(x)
