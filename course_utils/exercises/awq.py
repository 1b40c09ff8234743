"""Exercises of the lesson on AWQ."""

import torch
from torch import nn

from course_utils.checking import Case, Exercise, Mistake, Prediction
from course_utils.checking.cases import seeded
from course_utils.quantize import awq
from course_utils.quantize.affine import Scheme, bits_per_weight


def _generator():
    return torch.Generator().manual_seed(seeded(5))


# --- channel_importance -----------------------------------------------------------------------------------


def _importance_cases():
    generator = _generator()
    plain = torch.randn(7, 4, generator=generator)
    batch = torch.randn(2, 5, 6, generator=generator) * torch.tensor([1.0, 10, 1, 1, 0.1, 0])
    return [
        Case(plain, label="tokens x channels"),
        Case(batch, label="texts x tokens x channels"),
        Case(torch.randn(6, 9, generator=generator).T, label="a transposed view"),
        Case(torch.randn(2, 3, 4, 5, generator=generator), label="four dimensions"),
        Case(torch.tensor([[-2.0, 2.0], [-2.0, -2.0]]), label="all of one size, signs differ"),
        Case((torch.rand(300, 3, generator=generator) + 1).bfloat16(), label="bfloat16 input"),
        Case(torch.randn(5, 2, 6, generator=generator).transpose(0, 1), label="texts and tokens exchanged"),
        Case(1e-6 * torch.randn(9, 3, generator=generator), label="tiny inputs"),
        Case((6e4 * torch.rand(50, 3, generator=generator)).half(), label="float16, a sum beyond its range"),
        Case(torch.randn(4, 5, generator=generator).double(), label="float64 input"),
        Case(torch.randn(1, 1, generator=generator), label="one token, one channel"),
    ]


def _flat(inputs):
    return inputs.float().reshape(-1, inputs.shape[-1])


CHANNEL_IMPORTANCE = Exercise(
    reference=awq.channel_importance,
    cases=_importance_cases,
    exact_dtype=True,
    mistakes=[
        Mistake(
            "the mean without the absolute value. Positive and negative inputs cancel, yet both carry the "
            "weight's error along.",
            lambda inputs: _flat(inputs).mean(dim=0),
        ),
        Mistake(
            "the absolute value taken after the mean: by then positive and negative inputs have cancelled.",
            lambda inputs: _flat(inputs).mean(dim=0).abs(),
        ),
        Mistake(
            "the largest value instead of the mean. One odd token would decide for all.",
            lambda inputs: _flat(inputs).abs().amax(dim=0),
        ),
        Mistake(
            "a root mean square. AWQ's importance is the mean of the absolute values.",
            lambda inputs: _flat(inputs).square().mean(dim=0).sqrt(),
        ),
        Mistake(
            "a sum instead of a mean: it grows with the length of the text.",
            lambda inputs: _flat(inputs).abs().sum(dim=0),
        ),
        Mistake(
            "the mean over the channels, one number a token. It is asked for each channel, over the tokens.",
            lambda inputs: inputs.float().abs().mean(dim=-1),
        ),
        Mistake(
            "averaged over the first dimension only. All dimensions but the last count tokens.",
            lambda inputs: inputs.float().abs().mean(dim=0),
        ),
        Mistake(
            "computed in the dtype of the input. bfloat16 keeps two to three digits: convert to float32 "
            "first.",
            lambda inputs: inputs.abs().reshape(-1, inputs.shape[-1]).mean(dim=0),
        ),
    ],
    hint="Which dimensions are tokens, and which one is the channel? And does the sign of an input matter?",
)


# --- awq_scale --------------------------------------------------------------------------------------------


def _scale_cases():
    importance = torch.rand(12, generator=_generator()) * 3 + 0.05
    dead = importance.clone()
    dead[4] = 0.0
    return [
        Case(importance, 0.5, label="ratio 0.5"),
        Case(importance, 0.0, label="ratio 0: round to nearest"),
        Case(importance, 0.95, label="ratio 0.95"),
        Case(importance * 1000, 0.3, label="large activations"),
        Case(dead, 0.5, label="a channel that is always 0"),
        Case(torch.tensor([4.0]), 0.5, label="a single channel"),
        Case(torch.tensor([1e-9, 3e-5, 0.3, 2.0, 40.0]), 0.9, label="channels that are all but 0"),
        Case(torch.tensor([2e-3, 0.7, 11.0]), 1.0, label="ratio 1"),
        Case(torch.zeros(3), 0.5, label="all channels always 0"),
        Case(importance.double()[::2], 0.4, label="float64, a strided view"),
    ]


