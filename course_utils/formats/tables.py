"""Formats with so few codes that a table says it all; and integers."""

import torch

from course_utils.formats.floats import FloatFormat, decode


def nearest_code(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The index of the table's value nearest to each element of x. A tie goes to the lower index.

    Args:
        x: float tensor of any shape.
        table: float tensor [n], ascending.

    Returns:
        Integer tensor of x's shape.
    """
    midpoints = (table[1:] + table[:-1]) / 2
    return torch.bucketize(x, midpoints)


def value_table(format: FloatFormat) -> torch.Tensor:
    """The number behind each code, in the order of the codes.

    Args:
        format: one of at most 16 bits.

    Returns:
        float32 [2**bits].

    Raises:
        ValueError: the format has more than 16 bits.
    """
    if format.bits > 16:
        raise ValueError(f"a table of {format.name} would have 2**{format.bits} values; the limit is 2**16")
    return decode(torch.arange(2**format.bits), format)


def normal_float_table(offset: float = 0.9677083) -> torch.Tensor:
    """The 16 values of NF4: quantiles of a normal distribution, scaled to [-1, 1].

    7 negative values, an exact 0 and 8 positive values; each side is evenly spaced in probability between
    the tail and the median.
    Source: QLoRA (arXiv 2305.14314), section 3; the offset from bitsandbytes' create_normal_map.

    Args:
        offset: the probability below the outermost quantile: at 1 it would be at infinity.

    Returns:
        float32 [16], ascending.
    """
    positive = torch.special.ndtri(torch.linspace(offset, 0.5, 9)[:-1].double())
    negative = -torch.special.ndtri(torch.linspace(offset, 0.5, 8)[:-1].double())
    values = torch.cat([positive, negative, torch.zeros(1)]).float().sort().values
    return values / values.max()


def decode_int(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Two's complement: the top bit counts -2**(bits - 1).

    Args:
        codes: integers of any dtype and shape; bits above the format's width are ignored.
        bits: of one code.

    Returns:
        float32, same shape.
    """
    codes = codes.long() & (2**bits - 1)
    return (codes - ((codes >> (bits - 1)) << bits)).float()


def encode_int(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Round half to even, clamp to +-(2**(bits - 1) - 1), write as two's complement.

    The most negative code stays unused, so that -x has a code whenever x has one.

    Args:
        x: float tensor of any shape, in units of the scale.
        bits: of one code.

    Returns:
        int32, same shape.
    """
    largest = 2 ** (bits - 1) - 1
    return x.round().clamp(-largest, largest).int() & (2**bits - 1)
