"""A linear layer that is trained with the rounding errors of a quantized one, and its final form."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_utils.quantize import affine
from course_utils.quantize.affine import Quantized, Scheme
from course_utils.quantize.packed import QuantLinear
from course_utils.quantize.qat.rounding import fake_quant_linear, fake_quantize, first_scale, learned_scale


@dataclass(frozen=True)
class Spec:
    """What a linear layer is trained for.

    Attributes:
        weight: scheme of the weight, one scale an output channel.
        activation: scheme of the input.
        per: "token" (scale of each token from its own values) or "tensor" (one range for all tokens, followed
            in training and fixed afterwards).
        learned: the weight's scales are parameters (LSQ).

    Raises:
        ValueError: for another `per`, schemes with groups, or a learned scale of an asymmetric scheme.
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
    """The Spec for a name like "W4A8": 4-bit weights, symmetric, and 8-bit activations with a zero point.

    Args:
        name: "W", bits of the weights, "A", bits of the activations, each from 2 to 8.
        per: as in `Spec`.
        learned: as in `Spec`.

    Returns:
        The Spec, with scales stored in float32.

    Raises:
        ValueError: for a name written otherwise, and as `Spec`.
    """
    match = re.fullmatch(r"W([2-8])A([2-8])", str(name))
    if not match:
        raise ValueError(f'a setting is written like "W4A8", each number from 2 to 8; got {name!r}')
    weight_bits, activation_bits = map(int, match.groups())
    # Scales in float32: what convert() stores is then exactly what was trained.
    return Spec(Scheme(weight_bits, scale_dtype=torch.float32),
                Scheme(activation_bits, symmetric=False, scale_dtype=torch.float32), per, learned)


class FakeQuantLinear(nn.Linear):
    """A linear layer trained as it will be quantized. It shares weight and bias with the layer it replaces.

    Attributes:
        scale: parameter, float [out, 1]: only with spec.learned.
        range: buffer, float [2]: only with per="tensor", the smallest and largest input, a moving average
            (Jacob et al., arXiv 1712.05877, 3.1).
        spec: what the layer is trained for.

    Raises:
        TypeError: as `affine.check_weight`.
        ValueError: as `affine.check_weight`.
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
        """The layer's output with both rounding errors in it.

        Args:
            x: float [..., in].

        Returns:
            float [..., out].
        """
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
        """The input as its integers give it back.

        Args:
            x: float [..., in].

        Returns:
            float [..., in].

        Raises:
            RuntimeError: with per="tensor", when no range of inputs is known yet.
        """
        values = x.detach() if self.spec.per == "token" else self._followed_range(x.detach())
        return fake_quantize(x, *affine.parameters(values, self.spec.activation), self.spec.activation)

    def _followed_range(self, x: Tensor) -> Tensor:
        """The smallest and largest input [2]; in training those of x are taken in first."""
        if self.training:
            now = torch.stack(torch.aminmax(x))
            keep = self.MOMENTUM if self.range.isfinite().all() else 0.0
            self.range.copy_(now if keep == 0 else keep * self.range + (1 - keep) * now)
        if not self.range.isfinite().all():
            raise RuntimeError("no range of inputs is known yet: train a step, or call qat.calibrate")
        return self.range.to(x.dtype)

    def quantized_weight(self) -> Quantized:
        """The weight as integers with their scales, exactly those that forward computes with.

        Returns:
            The weight [out, in].

        Raises:
            ValueError: when a learned scale is not finite.
        """
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
        """What `print` shows in the brackets of this layer."""
        learned = ", learned scale" if self.spec.learned else ""
        return f"{super().extra_repr()}, {self.spec}, one activation scale a {self.spec.per}{learned}"


class ConvertedLinear(nn.Module):
    """A trained layer in its final form: the weight in packed integers, the input rounded as in training.

    Attributes:
        spec: what the layer was trained for.
        linear: the layer with the packed weight.
        range: buffer, float [2]: the smallest and largest input with per="tensor", else None.
    """

    def __init__(self, layer: FakeQuantLinear) -> None:
        super().__init__()
        self.spec = layer.spec
        self.linear = QuantLinear.from_quantized(layer.quantized_weight(), layer.bias)
        self.register_buffer("range", layer.range.clone() if layer.spec.per == "tensor" else None)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, its input rounded.

        Args:
            x: float [..., in].

        Returns:
            float [..., out].
        """
        scheme = self.spec.activation
        scale, zero = affine.parameters(x if self.range is None else self.range.to(x.dtype), scheme)
        return self.linear(affine.from_integers(affine.to_integers(x, scale, zero, scheme), scale, zero))
