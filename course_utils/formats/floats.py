"""Floating-point formats, decoded and encoded by hand.

A floating-point number is sign * significand * 2**power. A format says how many bits the exponent and the
mantissa get, and what the topmost codes mean. Everything here follows from those three facts.

Sources: IEEE 754-2019 (FP32, FP16); OCP 8-bit Floating Point Specification 1.0 (E4M3, E5M2); OCP
Microscaling Formats (MX) Specification 1.0 (E2M1, E8M0). BF16 and TF32 are FP32 with a shorter mantissa.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

CHUNK = 2**18  # elements converted at once: bounds the memory for temporaries, and stays near the cache

FP32_EXPONENT_FIELD = 0x7F800000
FP32_MANTISSA_FIELD = 0x007FFFFF
FP32_MANTISSA_BITS = 23
FP32_BIAS = 127


@dataclass(frozen=True)
class FloatFormat:
    """A sign bit, then the exponent, then the mantissa.

    Attributes:
        name: how tables call it.
        exponent_bits: width of the exponent.
        mantissa_bits: width of the mantissa.
        specials: what the codes with the largest exponent mean.
            "inf+nan": infinity (mantissa 0) and NaN (any other mantissa), as in IEEE 754.
            "nan": only the code with every bit set is NaN; no infinity (torch: the "fn" in float8_e4m3fn).
            "none": every code is an ordinary number.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    specials: str = "inf+nan"

    @property
    def bits(self) -> int:
        """Width of a code: sign, exponent and mantissa."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """What is subtracted from the exponent field to give the power of two."""
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def nan_code(self) -> int:
        """Every bit but the sign: NaN, where there is one."""
        return 2 ** (self.exponent_bits + self.mantissa_bits) - 1

    @property
    def largest_code(self) -> int:
        """The code of the largest finite number."""
        return self.nan_code - {"inf+nan": 2**self.mantissa_bits, "nan": 1, "none": 0}[self.specials]

    @property
    def overflow_code(self) -> int:
        """Where numbers beyond the range go: to infinity, else to NaN, else to the largest number."""
        return min(self.largest_code + 1, self.nan_code)

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return decode(torch.tensor(self.largest_code), self).item()

    @property
    def largest_power(self) -> int:
        """floor(log2(largest)): 2 for E2M1, whose largest number is 6."""
        return (self.largest_code >> self.mantissa_bits) - self.bias

    @property
    def smallest_normal(self) -> float:
        """The smallest number above zero whose significand begins with a 1."""
        return 2.0 ** (1 - self.bias)

    @property
    def smallest(self) -> float:
        """The smallest number above zero (a subnormal)."""
        return 2.0 ** (1 - self.bias - self.mantissa_bits)

    @property
    def epsilon(self) -> float:
        """The step from 1 to the next number. Half of it bounds a normal number's relative rounding error."""
        return 2.0**-self.mantissa_bits


FP32 = FloatFormat("FP32", 8, 23)
TF32 = FloatFormat("TF32", 8, 10)
BF16 = FloatFormat("BF16", 8, 7)
FP16 = FloatFormat("FP16", 5, 10)
E5M2 = FloatFormat("FP8 E5M2", 5, 2)
E4M3 = FloatFormat("FP8 E4M3", 4, 3, "nan")
E2M1 = FloatFormat("FP4 E2M1", 2, 1, "none")
FLOATS = {format.name: format for format in (FP32, TF32, BF16, FP16, E5M2, E4M3, E2M1)}


def decode_float(bits: torch.Tensor, exponent_bits: int, mantissa_bits: int,
                 specials: str = "inf+nan") -> torch.Tensor:
    """Decode floating-point numbers from their bits: sign, then exponent, then mantissa.

    An exponent field e above 0 means sign * (1 + mantissa / 2**mantissa_bits) * 2**(e - bias).
    An exponent field of 0 means      sign * (0 + mantissa / 2**mantissa_bits) * 2**(1 - bias)  (subnormal).
    The bias is 2**(exponent_bits - 1) - 1.
    Source: IEEE 754-2019, section 3.4; OCP 8-bit Floating Point Specification 1.0, section 5.

    Args:
        bits: integer tensor of any shape and integer dtype; bits above the format's width are ignored.
        exponent_bits: width of the exponent.
        mantissa_bits: width of the mantissa.
        specials: what the topmost codes mean.
            "inf+nan": e all ones is infinity if the mantissa is 0, else NaN.
            "nan": e all ones and mantissa all ones is NaN.
            "none": every code is a number.

    Returns:
        float64 tensor of the same shape: float64 holds all numbers of these formats exactly.
    """
    bits = bits.long()  # room to compute: in uint8, 1 - 2 * sign would wrap around
    sign = 1.0 - 2.0 * ((bits >> (exponent_bits + mantissa_bits)) & 1)
    exponent = (bits >> mantissa_bits) & (2**exponent_bits - 1)
    fraction = (bits & (2**mantissa_bits - 1)).double() / 2**mantissa_bits

    bias = 2 ** (exponent_bits - 1) - 1
    subnormal = exponent == 0
    significand = torch.where(subnormal, fraction, 1 + fraction)
    power = torch.where(subnormal, 1, exponent) - bias
    value = sign * significand * torch.exp2(power.double())

    top = exponent == 2**exponent_bits - 1
    if specials == "inf+nan":
        value = torch.where(top, torch.where(fraction == 0, sign * math.inf, math.nan), value)
    if specials == "nan":
        value = torch.where(top & (fraction == 1 - 2.0**-mantissa_bits), math.nan, value)
    return value


