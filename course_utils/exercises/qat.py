"""Exercises of the lesson on quantization-aware training."""

import math

import torch
import torch.nn.functional as F

from course_utils import models
from course_utils.checking import Case, Exercise, Mistake, Prediction
from course_utils.checking.cases import gradients, randn
from course_utils.quantize import affine, layerwise, qat
from course_utils.quantize.affine import Scheme

# --- straight_through -------------------------------------------------------------------------------------


def _call_straight_through(function, steps, low, high):
    steps = steps.detach().requires_grad_()
    return gradients(function(steps, low, high), randn(*steps.shape, seed=9), steps=steps)


def _straight_through_cases():
    edges = torch.tensor([-8.6, -8.4, -8.0, -7.5, -0.4, 0.0, 0.6, 6.5, 7.0, 7.4, 7.6, 30.0])
    rows = torch.tensor([[0.0], [3.0], [-5.0]])
    return [
        Case(torch.tensor([-1.7, -0.2, 0.3, 1.2]), -8, 7, label="nothing to clip"),
        Case(edges, -8, 7, label="values inside, outside and just beyond the ends"),
        Case(4 * randn(6, 5).t(), -2, 1, label="2 bits, a transposed matrix"),
        Case(10 * randn(3, 50, seed=1), 0 - rows, 15 - rows, label="ends that differ from row to row"),
        Case(randn(2, 3, 4, seed=2).double(), -128, 127, label="three dimensions, float64"),
        Case(torch.tensor([0.5, 1.5, 2.5, 3.5, -0.5, 1e4, -1e4]), 0, 3, label="ties, large values, low 0"),
        Case(5 * randn(4, 3, seed=3), torch.tensor([-1.0, 2.0, -7.0]), torch.tensor([6.0, 6.0, 0.0]),
             label="ends for each column"),
        Case(torch.tensor([2.7]), low=-4, high=3, label="a single number"),
    ]


def _no_gradient(steps, low, high):
    return torch.clamp(torch.round(steps), low, high)


def _not_clipped(steps, low, high):
    return steps + (torch.round(steps) - steps).detach()


def _passes_everywhere(steps, low, high):
    return steps + (torch.clamp(torch.round(steps), low, high) - steps).detach()


def _clipped_first(steps, low, high):
    clipped = torch.clamp(steps, low, high)
    return clipped + (torch.round(clipped) - clipped).detach()


def _round_down(steps, low, high):
    return torch.clamp(steps + (torch.floor(steps) - steps).detach(), low, high)


def _not_rounded(steps, low, high):
    return torch.clamp(steps, low, high)


STRAIGHT_THROUGH = Exercise(
    reference=qat.straight_through,
    exact_dtype=True,
    call=_call_straight_through,
    cases=_straight_through_cases,
    mistakes=[
        Mistake(
            "the values are right, but no gradient arrives: torch.round has slope 0. Add the rounding error "
            "to `steps` as a constant, or write the backward pass yourself.",
            _no_gradient,
        ),
        Mistake("integers below low or above high do not exist on the grid: clip them.", _not_clipped),
        Mistake(
            "the gradient also passes where the value was clipped. There, a small change of the value "
            "changes nothing, and its gradient should be 0.",
            _passes_everywhere,
        ),
        Mistake(
            "clipped before rounding. 7.4 rounds to 7, which is on the grid, so its gradient passes; after "
            "clipping first it is lost. Round, then clip.",
            _clipped_first,
        ),
        Mistake("rounded down. Take the nearest integer (torch.round).", _round_down),
        Mistake("not rounded at all: the result must be whole numbers.", _not_rounded),
    ],
    hint="The value is easy. For the gradient: of rounding and clipping, which should it not see?",
)


# --- fake_quant_linear ------------------------------------------------------------------------------------


def _call_linear(function, x, weight, bias, weight_scheme, activation_scheme):
    inputs = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    inputs = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    result = function(
        inputs["x"], inputs["weight"], inputs.get("bias"), weight_scheme, activation_scheme
    )
    return gradients(result, randn(*x.shape[:-1], len(weight), seed=9), **inputs)


