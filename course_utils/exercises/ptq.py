"""Exercises of the lesson on post-training quantization."""

import torch

from course_utils.checking import Case, Exercise, Mistake, Prediction
from course_utils.checking.cases import randn
from course_utils.quantize import activations, affine
from course_utils.quantize.affine import Scheme

# --- absmax_scale -------------------------------------------------------------------------------------------


def _absmax_cases():
    with_zero_row = randn(4, 10, seed=2)
    with_zero_row[1] = 0
    return [
        Case(randn(3, 8), 4, label="a matrix, 4 bits"),
        Case(torch.tensor([[-3.0, 1.0, 2.0], [0.5, 0.25, -0.1]]), 8, label="the largest value is negative"),
        Case(randn(2, 3, 16, seed=1), 3, label="rows split into groups"),
        Case(with_zero_row, 2, label="a row of zeros"),
        Case(randn(5, 6, seed=3), 8, full_range=False, label="mirrored grid, 8 bits"),
        Case(randn(5, 6, seed=4), 3, False, label="mirrored grid, 3 bits"),
        Case(randn(9, 4, seed=5).t(), 4, label="a transposed matrix"),
        Case(randn(3, 7, seed=6) * 1e-30, 5, label="values of 1e-30: tiny, but not 0"),
        Case(randn(5, 1, seed=7), 2, full_range=False, label="one value a row, a grid of -1, 0, 1"),
        Case(randn(11, seed=8).double(), bits=6, label="a single row, float64"),
    ]


def _scale(values, bits, full_range, *, absolute=True, keepdim=True, edge=None, guard=True, whole=False):
    """The scale with one thing done wrongly."""
    values = values.abs() if absolute else values
    largest = values.amax() if whole else values.amax(dim=-1, keepdim=keepdim)
    scale = largest / (edge or 2 ** (bits - 1) - (0.5 if full_range else 1.0))
    return torch.where(scale > 0, scale, torch.ones_like(scale)) if guard else scale


ABSMAX = Exercise(
    reference=affine.absmax_scale,
    exact_dtype=True,
    cases=_absmax_cases,
    mistakes=[
        Mistake(
            "you took the largest value, not the largest absolute value. What if it is negative?",
            lambda v, bits, full_range=True: _scale(v, bits, full_range, absolute=False),
        ),
        Mistake(
            "the last dimension is gone from the result. Keep it with size 1, so that the scale can be "
            "divided by without reshaping.",
            lambda v, bits, full_range=True: _scale(v, bits, full_range, keepdim=False),
        ),
        Mistake(
            "a row of zeros gives a scale of 0, and the next step divides by it.",
            lambda v, bits, full_range=True: _scale(v, bits, full_range, guard=False),
        ),
        Mistake(
            "the edge of the grid is not 2^(bits-1): look at the two edges that the docstring names.",
            lambda v, bits, full_range=True: _scale(v, bits, full_range, edge=2 ** (bits - 1)),
        ),
        Mistake(
            "you always take the mirrored grid, 2^(bits-1) - 1. What does full_range change?",
            lambda v, bits, full_range=True: _scale(v, bits, False),
        ),
        Mistake(
            "you always take the full grid, 2^(bits-1) - 1/2. What does full_range change?",
            lambda v, bits, full_range=True: _scale(v, bits, True),
        ),
        Mistake(
            "one scale for the whole tensor. Each row (the last dimension) needs its own.",
            lambda v, bits, full_range=True: _scale(v, bits, full_range, whole=True),
        ),
    ],
    atol=0.0,
    hint="which value of a row lies furthest from 0, and on which point of the grid must it fall?",
)


# --- zero_point_params --------------------------------------------------------------------------------------


