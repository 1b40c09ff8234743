"""Lesson qat: wrong answers are rejected for their reason, right ones written otherwise pass.

A shared test (test_all.py) walks these dictionaries; see tests/exercises/common.py for what it asserts.
"""

import math

import torch
import torch.nn.functional as F

from course_utils.quantize import affine
from course_utils.quantize.qat import fake_quantize
from course_utils.quantize.straight_through import StraightThrough

# --- straight_through -------------------------------------------------------------------------------------


def _masked(steps, low, high):
    """The gradient flows through a product with 1 or 0."""
    q = torch.round(steps.detach())
    inside = ((q >= low) & (q <= high)).to(steps.dtype)
    return torch.minimum(torch.maximum(q, q * 0 + low), q * 0 + high) + inside * (steps - steps.detach())


def _gradient_doubled(steps, low, high):
    return torch.clamp(2 * steps + (torch.round(steps) - 2 * steps).detach(), low, high)


# --- fake_quant_linear ------------------------------------------------------------------------------------


def _by_hand(x, weight, bias, ws, xs):
    """Every formula written out; a matrix product instead of F.linear."""
    low, high = x.detach().amin(-1, True).clamp(max=0), x.detach().amax(-1, True).clamp(min=0)
    step = (high - low) / (xs.qmax - xs.qmin)
    zero = torch.round(-low / step)
    rounded_x = fake_quantize(x, step, zero, xs)
    scale = 2 * weight.detach().abs().amax(1, True) / (2**ws.bits - 1)
    rounded_w = fake_quantize(weight, scale, torch.zeros_like(scale), ws)
    y = rounded_x @ rounded_w.T
    return y if bias is None else y + bias


def _by_difference(x, weight, bias, ws, xs):
    """The rounding error is added as a constant; with these scales nothing else is clipped but the tie."""
    with torch.no_grad():
        x_error = affine.fake_quantize(x.reshape(-1, x.shape[-1]), xs).reshape(x.shape) - x
    w_scale, w_zero = affine.parameters(weight.detach(), ws)
    return F.linear(x + x_error, fake_quantize(weight, w_scale, w_zero, ws), bias)


def _whole_weight(x, weight, bias, ws, xs):
    scale, zero = affine.parameters(weight.detach().flatten(), ws)
    rounded = fake_quantize(weight, scale, zero, ws)
    return F.linear(fake_quantize(x, *affine.parameters(x.detach(), xs), xs), rounded, bias)


def _whole_input(x, weight, bias, ws, xs):
    rounded = fake_quantize(x, *affine.parameters(x.detach().flatten(), xs), xs)
    return F.linear(rounded, fake_quantize(weight, *affine.parameters(weight.detach(), ws), ws), bias)


def _no_detach(x, weight, bias, ws, xs):
    x = fake_quantize(x, *affine.parameters(x, xs), xs)
    return F.linear(x, fake_quantize(weight, *affine.parameters(weight, ws), ws), bias)


def _ptq(x, weight, bias, ws, xs):
    rounded = affine.fake_quantize(x.detach().reshape(-1, x.shape[-1]), xs).reshape(x.shape)
    return F.linear(rounded, affine.fake_quantize(weight, ws), bias)


def _weight_only(x, weight, bias, ws, xs):
    return F.linear(x, fake_quantize(weight, *affine.parameters(weight.detach(), ws), ws), bias)


def _input_only(x, weight, bias, ws, xs):
    return F.linear(fake_quantize(x, *affine.parameters(x.detach(), xs), xs), weight, bias)


def _swapped(x, weight, bias, ws, xs):
    x = fake_quantize(x, *affine.parameters(x.detach(), ws), ws)
    return F.linear(x, fake_quantize(weight, *affine.parameters(weight.detach(), xs), xs), bias)


# --- learned_scale ----------------------------------------------------------------------------------------


class _Lsq(torch.autograd.Function):
    """Both gradients written by hand, as in the paper's equations (clipping decided after rounding)."""

    @staticmethod
    def forward(ctx, x, scale, low, high, g):
        ctx.save_for_backward(x, scale)
        ctx.low, ctx.high, ctx.g = low, high, g
        return torch.round(x / scale).clamp(low, high) * scale

    @staticmethod
    def backward(ctx, gradient):
        x, scale = ctx.saved_tensors
        q = torch.round(x / scale)
        inside = (q >= ctx.low) & (q <= ctx.high)
        slope = torch.where(inside, q - x / scale, q.clamp(ctx.low, ctx.high))
        for_scale = (gradient * slope * ctx.g).sum_to_size(scale.shape)
        return gradient * inside, for_scale, None, None, None