def _linear_cases():
    w4, w2, w8 = (Scheme(bits, scale_dtype=torch.float32) for bits in (4, 2, 8))
    a8, a4 = (Scheme(bits, symmetric=False, scale_dtype=torch.float32) for bits in (8, 4))
    uneven = randn(6, 16) * torch.tensor([0.1, 1, 1, 2, 5, 10])[:, None]
    tokens = randn(2, 5, 16, seed=1) * torch.tensor([1, 0.1, 3, 1, 20])[:, None]
    return [
        Case(tokens, uneven, randn(6, seed=2), w4, a8, label="W4A8, tokens and channels of uneven size"),
        Case(tokens, uneven, None, w2, a8, label="W2A8, no bias"),
        Case(randn(7, 12, seed=3) + 1, randn(12, 9, seed=4).t(), randn(9, seed=5), w4, a4,
             label="W4A4, a transposed weight, inputs that are mostly positive"),
        Case(randn(16, seed=6), uneven, randn(6, seed=7), w8, a8, label="W8A8, a single token"),
        Case(randn(3, 2, 5, seed=8).transpose(0, 1), randn(1, 5, seed=9), torch.tensor([2.0]), w4, a8,
             label="one output channel, inputs that are not contiguous"),
    ]  # fmt: skip


def _rounded(values, scheme, like=None):
    scale, zero = affine.parameters((values if like is None else like).detach(), scheme)
    return qat.fake_quantize(values, scale, zero, scheme)


def _linear(x, weight, bias, ws, xs, round_x=_rounded, round_weight=_rounded):
    return F.linear(round_x(x, xs), round_weight(weight, ws), bias)


def _one_scale(values, scheme):
    return _rounded(values, scheme, like=values.flatten())


def _scale_with_gradient(values, scheme):
    return qat.fake_quantize(values, *affine.parameters(values, scheme), scheme)


def _rounded_for_good(values, scheme):
    scale, zero = affine.parameters(values.detach(), scheme)
    return affine.from_integers(affine.to_integers(values, scale, zero, scheme), scale, zero)


def _left_alone(values, scheme):
    return values


def _per_input_channel(weight, scheme):
    return _rounded(weight.t(), scheme).t()


FAKE_QUANT_LINEAR = Exercise(
    reference=qat.fake_quant_linear,
    exact_dtype=True,
    call=_call_linear,
    cases=_linear_cases,
    rtol=1e-4,
    atol=1e-5,
    mistakes=[
        Mistake(
            "one scale for the whole weight. Each row of the weight, an output channel, gets its own.",
            lambda *a: _linear(*a, round_weight=_one_scale),
        ),
        Mistake(
            "one scale for each column of the weight. The scale belongs to a row, an output channel.",
            lambda *a: _linear(*a, round_weight=_per_input_channel),
        ),
        Mistake(
            "one scale for all tokens. Each token, the last dimension of x, gets its own.",
            lambda *a: _linear(*a, round_x=_one_scale),
        ),
        Mistake(
            "the gradient also runs through the scales. They are constants here: take them from detached "
            "values.",
            lambda *a: _linear(*a, round_x=_scale_with_gradient, round_weight=_scale_with_gradient),
        ),
        Mistake(
            "the values are right, but rounding stops the gradient. Round with fake_quantize, which lets it "
            "pass.",
            lambda *a: _linear(*a, round_x=_rounded_for_good, round_weight=_rounded_for_good),
        ),
        Mistake("the input is not rounded.", lambda *a: _linear(*a, round_x=_left_alone)),
        Mistake("the weight is not rounded.", lambda *a: _linear(*a, round_weight=_left_alone)),
        Mistake(
            "the two schemes are swapped: the weight is rounded with the one for activations.",
            lambda x, weight, bias, ws, xs: _linear(x, weight, bias, xs, ws),
        ),
        Mistake("the bias is missing.", lambda x, weight, bias, ws, xs: _linear(x, weight, None, ws, xs)),
    ],
    hint="Two things are rounded, each to a grid of its own. What do you have to know of a grid before?",
)


# --- learned_scale ----------------------------------------------------------------------------------------


def _call_learned(function, x, scale, scheme):
    x, scale = x.detach().requires_grad_(), scale.detach().requires_grad_()
    result = function(x, scale, scheme)
    return gradients(result, randn(*x.shape, seed=9), x=x, scale=scale)


def _learned_cases():
    three = torch.tensor([[0.05], [0.4], [3.0]])
    w2, w3, w4 = (Scheme(bits, scale_dtype=torch.float32) for bits in (2, 3, 4))
    return [
        Case(randn(3, 40), three, w4, label="4 bits; too small, fitting and too large a scale"),
        Case(randn(3, 40, seed=1), three, w2, label="2 bits, where qmax is 1"),
        Case(randn(40, 3, seed=2).t(), three, w3, label="3 bits, a transposed weight"),
        Case(randn(2, 3, 16, seed=3), torch.stack([three, three / 2]), w4,
             label="groups: three dimensions, 16 values share a scale"),
        Case(randn(3, 7, seed=4), three, w4, label="7 values share a scale"),
        Case(3 * randn(5, 1, seed=5), torch.full((5, 1), 0.02), Scheme(8, scale_dtype=torch.float32),
             label="8 bits, each value has a scale of its own"),
    ]