def _zero_point_cases():
    with_zero_row = randn(3, 12, seed=12)
    with_zero_row[0] = 0
    return [
        Case(randn(3, 8, seed=10), 4, label="a matrix, 4 bits"),
        Case(randn(3, 8, seed=11).abs() + 1, 4, label="all values positive"),
        Case(-randn(3, 8, seed=11).abs() - 1, 3, label="all values negative"),
        Case(with_zero_row, 2, label="a row of zeros"),
        Case(randn(2, 4, 16, seed=13) + 0.5, 8, label="rows split into groups"),
        Case((randn(9, 4, seed=14) - 0.7).t(), 4, label="a transposed matrix"),
        Case(randn(3, 5, seed=15) + torch.tensor([[4.0], [-4.0], [0.0]]), 5,
             label="a positive, a negative and a mixed row in one matrix"),
        Case(randn(3, 7, seed=16) * 1e-30, 6, label="values of 1e-30: tiny, but not 0"),
        Case(torch.tensor([[2.5], [-0.5]]), 3, label="one value a row"),
        Case(randn(11, seed=17).double(), bits=7, label="a single row, float64"),
    ]


def _zero_point(
    values, bits, *, stretch=True, levels=None, rounded=True, sign=-1, guard=True, symmetric=False
):
    """Scale and zero point with one thing done wrongly."""
    low, high = values.amin(dim=-1, keepdim=True), values.amax(dim=-1, keepdim=True)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    if stretch:
        low, high = low.clamp(max=0), high.clamp(min=0)
    levels = levels or 2**bits - 1
    scale = (high - low) / levels
    scale = torch.where(scale > 0, scale, torch.ones_like(scale)) if guard else scale
    zero = sign * low / scale
    zero = zero.round() if rounded else zero
    return scale, zero.clamp(0, levels) if stretch else zero


ZERO_POINT = Exercise(
    reference=affine.zero_point_params,
    exact_dtype=True,
    cases=_zero_point_cases,
    mistakes=[
        Mistake(
            "the range from min to max need not contain 0. Stretch it, or 0.0 gets no integer of its own.",
            lambda v, bits: _zero_point(v, bits, stretch=False),
        ),
        Mistake(
            "the zero point is not rounded: it must be one of the integers.",
            lambda v, bits: _zero_point(v, bits, rounded=False),
        ),
        Mistake(
            "2^bits integers have 2^bits - 1 steps between them.",
            lambda v, bits: _zero_point(v, bits, levels=2**bits),
        ),
        Mistake(
            "the sign of the zero point: the smallest value must land on integer 0, so zero = -min / scale.",
            lambda v, bits: _zero_point(v, bits, sign=1),
        ),
        Mistake(
            "a row of zeros gives a scale of 0, and the next step divides by it.",
            lambda v, bits: _zero_point(v, bits, guard=False),
        ),
        Mistake(
            "this range is as wide below 0 as above: that is absmax again. Use min and max themselves.",
            lambda v, bits: _zero_point(v, bits, symmetric=True),
        ),
    ],
    atol=0.0,
    hint="where do the smallest and the largest value land? Try the row [-1, 0, 2] with 2 bits on paper.",
)


# --- fake_quantize_groups (written in the lesson) -----------------------------------------------------------


def _reference_groups(weight, bits, group):
    scheme = Scheme(bits, group, scale_dtype=torch.float32)
    return affine.fake_quantize(weight, scheme)


def _positive_edges(weight, group):
    """In each group the value with the largest magnitude is made positive.

    A negative one would lie exactly between two integers, where the last bit of a division decides: right
    answers written another way would part there.
    """
    groups = weight.reshape(weight.shape[0], -1, group)
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    return (groups * largest.sign()).reshape(weight.shape)