def _power(importance, ratio, floor=1e-4):
    return importance.pow(ratio).clamp(min=floor)


AWQ_SCALE = Exercise(
    reference=awq.awq_scale,
    cases=_scale_cases,
    mistakes=[
        Mistake(
            "not centred. Without the division the scales of a layer drift away from 1 as a whole; the "
            "group's range drifts along and nothing is won.",
            lambda importance, ratio: _power(importance, ratio),
        ),
        Mistake(
            "divided by max * min without the square root. The largest scale should be 1 / the smallest.",
            lambda importance, ratio: _power(importance, ratio)
            / (_power(importance, ratio).max() * _power(importance, ratio).min()),
        ),
        Mistake(
            "divided by the mean. AWQ divides by the geometric middle of the largest and the smallest.",
            lambda importance, ratio: _power(importance, ratio) / _power(importance, ratio).mean(),
        ),
        Mistake(
            "divided by the maximum. Then no scale is above 1, and no channel's error gets smaller.",
            lambda importance, ratio: _power(importance, ratio) / _power(importance, ratio).max(),
        ),
        Mistake(
            "the ratio as a factor. It is the exponent: importance to the power of ratio.",
            lambda importance, ratio: awq.awq_scale(importance * ratio, 1.0),
        ),
        Mistake(
            "the exponent turned round (1 - ratio). Ratio 0 must leave all channels alone.",
            lambda importance, ratio: awq.awq_scale(importance, 1 - ratio),
        ),
        Mistake(
            "no lower bound. A channel that is always 0 gets scale 0, and its weights are lost in 0/0.",
            lambda importance, ratio: importance.pow(ratio)
            / (importance.pow(ratio).max() * importance.pow(ratio).min()).sqrt(),
        ),
        Mistake(
            "the importance bounded from below instead of the scale: take the power first.",
            lambda importance, ratio: awq.awq_scale(importance.clamp(min=1e-4), ratio),
        ),
    ],
    hint="Try importance [1, 4] with ratio 0.5 on paper. What is largest times smallest in the end?",
)


# --- fold_scale -------------------------------------------------------------------------------------------


def _fold_cases():
    generator = _generator()

    def filled(module):
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        return module

    def scale(n):
        return torch.rand(n, generator=generator) * 2 + 0.25

    norm = filled(nn.RMSNorm(6))
    readers = [filled(nn.Linear(6, 6, bias=False)), filled(nn.Linear(6, 3, bias=False)),
               filled(nn.Linear(6, 3, bias=False))]
    return [
        Case(norm, readers, scale(6), label="a norm that feeds three layers, like q, k, v"),
        Case(filled(nn.Linear(8, 8, bias=False)), [filled(nn.Linear(8, 8, bias=False))], scale(8),
             label="a linear layer before a linear layer, like up and down"),
        Case(filled(nn.Linear(4, 5)), [filled(nn.Linear(5, 5))], scale(5), label="both with a bias"),
        Case(filled(nn.LayerNorm(7)), [filled(nn.Linear(7, 7)), filled(nn.Linear(7, 2))], scale(7),
             label="a LayerNorm with a bias"),
        Case(filled(nn.Linear(3, 1)), [filled(nn.Linear(1, 4)), filled(nn.Linear(1, 2))], scale(1),
             label="a single channel"),
        Case(filled(nn.Linear(5, 6)), [filled(nn.Linear(6, 2, bias=False))], scale(12)[::2] * 1e-2,
             label="small factors from a strided tensor"),
    ]


def _fold_and_look(fold, previous, layers, scale):
    """Run the learner's function and return every weight and bias it had to deal with."""
    fold(previous, layers, scale)
    modules = {"previous": previous} | {f"layers[{i}]": layer for i, layer in enumerate(layers)}
    return {f"{name}.{key}": value.detach() for name, module in modules.items()
            for key, value in module.named_parameters()}


