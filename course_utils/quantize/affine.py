"""Affine quantization: a real number x is stored as an integer q, with x ~ scale * (q - zero).

Symmetric ("absmax")     q in [-2^(b-1), 2^(b-1) - 1], zero = 0.
Asymmetric ("zero point") q in [0, 2^b - 1], zero is an integer of that range; 0.0 is always exact.

Two symmetric grids are in use, and `Scheme.full_range` picks one:

- True (default): scale = absmax / (2^(b-1) - 1/2). All 2^b integers are used. The largest positive value is
  clipped by at most half a step, so the error stays within scale / 2. This is the grid of the GPTQ reference
  code (Quantizer.find_params: scale = 2 absmax / (2^b - 1), zero 2^(b-1) in unsigned storage), so checkpoints
  in that format hold exactly our integers plus 2^(b-1).
- False ("restricted"): scale = absmax / (2^(b-1) - 1). The lowest integer stays unused, the grid is a mirror
  image of itself. LLM.int8() and most INT8 kernels use it: 127 instead of 127.5. At 8 bits the two hardly
  differ; at 3 bits the restricted grid loses one level of eight, at 2 bits one of four.

Weights are matrices [out, in], as in nn.Linear. A scale is shared by the whole matrix ("tensor"), by one row
(an output channel, group=None), or by `group` neighbours in a row.
Sources: Jacob et al., arXiv 1712.05877 (zero point); Frantar et al., arXiv 2210.17323 (groups).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scheme:
    """What a matrix is quantized to.

    bits: 2 to 8. group: "tensor", None (one scale a row) or the number of neighbours sharing a scale.
    symmetric: absmax without a zero point, or min/max with one. full_range: see the module's text.
    scale_dtype: what a scale is stored in. Scales are rounded to it at once, so that what is computed here is
    what a file will hold.
    """

    bits: int = 4
    group: int | str | None = None
    symmetric: bool = True
    full_range: bool = True
    scale_dtype: torch.dtype = torch.float16

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be an integer from 2 to 8, got {self.bits!r}")
        whole = isinstance(self.group, int) and not isinstance(self.group, bool)
        if self.group is not None and self.group != "tensor" and not (whole and self.group > 0):
            raise ValueError(f'group must be a positive integer, None (one scale a row) or "tensor", '
                             f"got {self.group!r}")
        if not isinstance(self.scale_dtype, torch.dtype) or not self.scale_dtype.is_floating_point:
            raise ValueError(f"scale_dtype must be a floating-point torch dtype, got {self.scale_dtype!r}")

    @property
    def qmin(self) -> int:
        """Smallest integer of the grid."""
        return -(2 ** (self.bits - 1)) if self.symmetric else 0

    @property
    def qmax(self) -> int:
        """Largest integer of the grid."""
        return self.qmin + 2**self.bits - 1

    def __str__(self) -> str:
        per = {None: "per channel", "tensor": "per tensor"}.get(self.group, f"group {self.group}")
        return f"INT{self.bits} {per} {'symmetric' if self.symmetric else 'asymmetric'}"


@dataclass(frozen=True)
class Quantized:
    """A quantized matrix. q: int8 or uint8 [out, in]; scale, zero: float32 [out, groups] ([1, 1] per tensor).

    `zero` holds whole numbers (all 0 when symmetric). `dtype` is the dtype the weight came in.
    """

    q: Tensor
    scale: Tensor
    zero: Tensor
    scheme: Scheme
    dtype: torch.dtype


# ---- the two formulas ------------------------------------------------------------------------------------

def absmax_scale(values: Tensor, bits: int, full_range: bool = True) -> Tensor:
    """Scale of the symmetric grid: the largest |value| of each row falls on the edge of the grid.

    values: float [..., n]; the last dimension shares one scale. Returns float [..., 1], always positive:
    a row of zeros gets scale 1, for any scale would do and 0 cannot be divided by.
    full_range: the edge is 2^(bits-1) - 1/2 (all integers used), else 2^(bits-1) - 1 (mirrored grid).
    """
    absmax = values.abs().amax(dim=-1, keepdim=True)
    edge = 2 ** (bits - 1) - (0.5 if full_range else 1.0)
    scale = absmax / edge
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def zero_point_params(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the asymmetric grid 0 ... 2^bits - 1, which covers min to max of each row.

    The range is stretched to contain 0, so that 0.0 has an integer of its own: the zero point.
    values: float [..., n]. Returns scale (positive) and zero (whole numbers from 0 to 2^bits - 1), both
    float [..., 1]. A row of zeros gets scale 1 and zero 0.
    """
    low = values.amin(dim=-1, keepdim=True).clamp(max=0)
    high = values.amax(dim=-1, keepdim=True).clamp(min=0)
    levels = 2**bits - 1
    scale = (high - low) / levels
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = torch.round(-low / scale).clamp(0, levels)
    return scale, zero