def _lsq(factor):
    """LSQ with another factor(x, scheme) on the gradient of the scale."""

    def answer(x, scale, scheme):
        g = factor(x, scheme)
        scale = scale.detach() + g * (scale - scale.detach())
        return qat.fake_quantize(x, scale, torch.zeros_like(scale), scheme)

    return answer


def _scale_itself_smaller(x, scale, scheme):
    scale = scale / math.sqrt(x.shape[-1] * scheme.qmax)
    return qat.fake_quantize(x, scale, torch.zeros_like(scale), scheme)


def _scale_fixed(x, scale, scheme):
    return qat.fake_quantize(x, scale.detach(), torch.zeros_like(scale), scheme)


LEARNED_SCALE = Exercise(
    reference=qat.learned_scale,
    exact_dtype=True,
    call=_call_learned,
    cases=_learned_cases,
    rtol=1e-4,
    atol=1e-6,
    mistakes=[
        Mistake(
            "the gradient of the scale is not multiplied by 1 / sqrt(n * qmax).", _lsq(lambda x, scheme: 1.0)
        ),
        Mistake(
            "the scale itself became smaller. Its value must stay; only its gradient is multiplied.",
            _scale_itself_smaller,
        ),
        Mistake("no gradient reaches the scale: it cannot learn.", _scale_fixed),
        Mistake(
            "n counted over the whole tensor. Only the values that share a scale count: the last dimension.",
            _lsq(lambda x, scheme: 1 / math.sqrt(x.numel() * scheme.qmax)),
        ),
        Mistake(
            "the square root is missing: the factor is 1 / sqrt(n * qmax).",
            _lsq(lambda x, scheme: 1 / (x.shape[-1] * scheme.qmax)),
        ),
        Mistake(
            "the factor counts all levels of the grid. It takes qmax, the largest integer.",
            _lsq(lambda x, scheme: 1 / math.sqrt(x.shape[-1] * 2**scheme.bits)),
        ),
        Mistake("qmax is missing in the factor.", _lsq(lambda x, scheme: 1 / math.sqrt(x.shape[-1]))),
    ],
    hint="detach() keeps a value and cuts its gradient. Which sum keeps the value, with less gradient?",
)


# --- predictions ------------------------------------------------------------------------------------------


def _share_of_zeros():
    """Percent of MiniLM's linear weights that become 0 in 2 bits, one absmax scale an output channel."""
    model, _ = models.load_encoder()
    scheme = Scheme(bits=2, scale_dtype=torch.float32)
    weights = [linear.weight for linear in layerwise.block_linears(model).values()]
    zeros = sum((affine.quantize(weight, scheme).q == 0).sum().item() for weight in weights)
    return 100 * zeros / sum(weight.numel() for weight in weights)


PREDICT_SLOPE = Prediction(
    id="predict_slope",
    answer=0,
    mistakes=[
        (1, "1 is the slope of the line that the steps follow. Stand on a step and take one small pace."),
        (2, "2 is the value at 2.3. The slope says how the value changes when x changes a little."),
        (math.inf, "it is steep at 2.5, where one step ends. 2.3 is in the middle of a step."),
        (-0.3, "-0.3 is the rounding error at 2.3. The slope says how the result changes with x."),
    ],
    hint="What is round(2.31) - round(2.3)?",
)

PREDICT_ZEROS = Prediction(
    id="predict_zeros",
    answer=_share_of_zeros,
    rtol=0.15,
    unit="percent",
    mistakes=[
        (25, "25 holds when all four levels are used equally. Most weights are far below the largest."),
        (0.8, "the question asks for percent, from 0 to 100."),
        (50, "half of them would mean that the typical weight lies right between two levels."),
        (33, "33 holds for weights spread evenly from -absmax to absmax: the step from -1/2 to 1/2 of 3."),
    ],
    hint="A level is 2/3 of the largest weight wide. What is closer to 0 than half of that becomes 0.",
)

EXERCISES = [PREDICT_SLOPE, STRAIGHT_THROUGH, FAKE_QUANT_LINEAR, PREDICT_ZEROS, LEARNED_SCALE]