def _group_cases():
    with_zeros = _positive_edges(randn(4, 24, seed=22), 8)
    with_zeros[1, :8] = 0
    return [
        Case(_positive_edges(randn(3, 32, seed=20), 16), 4, 16, label="4 bits, group 16"),
        Case(_positive_edges(randn(6, 6, seed=21), 3), 3, 3, label="a square matrix, group 3"),
        Case(with_zeros, 3, 8, label="a group of zeros"),
        Case(_positive_edges(randn(5, 12, seed=23), 12), 8, 12, label="one group a row"),
        Case(_positive_edges(randn(4, 20, seed=24), 4).t().contiguous().t(), 2, 4, label="other strides"),
        Case(_positive_edges(randn(3, 35, seed=26), 7) * 1e-6, 5, 7, label="values of 1e-6, odd sizes"),
        Case(randn(2, 3, seed=27).abs(), 4, 1, label="each value is a group"),
        Case(_positive_edges(randn(3, 6, seed=48), 2), 8, 2, label="8 bits, group 2"),
        Case(torch.tensor([[-7.5, 3.2, 1.1, 6.6], [0.4, -15.0, 9.1, 14.6]]), 4, 4,
             label="the largest magnitude is negative: it becomes the lowest integer, -8"),
        Case(randn(2, 30, seed=25), 4, 16, raises=ValueError, label="a group that does not fit"),
        Case(randn(4, 6, seed=28), 4, 8, raises=ValueError,
             label="a group that divides the number of weights, not the width"),
        Case(randn(4, 6, seed=29), 4, 12, raises=ValueError, label="a group of two rows"),
    ]


def _groups(weight, bits, group, *, clamp=True, multiply=True, edge=None):
    """Group quantization with one thing done wrongly."""
    values = weight.reshape(weight.shape[0], -1, group)
    absmax = values.abs().amax(dim=-1, keepdim=True)
    scale = absmax / (edge or 2 ** (bits - 1) - 0.5)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    q = torch.round(values / scale)
    if clamp:
        q = q.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (q * scale if multiply else q).reshape(weight.shape)


GROUPS = Exercise(
    id="fake_quantize_groups",
    reference=_reference_groups,
    exact_dtype=True,
    cases=_group_cases,
    mistakes=[
        Mistake(
            "one scale for a whole row. Give each `group` neighbours of a row a scale of their own.",
            lambda weight, bits, group: _groups(weight, bits, weight.shape[1]),
        ),
        Mistake(
            "the scale is taken down a column. Weights are [out, in]: groups are neighbours within a row.",
            lambda weight, bits, group: _groups(weight.t(), bits, weight.shape[0]).t(),
        ),
        Mistake(
            "an integer falls off the grid: the largest value of a group rounds to 2^(bits-1). Clamp.",
            lambda weight, bits, group: _groups(weight, bits, group, clamp=False),
        ),
        Mistake(
            "these are the integers. Multiply by the scale to get back to real numbers.",
            lambda weight, bits, group: _groups(weight, bits, group, multiply=False),
        ),
        Mistake(
            "this is the mirrored grid; the exercise asks for the full one, with edge 2^(bits-1) - 1/2.",
            lambda weight, bits, group: _groups(weight, bits, group, edge=2 ** (bits - 1) - 1),
        ),
    ],
    atol=1e-12,
    hint="absmax_scale gives each row a scale. How can a group be a row of its own for a while?",
)


# --- split_outliers -----------------------------------------------------------------------------------------


def _outlier_cases():
    x = randn(6, 8, seed=30)
    x[2, 3], x[4, 5] = 9.0, -7.5
    batch = randn(2, 4, 10, seed=31)
    batch[1, 2, 7] = -20.0
    at_threshold = randn(5, 6, seed=32).clamp(-3, 3)
    at_threshold[0, 1] = 6.0
    return [
        Case(x, randn(5, 8, seed=33), label="one large and one large negative channel"),
        Case(batch, randn(3, 10, seed=34), label="a batch of texts: x is [batch, tokens, in]"),
        Case(at_threshold, randn(6, 6, seed=35), label="a value of exactly 6.0"),
        Case(randn(4, 7, seed=36).clamp(-3, 3), randn(2, 7, seed=37), label="no outlier"),
        Case(x, randn(8, 8, seed=38), 1.5, label="threshold 1.5"),
        Case(x.t().contiguous().t(), randn(9, 8, seed=39), threshold=8.0, label="other strides"),
        Case(batch.transpose(0, 1), randn(3, 10, seed=44), label="a batch with other strides"),
        Case(randn(3, 5, seed=45), randn(4, 5, seed=46), 0.0, label="threshold 0: all are outliers"),
        Case(torch.tensor([[-6.0, 5.9961, 0.5], [1.0, -2.0, 3.0]]).half(), randn(3, 3, seed=47).half(),
             exact_dtype=True, label="float16, a value of exactly -6.0 and one just below 6"),
    ]


