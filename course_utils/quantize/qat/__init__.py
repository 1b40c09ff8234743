"""Quantization-aware training: train the model with its rounding errors in place.

Fake quantization rounds a number to the grid and leaves it a float, so that the forward pass sees the error
that integers will make. Its slope is zero almost everywhere: the straight-through estimator (Bengio et al.,
arXiv 1308.3432) pretends in the backward pass that nothing was rounded. The scale comes from the values at
hand, or is learned by the same gradient (LSQ: Esser et al., arXiv 1902.08153).

    prepare(model, spec("W4A8"))   every linear layer of the model's blocks becomes a FakeQuantLinear
    ...                            train as usual
    convert(model)                 every FakeQuantLinear stores its weight as packed integers

Embeddings, norms, the products inside attention and the classifier's head stay in floating point.

rounding     rounding that a gradient passes through, to given scales and to one that learns
layers       a linear layer that is trained so, and its final form
whole_model  prepare, calibrate, convert
"""

from course_utils.quantize.qat.layers import ConvertedLinear, FakeQuantLinear, Spec, spec
from course_utils.quantize.qat.rounding import (
    fake_quant_linear,
    fake_quantize,
    first_scale,
    learned_scale,
    straight_through,
)
from course_utils.quantize.qat.whole_model import calibrate, convert, fake_quant_layers, prepare

__all__ = [
    "ConvertedLinear", "FakeQuantLinear", "Spec", "calibrate", "convert", "fake_quant_layers",
    "fake_quant_linear", "fake_quantize", "first_scale", "learned_scale", "prepare", "spec",
    "straight_through",
]  # fmt: skip
