"""Quantization-aware training: train the model with its rounding errors in place.

Fake quantization rounds a number to the grid and leaves it a float, so that the forward pass sees the error
that integers will make. Its slope is zero almost everywhere: the straight-through estimator (Bengio et al.,
arXiv 1308.3432) pretends in the backward pass that nothing was rounded. The scale comes from the values at
hand, or is learned by the same gradient (LSQ: Esser et al., arXiv 1902.08153).

    prepare(model, spec("W4A8"))   every linear layer of the model's blocks becomes a FakeQuantLinear
    ...                            train as usual
    convert(model)                 every FakeQuantLinear stores its weight as packed integers

Embeddings, norms, the products inside attention and the classifier's head stay in floating point.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.quantize import affine, layerwise
from course_utils.quantize.affine import Quantized, Scheme
from course_utils.quantize.packed import QuantLinear

# ---- rounding that a gradient passes through -------------------------------------------------------------


def straight_through(steps: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Round to the nearest integer from low to high; the gradient passes as if nothing was rounded.

    steps: float [...], a value counted in steps of the grid (x / scale). low, high: smallest and largest
    integer, numbers or tensors that broadcast. Returns float [...] of whole numbers.
    Gradient: 1 where the rounded value lies from low to high, 0 where it was clipped.
    Source: Bengio et al., arXiv 1308.3432; clipped as in Jacob et al., arXiv 1712.05877.
    """
    nearest = steps + (torch.round(steps) - steps).detach()
    return torch.clamp(nearest, low, high)


def fake_quantize(x: Tensor, scale: Tensor, zero: Tensor, scheme: Scheme) -> Tensor:
    """x rounded to the grid scale * (q - zero), q from scheme.qmin to scheme.qmax: a float that can train.

    x: float [...]; scale (positive) and zero (whole numbers) broadcast against it.
    Forward: affine.to_integers, then affine.from_integers. Gradient for x: as in straight_through.
    A scale that requires a gradient gets one too: for each value, q - zero - x / scale where it was rounded
    and the edge of the grid where it was clipped. That is equation 3 of LSQ; it follows from the product rule
    alone. What counts as clipped is decided after rounding, as in torch's kernels; in the paper before it.
    """
    return scale * straight_through(x / scale, scheme.qmin - zero, scheme.qmax - zero)


def fake_quant_linear(x: Tensor, weight: Tensor, bias: Tensor | None, weight_scheme: Scheme,
                      activation_scheme: Scheme) -> Tensor:
    """A linear layer that computes with the rounding errors of a quantized one.

    x: float [..., in], rounded with one scale (and zero point) a token. weight: float [out, in], rounded with
    one scale an output channel. bias: float [out] or None, not rounded. Returns [..., out].
    Scales and zero points are taken from the values as they are now (affine.parameters), and are constants to
    the gradient. x and weight get straight-through gradients.
    """
    x_scale, x_zero = affine.parameters(x.detach(), activation_scheme)
    w_scale, w_zero = affine.parameters(weight.detach(), weight_scheme)
    x = fake_quantize(x, x_scale, x_zero, activation_scheme)
    weight = fake_quantize(weight, w_scale, w_zero, weight_scheme)
    return F.linear(x, weight, bias)


# ---- a scale that learns (LSQ) ---------------------------------------------------------------------------


def learned_scale(x: Tensor, scale: Tensor, scheme: Scheme) -> Tensor:
    """Fake quantization with a scale that is trained like a weight (LSQ), symmetric.

    x: float [..., n], n values share one scale. scale: float [..., 1], positive, requires a gradient.
    Forward: fake_quantize(x, scale, 0, scheme). Gradient for x: as there. Gradient for scale: as there, times
    1 / sqrt(n * scheme.qmax), so that a step changes scales about as much, relatively, as it changes weights.
    Source: Esser et al., arXiv 1902.08153, sections 2.1 and 2.2.
    """
    slower = 1 / math.sqrt(x.shape[-1] * scheme.qmax)
    # The value of scale, with a gradient that is multiplied by `slower`.
    scale = scale.detach() + slower * (scale - scale.detach())
    return fake_quantize(x, scale, torch.zeros_like(scale), scheme)