def _split(x, weight, threshold=6.0, *, hits=None, reduce="any"):
    """The split with one thing done wrongly."""
    hits = hits(x, threshold) if hits else x.abs() >= threshold
    hits = hits.reshape(-1, x.shape[-1])
    outlier = hits.all(dim=0) if reduce == "all" else hits.any(dim=0)
    return x[..., ~outlier], weight[:, ~outlier], x[..., outlier], weight[:, outlier]


def _weight_rows(x, weight, threshold=6.0):
    outlier = (x.abs() >= threshold).reshape(-1, x.shape[-1]).any(dim=0)
    return x[..., ~outlier], weight[~outlier], x[..., outlier], weight[outlier]


def _zeroed(x, weight, threshold=6.0):
    outlier = (x.abs() >= threshold).reshape(-1, x.shape[-1]).any(dim=0)
    return x * ~outlier, weight * ~outlier, x * outlier, weight * outlier


def _swapped(x, weight, threshold=6.0):
    first, second, third, fourth = activations.split_outliers(x, weight, threshold)
    return third, fourth, first, second


SPLIT = Exercise(
    reference=activations.split_outliers,
    cases=_outlier_cases,
    mistakes=[
        Mistake(
            "large negative values are outliers too: compare |x|.",
            lambda x, w, threshold=6.0: _split(x, w, threshold, hits=lambda x, t: x >= t),
        ),
        Mistake(
            "a value of exactly the threshold counts as an outlier: >= instead of >.",
            lambda x, w, threshold=6.0: _split(x, w, threshold, hits=lambda x, t: x.abs() > t),
        ),
        Mistake(
            "you ask that all tokens are large in a channel. One token is enough to spoil the scale.",
            lambda x, w, threshold=6.0: _split(x, w, threshold, reduce="all"),
        ),
        Mistake(
            "the weight is split along its rows. Input channels are the columns of a weight [out, in].",
            _weight_rows,
        ),
        Mistake(
            "the channels are set to zero, not taken out: the result must have fewer columns.",
            _zeroed,
        ),
        Mistake("the order: first what stays in 8 bits, then the outliers.", _swapped),
        Mistake(
            "the threshold is always 6: use the argument.",
            lambda x, w, threshold=6.0: _split(x, w, 6.0),
        ),
    ],
    hint="look at one input channel over all tokens: what decides to which part it goes? The weight follows.",
)


# --- smoothing_scale ----------------------------------------------------------------------------------------


def _smoothing_cases():
    x, w = randn(8, seed=40).abs() * 20 + 0.1, randn(8, seed=41).abs() * 0.2 + 0.01
    dead = x.clone()
    dead[3] = 0
    no_weight = w.clone()
    no_weight[5] = 0
    return [
        Case(x, w, label="alpha 0.5"),
        Case(x, w, 0.8, label="alpha 0.8"),
        Case(x, w, alpha=0.0, label="alpha 0"),
        Case(x, w, alpha=1.0, label="alpha 1"),
        Case(dead, w, 0.9, label="a channel that is always 0"),
        Case(x, no_weight, 0.4, label="a channel without weights"),
        Case(torch.tensor([1e-30, 1e-6, 2e-5, 3e4, 1e-5]), torch.tensor([0.3, 0.2, 0.1, 1e-7, 3e-5]),
             label="values below, at and just above 1e-5"),
        Case(torch.tensor([1e-5, 1.0, 1e-3]), torch.tensor([1e6, 2.0, 1e8]), 0.5,
             label="large weights: a factor below 1e-5"),
        Case(torch.tensor([1e-5, 1e-5]), torch.tensor([1e5, 3e4]), 0.5,
             label="factors just at and just above 1e-5"),
        Case(x[:1], w[:1], alpha=0.3, label="a single channel"),
    ]


