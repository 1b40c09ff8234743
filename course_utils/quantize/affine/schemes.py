"""What a matrix is quantized to, and how many bits a weight then takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scheme:
    """What a matrix is quantized to.

    Attributes:
        bits: 2 to 8.
        group: "tensor", None (one scale a row) or the number of neighbours sharing a scale.
        symmetric: absmax without a zero point, or min/max with one.
        full_range: which symmetric grid: see the text of the package `affine`.
        scale_dtype: what a scale is stored in. Scales are rounded to it at once, so that what is computed
            here is what a file will hold.

    Raises:
        ValueError: for bits, a group or a scale_dtype of another kind.
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
    """A quantized matrix.

    Attributes:
        q: int8 or uint8 [out, in].
        scale: float32 [out, groups] ([1, 1] per tensor).
        zero: float32 of the same shape, whole numbers (all 0 when symmetric).
        scheme: what it was quantized to.
        dtype: the dtype the weight came in.
    """

    q: Tensor
    scale: Tensor
    zero: Tensor
    scheme: Scheme
    dtype: torch.dtype


def bits_per_weight(scheme: Scheme, width: int, rows: int | None = None) -> float:
    """Bits stored for each weight of a matrix [rows, width], with scales and zero points counted.

    A zero point takes `bits` bits, as in the GPTQ checkpoint format. Example: 4 bits, group 64, FP16 scales:
    4 + 16/64 = 4.25, with a zero point 4.3125.

    Args:
        scheme: what the matrix is quantized to.
        width: columns of the matrix.
        rows: rows of the matrix, needed per tensor only.

    Returns:
        Bits a weight.

    Raises:
        ValueError: per tensor without `rows`, or when the group does not divide the width.
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


def check_group(scheme: Scheme, width: int) -> None:
    """Refuse a scheme whose group does not divide the width.

    Args:
        scheme: its group is how many neighbours share a scale.
        width: columns of the matrix.

    Raises:
        ValueError: when the group does not divide it; names groups that fit.
    """
    group = scheme.group
    if group in (None, "tensor") or width % group == 0:
        return
    divisors = [d for d in range(2, width + 1) if width % d == 0]
    usual = [d for d in divisors if d >= 8 and d & (d - 1) == 0] or divisors
    raise ValueError(f"group {group} does not divide the width {width}: use {', '.join(map(str, usual))}, "
                     "another divisor, or group=None for one scale a row")
