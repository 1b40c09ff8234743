"""Two tensors, each read as one long arrow: the angle between them, and two ways from one to the other.

LERP, linear interpolation, walks along the straight line. SLERP, spherical linear interpolation, turns from
one direction to the other at constant angular speed (K. Shoemake, "Animating rotation with quaternion
curves", SIGGRAPH 1985). Both reach the first tensor at t = 0 and the second at t = 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two tensors.

    Computed in float32 (float64 for float64 input) from arrows of length 1, so no product can overflow.

    Args:
        a: of any shape.
        b: of the same shape.

    Returns:
        From -1 to 1; NaN if one of them is all zero.

    Raises:
        ValueError: the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"the shapes differ: {list(a.shape)} and {list(b.shape)}")
    dtype = torch.promote_types(a.dtype, torch.float32)
    x, y = a.flatten().to(dtype), b.flatten().to(dtype)
    return torch.dot(x / x.norm(), y / y.norm()).clamp(-1, 1).item()


def lerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The point at share t of the straight line from a to b: (1 - t) a + t b.

    Computed in float32 (float64 for float64 input).

    Args:
        a: of any shape.
        b: of the same shape.
        t: 0 gives a, 1 gives b.

    Returns:
        Tensor with shape and dtype of a.

    Raises:
        ValueError: the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"the shapes differ: {list(a.shape)} and {list(b.shape)}")
    dtype = torch.promote_types(a.dtype, torch.float32)
    return ((1 - t) * a.to(dtype) + t * b.to(dtype)).to(a.dtype)


def slerp(a: Tensor, b: Tensor, t: float, parallel: float = 0.9995) -> Tensor:
    """The point at share t of the arc from a to b.

    With A the angle between a and b, each read as one flat vector of float32 (float64 for float64 input):

        a * sin((1 - t) A) / sin(A)  +  b * sin(t A) / sin(A)

    The angle is measured on the normalised vectors; a and b themselves keep their lengths. It is LERP instead
    where there is no arc to follow: if |cos A| >= parallel (mergekit's rule and default) or one is all zero.

    Args:
        a: of any shape.
        b: of the same shape.
        t: 0 gives a, 1 gives b.
        parallel: |cos A| from which on a and b count as parallel.

    Returns:
        Tensor with shape and dtype of a.

    Raises:
        ValueError: the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"the shapes differ: {list(a.shape)} and {list(b.shape)}")
    dtype = torch.promote_types(a.dtype, torch.float32)
    x, y = a.flatten().to(dtype), b.flatten().to(dtype)
    cosine = torch.dot(x / x.norm(), y / y.norm()).clamp(-1, 1)  # rounding can give 1.0000001
    if x.norm() == 0 or y.norm() == 0 or cosine.abs() >= parallel:
        from_a, from_b = 1 - t, t
    else:
        angle = torch.acos(cosine)
        from_a = torch.sin((1 - t) * angle) / torch.sin(angle)
        from_b = torch.sin(t * angle) / torch.sin(angle)
    return (from_a * x + from_b * y).reshape(a.shape).to(a.dtype)