def _smoothing(x, w, alpha=0.5, *, low=1e-5):
    x, w = x.clamp(min=low), w.clamp(min=low)
    return (x**alpha / w ** (1 - alpha)).clamp(min=low)


SMOOTHING = Exercise(
    reference=activations.smoothing_scale,
    exact_dtype=True,
    cases=_smoothing_cases,
    mistakes=[
        Mistake(
            "alpha and 1 - alpha are the wrong way round: alpha belongs to the activations.",
            lambda x, w, alpha=0.5: _smoothing(x, w, 1 - alpha),
        ),
        Mistake(
            "a product instead of a quotient: large weights must make the factor smaller.",
            lambda x, w, alpha=0.5: (
                x.clamp(min=1e-5) ** alpha * w.clamp(min=1e-5) ** (1 - alpha)
            ).clamp(min=1e-5),
        ),
        Mistake(
            "a channel of zeros gives a factor of 0 or infinity. Take both inputs as at least 1e-5.",
            lambda x, w, alpha=0.5: x**alpha / w ** (1 - alpha),
        ),
        Mistake(
            "this is the inverse: activations are divided by s, so s is large where they are.",
            lambda x, w, alpha=0.5: w.clamp(min=1e-5) ** (1 - alpha) / x.clamp(min=1e-5) ** alpha,
        ),
        Mistake("alpha is always 0.5: use the argument.", lambda x, w, alpha=0.5: _smoothing(x, w)),
    ],
    atol=0.0,
    hint="equation 4 of the paper stands above the exercise; mind channels that are 0.",
)


# --- predictions --------------------------------------------------------------------------------------------

PARAMETERS, IN_LINEARS, LINEAR_ROWS = 134_515_008, 106_168_320, 155_520  # SmolLM2-135M


def int8_saving():
    """Percent saved when the linear layers go from FP32 to INT8 with an FP16 scale a row, the rest stays."""
    after = IN_LINEARS + 2 * LINEAR_ROWS + 4 * (PARAMETERS - IN_LINEARS)
    return 100 * (1 - after / (4 * PARAMETERS))


EXERCISES = [
    ABSMAX,
    ZERO_POINT,
    GROUPS,
    SPLIT,
    SMOOTHING,
    Prediction(
        id="predict_saving",
        answer=int8_saving,
        rtol=0.03,
        unit="percent",
        mistakes=[
            (75, "that is what the linear layers save. The embedding, 21 % of the model, stays in FP32."),
            (50, "that is 8 bits against 16. Here the model was in FP32."),
            (79, "that is the share of the linear layers. They do not vanish: a quarter of them stays."),
            (100 - int8_saving(), "that is what remains. The question is what is saved."),
        ],
        hint="which parameters are rounded, and which are not? What does each take before and after?",
    ),
    Prediction(
        id="predict_step",
        answer=2400 / 127,
        rtol=0.03,
        mistakes=[
            (2400 / 255, "255 steps would cover 0 to 2400. Values have two signs: 127 steps on each side."),
            (2400 / 256, "256 integers, but half of them are for negative values: 127 steps on each side."),
            (4800 / 127, "127 steps on each side, not in all."),
            (127 / 2400, "upside down: the step is real numbers for one integer."),
        ],
        hint="integer 127 stands for 2400.",
    ),
]