def to_integers(values: Tensor, scale: Tensor, zero: Tensor, scheme: Scheme) -> Tensor:
    """Nearest integers of the grid, as floats: clamp(round(values / scale) + zero). Shapes broadcast."""
    return torch.clamp(torch.round(values / scale) + zero, scheme.qmin, scheme.qmax)


def from_integers(q: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Back to real numbers: scale * (q - zero). Shapes broadcast."""
    return scale * (q - zero)


# ---- scale and zero of a scheme --------------------------------------------------------------------------

def parameters(values: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Scale and zero, both [..., 1], for values [..., n] whose last dimension shares them.

    The scale is rounded to scheme.scale_dtype, and returned in the dtype of `values`. GPTQ calls this for
    each group of columns: parameters(weight[:, i : i + group], scheme).
    Raises ValueError when a scale does not fit into scale_dtype.
    """
    if scheme.symmetric:
        scale = absmax_scale(values, scheme.bits, scheme.full_range)
        return _stored(scale, scheme), torch.zeros_like(scale)
    scale, zero = zero_point_params(values, scheme.bits)
    stored = _stored(scale, scheme)
    # Zero point for the scale that is stored, not for the one before rounding.
    low = values.amin(dim=-1, keepdim=True).clamp(max=0)
    return stored, torch.round(-low / stored).clamp(scheme.qmin, scheme.qmax)


def _stored(scale: Tensor, scheme: Scheme) -> Tensor:
    """The scale after a trip through scale_dtype, never zero."""
    rounded = scale.to(scheme.scale_dtype)
    if torch.isinf(rounded).any():
        raise ValueError(f"a scale of {scale.max().item():.3g} does not fit into {scheme.scale_dtype}: "
                         "use Scheme(scale_dtype=torch.float32)")
    smallest = torch.finfo(scheme.scale_dtype).smallest_normal
    return torch.where(rounded == 0, torch.full_like(rounded, smallest), rounded).to(scale.dtype)


def search_clip(
    values: Tensor, scheme: Scheme, steps: int = 20, smallest: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Scale and zero, both [..., 1], of the clipping range with the least squared error for each group.

    Cutting off the largest values makes the step smaller for all others. Tries `steps` ranges from the full
    one down to `smallest` times it, on values [..., n]. The full range is tried too: never worse than
    `parameters`.
    """
    if steps < 1 or not 0 < smallest <= 1:
        raise ValueError(f"steps must be >= 1 and 0 < smallest <= 1, got steps={steps}, smallest={smallest}")
    best_scale, best_zero = parameters(values, scheme)
    best_error = _squared_error(values, best_scale, best_zero, scheme)
    for step in range(1, steps + 1):
        shrink = 1 - (1 - smallest) * step / steps
        scale, zero = parameters(values * shrink, scheme)
        error = _squared_error(values, scale, zero, scheme)
        better = error < best_error
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
        best_error = torch.where(better, error, best_error)
    return best_scale, best_zero


def _squared_error(values: Tensor, scale: Tensor, zero: Tensor, scheme: Scheme) -> Tensor:
    restored = from_integers(to_integers(values, scale, zero, scheme), scale, zero)
    return (restored - values).square().sum(dim=-1, keepdim=True)


# ---- whole matrices --------------------------------------------------------------------------------------

def quantize(weight: Tensor, scheme: Scheme, clip_search: bool = False) -> Quantized:
    """Quantize weight [out, in] (any floating dtype, any strides) to the nearest integers of the scheme.

    clip_search: choose each group's range by squared error (`search_clip`) instead of min/max.
    Raises TypeError for integer input; ValueError for NaN, inf, another number of dimensions, or a group
    that does not divide the width.
    """
    check_weight(weight)
    values = to_groups(weight.detach(), scheme)
    scale, zero = (search_clip if clip_search else parameters)(values, scheme)
    q = to_integers(values, scale, zero, scheme)
    q = q.to(torch.int8 if scheme.symmetric else torch.uint8).reshape(weight.shape)
    return Quantized(q, scale.squeeze(-1), zero.squeeze(-1), scheme, weight.dtype)


def dequantize(quantized: Quantized) -> Tensor:
    """The matrix [out, in] that the integers stand for, in the dtype the weight came in."""
    q = to_groups(quantized.q, quantized.scheme)
    values = from_integers(q, quantized.scale.unsqueeze(-1), quantized.zero.unsqueeze(-1))
    return values.reshape(quantized.q.shape).to(quantized.dtype)


def fake_quantize(weight: Tensor, scheme: Scheme, clip_search: bool = False) -> Tensor:
    """quantize, then dequantize: the weight [out, in] with the rounding error in it, still a float."""
    return dequantize(quantize(weight, scheme, clip_search))


def to_groups(matrix: Tensor, scheme: Scheme) -> Tensor:
    """matrix [out, in] as float32 [out, groups, group] (per tensor: [1, 1, out * in]); float64 stays."""
    matrix = matrix if matrix.dtype == torch.float64 else matrix.float()
    if scheme.group == "tensor":
        return matrix.reshape(1, 1, -1)
    rows, width = matrix.shape
    check_group(scheme, width)
    return matrix.reshape(rows, -1, scheme.group or width)


def bits_per_weight(scheme: Scheme, width: int, rows: int | None = None) -> float:
    """Bits stored for each weight of a matrix [rows, width], with scales and zero points counted.

    A zero point takes `bits` bits, as in the GPTQ checkpoint format. `rows` is needed per tensor only.
    Example: 4 bits, group 64, FP16 scales: 4 + 16/64 = 4.25, with a zero point 4.3125.
    """
    if scheme.group == "tensor":
        if rows is None:
            raise ValueError("one scale a tensor: give rows as well, the overhead is spread over all of them")
        shared = rows * width
    else:
        check_group(scheme, width)
        shared = scheme.group or width
    overhead = scheme.scale_dtype.itemsize * 8 + (0 if scheme.symmetric else scheme.bits)
    return scheme.bits + overhead / shared


# ---- what is refused -------------------------------------------------------------------------------------

def check_weight(weight: Tensor) -> None:
    """Raise a one-line error when `weight` is not a finite floating-point matrix."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        kind = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(f"weight must be a floating-point tensor, got {kind}")
    if weight.ndim != 2 or weight.numel() == 0:
        raise ValueError(f"weight must be a non-empty matrix [out, in], got shape {list(weight.shape)}")
    finite = torch.isfinite(weight)
    if not finite.all():
        bad = weight.numel() - int(finite.sum())
        raise ValueError(f"weight holds {bad} NaN or infinite value(s): no scale can be taken from them")


def check_group(scheme: Scheme, width: int) -> None:
    """Raise ValueError, naming the groups that fit, when the scheme's group does not divide `width`."""
    group = scheme.group
    if group in (None, "tensor") or width % group == 0:
        return
    divisors = [d for d in range(2, width + 1) if width % d == 0]
    usual = [d for d in divisors if d >= 8 and d & (d - 1) == 0] or divisors
    raise ValueError(f"group {group} does not divide the width {width}: use {', '.join(map(str, usual))}, "
                     "another divisor, or group=None for one scale a row")