@torch.no_grad()
def _fold(previous, layers, scale, *, divide=True, invert=False, rows=True, bias=True, all_layers=True,
          columns=True, layer_bias=False):
    """fold_scale with one thing done wrongly."""
    scale = 1 / scale if invert else scale
    if divide:
        by_row = rows and previous.weight.ndim == 2
        previous.weight.div_(scale.unsqueeze(1) if by_row else scale)
        if bias and getattr(previous, "bias", None) is not None:
            previous.bias.div_(scale)
    for layer in layers if all_layers else layers[:1]:
        layer.weight.mul_(scale if columns else scale[: len(layer.weight)].unsqueeze(1))
        if layer_bias and layer.bias is not None:
            layer.bias.mul_(scale[: len(layer.bias)])


FOLD_SCALE = Exercise(
    reference=awq.fold_scale,
    cases=_fold_cases,
    call=_fold_and_look,
    mistakes=[
        Mistake(
            "the other way round. The layers are the ones to be multiplied, what comes before is divided.",
            lambda p, ls, s: _fold(p, ls, s, invert=True),
        ),
        Mistake(
            "the layer before was left as it was. Then the outputs are no longer equal.",
            lambda p, ls, s: _fold(p, ls, s, divide=False),
        ),
        Mistake(
            "the bias of the layer before was forgotten. It is part of what that layer puts out.",
            lambda p, ls, s: _fold(p, ls, s, bias=False),
        ),
        Mistake(
            "columns instead of rows. The channels that a linear layer puts out are the rows of its weight.",
            lambda p, ls, s: _fold(p, ls, s, rows=False),
        ),
        Mistake(
            "only the first of the layers was multiplied. All that read the scaled channels must be.",
            lambda p, ls, s: _fold(p, ls, s, all_layers=False),
        ),
        Mistake(
            "rows instead of columns. The channels that a layer reads are the columns of its weight.",
            lambda p, ls, s: _fold(p, ls, s, columns=False),
        ),
        Mistake(
            "the bias of the layers behind was scaled too. It is added after the product and stays.",
            lambda p, ls, s: _fold(p, ls, s, layer_bias=True),
        ),
    ],
    hint="Write y = W2 (W1 x + b1) + b2 and put diag(scale) and its inverse between W2 and the bracket.",
)


# --- predictions ------------------------------------------------------------------------------------------

MIXED = Scheme(3, 64, symmetric=False)  # the lesson's setting for the 1 % experiment
WIDTH = 576


def mixed_bits():
    """Bits a weight when 1 % of the channels stay in 16 bits."""
    return 0.99 * bits_per_weight(MIXED, WIDTH) + 0.01 * 16


EXERCISES = [
    CHANNEL_IMPORTANCE,
    Prediction(
        id="predict_mixed_bits",
        answer=mixed_bits,
        rtol=0.005,
        unit="bits",
        mistakes=[
            (lambda: bits_per_weight(MIXED, WIDTH) + 0.01 * 16,
             "the kept channels counted twice, at 16 bits and at 3. Only 99 % are left for the 3."),
            (lambda: 0.99 * 3 + 0.01 * 16,
             "scale and zero point forgotten: every 64 weights share 16 + 3 bits more."),
            (lambda: 0.99 * (3 + 16 / 64) + 0.01 * 16,
             "the zero point forgotten: it takes 3 bits for every 64 weights."),
            (lambda: 0.99 * bits_per_weight(MIXED, WIDTH) + 0.01 * 32,
             "FP32 counted for the kept channels. They are kept in 16 bits."),
            (lambda: bits_per_weight(MIXED, WIDTH),
             "the kept channels left out: 1 % of 16 bits is not nothing."),
        ],
        hint="A weighted mean of two numbers: what a kept weight takes, and what a rounded one takes with "
             "its share of scale and zero point.",
    ),
    Prediction(
        id="predict_scaled_error",
        answer=0.5,
        rtol=0.05,
        unit="times the error before",
        mistakes=[
            (2.0, "the error of w * s is as large as that of w was; but it is divided by s afterwards, not "
                  "multiplied."),
            (1.0, "rounding w * s errs as much as rounding w did, that is right. Then the input comes "
                  "divided by s."),
            (0.25, "that is the squared error, a variance. It is asked for the error itself."),
        ],
        hint="The step of the grid stays, so rounding 2 w errs by as much as rounding w. What happens then?",
    ),
    AWQ_SCALE,
    FOLD_SCALE,
]