def decode(codes: torch.Tensor, format: FloatFormat) -> torch.Tensor:
    """The numbers that codes stand for.

    Args:
        codes: integer tensor of any shape; the low `format.bits` bits of each code count.
        format: what they are codes of.

    Returns:
        float32, same shape.

    Raises:
        TypeError: `codes` is not an integer tensor.
    """
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise TypeError(f"{format.name} codes are integers, not {codes.dtype}: x.view(...) gives bits")
    return decode_float(codes, format.exponent_bits, format.mantissa_bits, format.specials).float()


def encode(x: torch.Tensor, format: FloatFormat, saturate: bool = False) -> torch.Tensor:
    """The code of the number nearest to each element of x. A tie goes to the even code.

    Overflow: what rounds beyond the largest number, and infinity itself, becomes infinity (specials
    "inf+nan") or NaN ("nan"); with saturate=True, and always for "none", the largest number of its sign.
    Torch agrees, with one exception: since 2.12 its cast to float8_e4m3fn saturates; before, it gave NaN.
    NaN becomes the NaN code with every bit set, and keeps its sign.

    Args:
        x: float32, float16 or bfloat16, of any shape.
        format: what to encode it in.
        saturate: whether overflow gives the largest number.

    Returns:
        int32 of the same shape; int64 for FP32, whose codes fill 32 bits.

    Raises:
        TypeError: x has another dtype.
        ValueError: x has NaN, and the format has none.
    """
    x = _float32(x, format)
    power, _, significand = _round(x, format)
    # The smallest normal power has exponent field 1. Subnormals share that power and lack the leading 1 in
    # their significand, so one sum is right for both; and a significand rounded up to 2 carries into the
    # exponent.
    field = (power.view(torch.int32) >> FP32_MANTISSA_BITS) - FP32_BIAS + format.bias
    code = ((field - 1) << format.mantissa_bits) + significand.int()

    overflow = format.largest_code if saturate else format.overflow_code
    if format is not FP32:  # nothing finite overflows there
        code.clamp_(max=overflow)
    if not x.isfinite().all():
        code[x.isinf()] = overflow
        code[x.isnan()] = format.nan_code
    code = code.long() if format.bits == 32 else code
    return code + (x.signbit().to(code.dtype) << (format.bits - 1))


def round_to(x: torch.Tensor, format: FloatFormat, saturate: bool = False) -> torch.Tensor:
    """Round x to the numbers of the format: the same as decode(encode(x)), without the codes.

    Args:
        x: float32, float16 or bfloat16, of any shape.
        format: whose numbers to take.
        saturate: whether overflow gives the largest number, see `encode`.

    Returns:
        float32, same shape.

    Raises:
        TypeError: x has another dtype.
        ValueError: x has NaN, and the format has none.
    """
    x = _float32(x, format)
    overflow = {"inf+nan": math.inf, "nan": math.nan, "none": format.largest}[format.specials]
    overflow = format.largest if saturate else overflow

    def convert(part: torch.Tensor) -> torch.Tensor:
        _, step, significand = _round(part, format)
        value = significand.mul_(step)
        value[value > format.largest] = overflow
        value[part.isinf()] = overflow  # infinity / infinity was NaN
        return value.copysign_(part)

    return in_chunks(convert, x)


def _round(x: torch.Tensor, format: FloatFormat) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """|x| = significand * step, with the significand rounded to an integer, half to even.

    Returns (power, step, significand); power is the power of two at or below |x|. In FP32 it needs no
    logarithm: clear the mantissa. Numbers below the smallest normal share its power, and so their spacing.
    Products and quotients here are exact, because they are by powers of two.
    """
    size = x.abs()
    power = (size.view(torch.int32) & FP32_EXPONENT_FIELD).view(torch.float32)
    power = power.clamp_(min=format.smallest_normal)
    step = power * 2.0**-format.mantissa_bits
    return power, step, size.div_(step).round_()


