"""Rounding that a gradient passes through: straight through, or to a scale that learns too (LSQ)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.quantize import affine
from course_utils.quantize.affine import Scheme


def straight_through(steps: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Round to the nearest integer from low to high; the gradient passes as if nothing was rounded.

    Gradient: 1 where the rounded value lies from low to high, 0 where it was clipped.
    Source: Bengio et al., arXiv 1308.3432; clipped as in Jacob et al., arXiv 1712.05877.

    Args:
        steps: float [...], a value counted in steps of the grid (x / scale).
        low: smallest integer, a number or a tensor that broadcasts.
        high: largest integer, a number if `low` is one, else a tensor.

    Returns:
        [...] whole numbers in the dtype of `steps`.
    """
    nearest = steps + (torch.round(steps) - steps).detach()
    return torch.clamp(nearest, low, high)


def fake_quantize(x: Tensor, scale: Tensor, zero: Tensor, scheme: Scheme) -> Tensor:
    """Round x to the grid scale * (q - zero), q from scheme.qmin to scheme.qmax: a float that can train.

    Forward: affine.to_integers, then affine.from_integers. Gradient for x: as in straight_through.
    A scale that requires a gradient gets one too: for each value, q - zero - x / scale where it was rounded
    and the edge of the grid where it was clipped. That is equation 3 of LSQ; it follows from the product rule
    alone. What counts as clipped is decided after rounding, as in torch's kernels; in the paper before it.

    Args:
        x: float [...].
        scale: positive, broadcasts against x.
        zero: whole numbers, broadcasts against x.
        scheme: says where the grid ends.

    Returns:
        float [...].
    """
    return scale * straight_through(x / scale, scheme.qmin - zero, scheme.qmax - zero)


def fake_quant_linear(x: Tensor, weight: Tensor, bias: Tensor | None, weight_scheme: Scheme,
                      activation_scheme: Scheme) -> Tensor:
    """A linear layer that computes with the rounding errors of a quantized one.

    Scales and zero points are taken from the values as they are now (affine.parameters), and are constants to
    the gradient. x and weight get straight-through gradients.

    Args:
        x: float [..., in], rounded with one scale (and zero point) a token.
        weight: float [out, in], rounded with one scale an output channel.
        bias: float [out] or None, not rounded.
        weight_scheme: what the weight is rounded to.
        activation_scheme: what x is rounded to.

    Returns:
        [..., out] in the dtype of `x`.
    """
    x_scale, x_zero = affine.parameters(x.detach(), activation_scheme)
    w_scale, w_zero = affine.parameters(weight.detach(), weight_scheme)
    x = fake_quantize(x, x_scale, x_zero, activation_scheme)
    weight = fake_quantize(weight, w_scale, w_zero, weight_scheme)
    return F.linear(x, weight, bias)


# ---- a scale that learns (LSQ) ---------------------------------------------------------------------------


def learned_scale(x: Tensor, scale: Tensor, scheme: Scheme) -> Tensor:
    """Fake quantization with a scale that is trained like a weight (LSQ), symmetric.

    Forward: fake_quantize(x, scale, 0, scheme). Gradient for x: as there. Gradient for scale: as there, times
    1 / sqrt(n * scheme.qmax), so that a step changes scales about as much, relatively, as it changes weights.
    Source: Esser et al., arXiv 1902.08153, sections 2.1 and 2.2.

    Args:
        x: float [..., n], n values share one scale.
        scale: float [..., 1], positive, requires a gradient.
        scheme: symmetric; says where the grid ends.

    Returns:
        [..., n] in the dtype of `x`.
    """
    slower = 1 / math.sqrt(x.shape[-1] * scheme.qmax)
    # The value of scale, with a gradient that is multiplied by `slower`.
    scale = scale.detach() + slower * (scale - scale.detach())
    return fake_quantize(x, scale, torch.zeros_like(scale), scheme)


def first_scale(x: Tensor, scheme: Scheme) -> Tensor:
    """Where LSQ lets a scale begin: 2 * mean|x| / sqrt(qmax).

    Source: Esser et al., arXiv 1902.08153, section 2.1.

    Args:
        x: float [..., n], n values share one scale.
        scheme: says where the grid ends.

    Returns:
        float [..., 1], positive.
    """
    scale = 2 * x.abs().mean(dim=-1, keepdim=True) / math.sqrt(scheme.qmax)
    return torch.where(scale > 0, scale, torch.ones_like(scale))