def first_scale(x: Tensor, scheme: Scheme) -> Tensor:
    """Where LSQ lets a scale begin: 2 * mean|x| / sqrt(qmax).

    x: float [..., n]. Returns float [..., 1], positive. Source: Esser et al., arXiv 1902.08153, section 2.1.
    """
    scale = 2 * x.abs().mean(dim=-1, keepdim=True) / math.sqrt(scheme.qmax)
    return torch.where(scale > 0, scale, torch.ones_like(scale))


# ---- layers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    """What a linear layer is trained for.

    weight: scheme of the weight, one scale an output channel. activation: scheme of the input.
    per: "token" (scale of each token from its own values) or "tensor" (one range for all tokens, followed in
    training and fixed afterwards). learned: the weight's scales are parameters (LSQ).
    """

    weight: Scheme
    activation: Scheme
    per: str = "token"
    learned: bool = False

    def __post_init__(self) -> None:
        if self.per not in ("token", "tensor"):
            raise ValueError(f'per must be "token" or "tensor", got {self.per!r}')
        if self.weight.group is not None or self.activation.group is not None:
            raise ValueError("these layers have one scale an output channel: use schemes with group=None")
        if self.learned and not self.weight.symmetric:
            raise ValueError("a learned scale has no zero point: use a symmetric scheme for the weight")

    def __str__(self) -> str:
        return f"W{self.weight.bits}A{self.activation.bits}"


def spec(name: str, per: str = "token", learned: bool = False) -> Spec:
    """The Spec for a name like "W4A8": 4-bit weights, symmetric, and 8-bit activations with a zero point."""
    match = re.fullmatch(r"W([2-8])A([2-8])", str(name))
    if not match:
        raise ValueError(f'a setting is written like "W4A8", each number from 2 to 8; got {name!r}')
    weight_bits, activation_bits = map(int, match.groups())
    # Scales in float32: what convert() stores is then exactly what was trained.
    return Spec(Scheme(weight_bits, scale_dtype=torch.float32),
                Scheme(activation_bits, symmetric=False, scale_dtype=torch.float32), per, learned)


class FakeQuantLinear(nn.Linear):
    """A linear layer trained as it will be quantized. It shares weight and bias with the layer it replaces.

    Parameter `scale` float [out, 1]: only with spec.learned. Buffer `range` float [2]: only with
    per="tensor", the smallest and largest input, a moving average (Jacob et al., arXiv 1712.05877, 3.1).
    """

    MOMENTUM = 0.9  # of the old range in each training step
    SMALLEST = 0.1  # a learned scale is at least this part of the scale that absmax gives

    def __init__(self, linear: nn.Linear, spec: Spec) -> None:
        affine.check_weight(linear.weight)
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.spec = linear.in_features, linear.out_features, spec
        self.weight, self.bias = linear.weight, linear.bias
        self.train(linear.training)
        if spec.learned:
            self.scale = nn.Parameter(first_scale(linear.weight.detach(), spec.weight))
        if spec.per == "tensor":
            self.register_buffer("range", torch.full((2,), torch.nan, device=linear.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        if self.spec.per == "token" and not self.spec.learned:
            return fake_quant_linear(x, self.weight, self.bias, self.spec.weight, self.spec.activation)
        return F.linear(self.rounded_input(x), self.rounded_weight(), self.bias)

    def rounded_weight(self) -> Tensor:
        """The weight [out, in] as its integers will give it back."""
        if self.spec.learned:
            return learned_scale(self.weight, self._positive_scale(), self.spec.weight)
        return fake_quantize(self.weight, *affine.parameters(self.weight.detach(), self.spec.weight),
                             self.spec.weight)

    def _positive_scale(self) -> nn.Parameter:
        """The learned scale [out, 1], raised first where it fell below its floor.

        Adam changes every parameter by about lr a step, however small the parameter is. At 8 bits a scale is
        about 0.001, and a step or two could carry it past 0. torch's own learnable fake quantization raises
        the values in place as well (torch/ao/quantization/_learnable_fake_quantize.py): they can grow again.
        """
        absmax, _ = affine.parameters(self.weight.detach(), self.spec.weight)
        with torch.no_grad():
            self.scale.copy_(torch.maximum(self.scale, self.SMALLEST * absmax))
        return self.scale

    def rounded_input(self, x: Tensor) -> Tensor:
        """x [..., in] as its integers give it back."""
        values = x.detach() if self.spec.per == "token" else self._followed_range(x.detach())
        return fake_quantize(x, *affine.parameters(values, self.spec.activation), self.spec.activation)

    def _followed_range(self, x: Tensor) -> Tensor:
        if self.training:
            now = torch.stack(torch.aminmax(x))
            keep = self.MOMENTUM if self.range.isfinite().all() else 0.0
            self.range.copy_(now if keep == 0 else keep * self.range + (1 - keep) * now)
        if not self.range.isfinite().all():
            raise RuntimeError("no range of inputs is known yet: train a step, or call qat.calibrate")
        return self.range.to(x.dtype)

    def quantized_weight(self) -> Quantized:
        """The weight as integers with their scales, exactly those that forward computes with."""
        scheme = self.spec.weight
        weight = self.weight.detach()
        scale, zero = affine.parameters(weight, scheme)
        if self.spec.learned:
            scale = self._positive_scale().detach()
            if not scale.isfinite().all():
                raise ValueError(f"{int((~scale.isfinite()).sum())} learned scale(s) are not finite: "
                                 "train again with a lower lr")
        q = affine.to_integers(weight, scale, zero, scheme)
        q = q.to(torch.int8 if scheme.symmetric else torch.uint8)
        return Quantized(q, scale, zero, scheme, weight.dtype)

    def extra_repr(self) -> str:
        learned = ", learned scale" if self.spec.learned else ""
        return f"{super().extra_repr()}, {self.spec}, one activation scale a {self.spec.per}{learned}"


class ConvertedLinear(nn.Module):
    """A trained layer in its final form: the weight in packed integers, the input rounded as in training."""

    def __init__(self, layer: FakeQuantLinear) -> None:
        super().__init__()
        self.spec = layer.spec
        self.linear = QuantLinear.from_quantized(layer.quantized_weight(), layer.bias)
        self.register_buffer("range", layer.range.clone() if layer.spec.per == "tensor" else None)

    def forward(self, x: Tensor) -> Tensor:
        scheme = self.spec.activation
        scale, zero = affine.parameters(x if self.range is None else self.range.to(x.dtype), scheme)
        return self.linear(affine.from_integers(affine.to_integers(x, scale, zero, scheme), scale, zero))


# ---- whole models ----------------------------------------------------------------------------------------


def prepare(model: nn.Module, spec: Spec) -> nn.Module:
    """Put a FakeQuantLinear in place of each linear layer of the model's blocks; returns the same model.

    Without training, the model now computes what round-to-nearest post-training quantization gives.
    Raises ValueError when the model is prepared already, or a weight cannot be quantized.
    """
    linears = layerwise.block_linears(model)
    if any(isinstance(linear, FakeQuantLinear) for linear in linears.values()):
        raise ValueError("this model is prepared already: load it again, or prepare a copy made before")
    layers = {name: FakeQuantLinear(linear, spec) for name, linear in linears.items()}
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return model


def calibrate(model: nn.Module, batches: Iterable[dict]) -> nn.Module:
    """Let the layers with per="tensor" see their inputs, without training: model(**batch) for each batch."""
    layers = fake_quant_layers(model)
    mode = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for layer in layers.values():
            layer.training = True
        with torch.no_grad():
            for batch in batches:
                model(**batch)
    finally:
        for module, training in mode.items():
            module.training = training
    return model


def convert(model: nn.Module) -> nn.Module:
    """Put packed integers in place of each FakeQuantLinear; returns the same model.

    The converted model gives the same results within float rounding, and can no longer be trained.
    """
    converted = {name: ConvertedLinear(layer) for name, layer in fake_quant_layers(model).items()}
    for name, layer in converted.items():
        model.set_submodule(name, layer)
    return model


def fake_quant_layers(model: nn.Module) -> dict[str, FakeQuantLinear]:
    """The FakeQuantLinear layers by full name. Raises ValueError when there are none."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantLinear)}
    if not layers:
        raise ValueError("the model has no fake-quantized layers: call qat.prepare(model, spec) first")
    return layers