def _float32(x: torch.Tensor, format: FloatFormat) -> torch.Tensor:
    check_float(x, format.name)
    if format.specials == "none" and x.isnan().any():
        raise ValueError(f"{format.name} has no NaN, but {int(x.isnan().sum())} of {x.numel()} values are")
    return x.detach().float()


def check_float(x: torch.Tensor, name: str) -> None:
    """Refuse a tensor that float32 does not hold exactly.

    Args:
        x: of any shape.
        name: of the format that it is made into, for the message.

    Raises:
        TypeError: x is not float32, float16 or bfloat16.
    """
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"{name} is made from float32, float16 or bfloat16, not {x.dtype}: use .float()")


def in_chunks(convert: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Apply an elementwise function, CHUNK elements at a time.

    Args:
        convert: takes a tensor [n], gives one of the same shape; it may write into what it takes.
        x: of any shape.

    Returns:
        float32, same shape.
    """
    flat = x.reshape(-1)
    out = torch.empty_like(flat, dtype=torch.float32)
    for start in range(0, flat.numel(), CHUNK):
        out[start : start + CHUNK] = convert(flat[start : start + CHUNK])
    return out.view(x.shape)


def bit_string(code: int, format: FloatFormat) -> str:
    """The bits of one code with the fields apart.

    Args:
        code: the low `format.bits` bits count.
        format: what it is a code of.

    Returns:
        Sign, exponent and mantissa, such as '0 01111 1000000000'.
    """
    bits = f"{int(code) % 2**format.bits:0{format.bits}b}"
    return f"{bits[0]} {bits[1 : 1 + format.exponent_bits]} {bits[1 + format.exponent_bits :]}"


# --- E8M0: eight exponent bits, no sign, no mantissa. The scale of a block, always a power of two. ---------


def decode_e8m0(codes: torch.Tensor) -> torch.Tensor:
    """2**(code - 127); code 255 is NaN. Source: OCP MX 1.0, section 5.4.1.

    Args:
        codes: integer tensor of any shape, 0 to 255.

    Returns:
        float32, same shape.
    """
    codes = codes.long()
    return torch.where(codes == 255, math.nan, torch.exp2(codes.double() - 127)).float()


def encode_e8m0(x: torch.Tensor) -> torch.Tensor:
    """The code of the power of two nearest to |x|. A tie, 1.5 * 2**n, goes up.

    As torch casts to float8_e8m0fnu: the tie at the very bottom, 1.5 * 2**-127, goes down; NaN, infinity and
    what rounds beyond 2**127 become 255 (NaN).

    Args:
        x: float32, float16 or bfloat16, of any shape.

    Returns:
        uint8, same shape.

    Raises:
        TypeError: x has another dtype.
    """
    check_float(x, "E8M0")
    fp32 = x.detach().float().view(torch.int32)
    field = (fp32 & FP32_EXPONENT_FIELD) >> FP32_MANTISSA_BITS
    mantissa = fp32 & FP32_MANTISSA_FIELD
    half = 2 ** (FP32_MANTISSA_BITS - 1)
    up = (mantissa > half) | ((mantissa == half) & (field > 0))
    return torch.where(field == 255, 255, field + up).to(torch.uint8)


def block_scale_e8m0(blocks: torch.Tensor, largest_power: int = 2) -> torch.Tensor:
    """The scale that a block's elements share: the E8M0 code of 2**(floor(log2(absmax)) - largest_power).

    absmax is the largest magnitude of the block. The code is the power plus a bias of 127, kept within
    0 to 254; a block of zeros gets 0.
    Source: OCP Microscaling Formats (MX) Specification 1.0, section 6.3.

    Args:
        blocks: float32 tensor [..., block], finite.
        largest_power: floor(log2) of the element format's largest number: 2 for E2M1, whose largest is 6.

    Returns:
        Integer tensor [...].
    """
    absmax = blocks.abs().amax(dim=-1)
    # frexp: absmax = fraction * 2**exponent with the fraction in [0.5, 1). It is exact where a logarithm is
    # not: log2(7.9999995) is 3.0 in float32, and floor makes 3 of what should be 2.
    power = torch.frexp(absmax).exponent - 1 - largest_power
    code = (power + 127).clamp(0, 254)
    return torch.where(absmax == 0, 0, code)