def _paper(x, scale, scheme):
    g = (x.shape[-1] * scheme.qmax) ** -0.5
    return _Lsq.apply(x, scale, scheme.qmin, scheme.qmax, g)


def _two_terms(x, scale, scheme):
    """Value and gradient of the scale as two terms."""
    g = 1 / math.sqrt(x.size(-1) * scheme.qmax)
    same = (scale * (1 - g)).detach() + scale * g
    return fake_quantize(x, same, torch.zeros_like(scale), scheme)


def _plain(x, scale, scheme):
    return fake_quantize(x, scale, torch.zeros_like(scale), scheme)


def _with_factor(x, scale, scheme, g):
    return fake_quantize(x, (scale * (1 - g)).detach() + scale * g, torch.zeros_like(scale), scheme)


def _in_forward(x, scale, scheme):
    return _plain(x, scale * (x.shape[-1] * scheme.qmax) ** -0.5, scheme)


WRONG = {
    "straight_through": [
        (lambda s, low, high: s.round().clamp(low, high), "no gradient arrives"),
        (lambda s, low, high: s - (s - s.round()).detach(), "do not exist on the grid"),
        (lambda s, low, high: s - (s - s.round().clamp(low, high)).detach(), "also passes where"),
        (lambda s, a, b: StraightThrough.apply(s.clamp(a, b), a, b), "clipped before rounding"),
        (lambda s, low, high: StraightThrough.apply(s - 0.5, low, high), "failed in case"),
        (lambda s, low, high: (s - (s - s.floor()).detach()).clamp(low, high), "rounded down"),
        (lambda s, low, high: s.clamp(low, high), "not rounded"),
        (_gradient_doubled, "of rounding and clipping"),
        (lambda s, low, high: s.round_().clamp_(low, high), "failed in case"),
    ],
    "fake_quant_linear": [
        (_whole_weight, "one scale for the whole weight"),
        (_whole_input, "one scale for all tokens"),
        (_no_detach, "also runs through the scales"),
        (_ptq, "rounding stops the gradient"),
        (_weight_only, "input is not rounded"),
        (_input_only, "weight is not rounded"),
        (lambda x, weight, bias, ws, xs: _by_hand(x, weight, None, ws, xs), "bias is missing"),
        (_swapped, "swapped"),
        (lambda x, weight, bias, ws, xs: F.linear(x, weight, bias), "a grid of its own"),
    ],
    "learned_scale": [
        (_plain, "not multiplied"),
        (_in_forward, "Its value must stay"),
        (lambda x, s, scheme: _plain(x, s.detach(), scheme), "cannot learn"),
        (lambda x, s, scheme: _with_factor(x, s, scheme, (x.numel() * scheme.qmax) ** -0.5), "whole tensor"),
        (lambda x, s, scheme: _with_factor(x, s, scheme, 1 / (x.shape[-1] * scheme.qmax)), "square root"),
        (lambda x, s, scheme: _with_factor(x, s, scheme, x.shape[-1] ** -0.5), "qmax is missing"),
        (lambda x, s, scheme: _with_factor(x, s, scheme, (x.shape[-1] << scheme.bits) ** -0.5), "all levels"),
    ],
    "predict_slope": [(1, "line that the steps follow"), (2, "value at 2.3"), (math.inf, "middle of a step")],
    "predict_zeros": [
        (25, "used equally"), (0.8, "percent"), (50, "between two levels"), (33, "spread evenly"),
    ],  # fmt: skip
}

def _by_numbers_of_elements(x, scale, scheme):
    """n from the sizes of both tensors."""
    g = 1 / math.sqrt(x.numel() // scale.numel() * scheme.qmax)
    learned = g * scale + (scale - g * scale).detach()
    return fake_quantize(x, learned, torch.zeros_like(learned), scheme)



def _detached_bias(x, weight, bias, ws, xs):
    return _by_difference(x, weight, bias if bias is None else bias.detach(), ws, xs)


def _clamped_by_hand(steps, low, high):
    q = torch.round(steps)
    inside = ((q >= low) & (q <= high)).to(steps.dtype)
    kept = torch.maximum(torch.minimum(q, torch.as_tensor(high).to(q)), torch.as_tensor(low).to(q))
    return kept.detach() + inside * (steps - steps.detach())


WRONG["fake_quant_linear"].append((_detached_bias, "gradient of bias"))

RIGHT = {
    "straight_through": [StraightThrough.apply, _masked, _clamped_by_hand],
    "fake_quant_linear": [_by_hand, _by_difference],
    "learned_scale": [_paper, _two_terms, _by_numbers_of_elements],
    "predict_slope": [0, 0.0],
    "predict_zeros": [79, 75.0],
}
