"""Lesson formats: wrong answers are rejected for their reason, right ones written otherwise pass.

A shared test (test_all.py) walks these dictionaries; see tests/exercises/common.py for what it asserts.
"""

import itertools
import math
import struct

import torch

# --- decode_float: each wrong answer is written as a learner would write it ---------------------------------


def _fields(bits, e, m):
    bits = bits.long()
    return (bits >> (e + m)) & 1, (bits >> m) & ((1 << e) - 1), (bits & ((1 << m) - 1)).double()


def _no_subnormals(bits, e, m, specials="inf+nan"):
    sign, exponent, mantissa = _fields(bits, e, m)
    value = (-1.0) ** sign * (1 + mantissa / 2.0**m) * 2.0 ** (exponent.double() - (2 ** (e - 1) - 1))
    return _specials(value, sign, exponent, mantissa, e, m, specials)


def _specials(value, sign, exponent, mantissa, e, m, specials):
    value = value.double()
    top = exponent == (1 << e) - 1
    if specials == "inf+nan":
        value[top] = math.nan
        value[top & (mantissa == 0)] = math.inf
        value[top & (mantissa == 0) & (sign == 1)] = -math.inf
    if specials == "nan":
        value[top & (mantissa == (1 << m) - 1)] = math.nan
    return value


def _decode(bits, e, m, specials="inf+nan", bias=None, low=None):
    """Right unless told otherwise: the subnormals' power is `low` above the lowest field."""
    bias = 2 ** (e - 1) - 1 if bias is None else bias
    sign, exponent, mantissa = _fields(bits, e, m)
    normal = (2**m + mantissa) * 2.0 ** (exponent.double() - bias - m)
    subnormal = mantissa * 2.0 ** ((1 if low is None else low) - bias - m)
    value = torch.where(exponent > 0, normal, subnormal)
    return _specials(torch.where(sign == 1, -value, value), sign, exponent, mantissa, e, m, specials)


def _ieee_always(bits, e, m, specials="inf+nan"):
    return _decode(bits, e, m)


def _never_special(bits, e, m, specials="inf+nan"):
    return _decode(bits, e, m, "none")


def _no_leading_one(bits, e, m, specials="inf+nan"):
    sign, exponent, mantissa = _fields(bits, e, m)
    power = torch.where(exponent == 0, 1, exponent).double() - (2 ** (e - 1) - 1)
    value = (1.0 - 2.0 * sign) * (mantissa.double() / 2**m) * 2.0**power
    return _specials(value, sign, exponent, mantissa, e, m, specials)


def _unsigned(bits, e, m, specials="inf+nan"):
    return _decode(bits.long() & (2 ** (e + m) - 1), e, m, specials)


def _mantissa_over_its_largest(bits, e, m, specials="inf+nan"):
    sign, exponent, mantissa = _fields(bits, e, m)
    fraction = mantissa.double() / (2**m - 1)
    low = exponent == 0
    power = torch.where(low, 1, exponent).double() - (2 ** (e - 1) - 1)
    value = torch.where(low, fraction, 1 + fraction) * 2.0**power * (1.0 - 2.0 * sign)
    return _specials(value, sign, exponent, mantissa, e, m, specials)


def _computes_in_uint8(bits, e, m, specials="inf+nan"):
    sign = (bits >> (e + m)) & 1
    value = _decode(bits, e, m, specials).abs()
    return (1 - 2 * sign) * value


def _one_by_one(bits, e, m, specials="inf+nan"):
    """Text and Python numbers, one code at a time."""
    out = []
    for code in bits.flatten().tolist():
        text = format(code % 2 ** (1 + e + m), f"0{1 + e + m}b")
        sign, field, rest = -1.0 if text[0] == "1" else 1.0, text[1 : 1 + e], text[1 + e :]
        ones = "0" not in field
        if specials == "inf+nan" and ones:
            out.append(math.nan if "1" in rest else sign * math.inf)
        elif specials == "nan" and ones and "0" not in rest:
            out.append(math.nan)
        else:
            lead = "1" if "1" in field else "0"
            power = max(int(field, 2), 1) - (2 ** (e - 1) - 1) - m
            out.append(sign * math.ldexp(int(lead + rest, 2), power))
    return torch.tensor(out, dtype=torch.float64).view(bits.shape)


def _through_float64_bits(bits, e, m, specials="inf+nan"):
    """Write the fields into those of a double; for subnormals, subtract the leading 1 again."""
    out = []
    for code in bits.flatten().tolist():
        code %= 2 ** (1 + e + m)
        sign, rest = divmod(code, 2 ** (e + m))
        field, mantissa = divmod(rest, 2**m)
        top = field == 2**e - 1
        if (specials == "inf+nan" and top) or (specials == "nan" and top and mantissa == 2**m - 1):
            value = math.inf if specials == "inf+nan" and mantissa == 0 else math.nan
        else:
            wide = max(field, 1) - 2 ** (e - 1) + 1 + 1023
            word = struct.pack(">Q", (wide << 52) | (mantissa << (52 - m)))
            value = struct.unpack(">d", word)[0] - (0 if field else 2.0 ** (wide - 1023))
        out.append(-value if sign else value)
    return torch.tensor(out, dtype=torch.float64).reshape(bits.shape)


# --- nearest_code -------------------------------------------------------------------------------------------


def _by_distance(x, table):
    return (x.unsqueeze(-1) - table).abs().argmin(dim=-1)


def _count_midpoints_below(x, table):
    index = torch.zeros(x.shape, dtype=torch.int32)
    for low, high in itertools.pairwise(table.tolist()):
        index += x > torch.tensor((low + high) / 2)
    return index


def _last_of_the_nearest(x, table):
    distance = (x.unsqueeze(-1) - table).abs()
    return len(table) - 1 - distance.flip(-1).argmin(-1)


def _floor_index(x, table):
    return torch.stack([x >= t for t in table]).sum(0).sub(1).clamp(min=0)


def _uniform(x, table):
    n = len(table) - 1
    return torch.round((x - table.min()) * n / (table.max() - table.min())).clamp(0, n).long()


# --- block_scale_e8m0 ---------------------------------------------------------------------------------------


def _log(blocks, largest_power=2, rounding=torch.floor, dtype=torch.float64, shift=1, bias=127):
    absmax = blocks.abs().amax(-1).to(dtype)
    code = rounding(torch.log2(absmax)) - shift * largest_power + bias
    return torch.where(absmax == 0, torch.zeros_like(code), code.clamp(0, 254)).to(torch.int32)


def _from_the_bits(blocks, largest_power=2):
    """The exponent field of an FP32 number is floor(log2) + 127 already; subnormals come out as 0."""
    absmax = blocks.abs().amax(-1).float().contiguous()
    return ((absmax.view(torch.int32) >> 23) - largest_power).clamp(0, 254)


def _loop(blocks, largest_power=2):
    rows = blocks.reshape(-1, blocks.shape[-1])
    codes = []
    for row in rows:
        largest = max(abs(value) for value in row.tolist())
        code = math.frexp(largest)[1] - 1 - largest_power + 127 if largest else 0
        codes.append(min(max(code, 0), 254))
    return torch.tensor(codes).view(blocks.shape[:-1])


def _wide(blocks, largest_power=2):
    absmax = blocks.abs().amax(-1)
    return torch.where(absmax == 0, 0, torch.frexp(absmax).exponent + 126 - largest_power)


def _zeros_forgotten(blocks, largest_power=2):
    return (torch.frexp(blocks.abs().amax(-1))[1] - 1 - largest_power + 127).clamp(0, 254)


WRONG = {
    "decode_float": [
        (_no_subnormals, "subnormals too"),
        (lambda b, e, m, s="inf+nan": _decode(b, e, m, s, low=0), "field 1"),
        (lambda b, e, m, s="inf+nan": _decode(b, e, m, s, bias=2 ** (e - 1)), "not 16"),
        (lambda b, e, m, s="inf+nan": _decode(b, e, m, s, bias=0), "no bias"),
        (_no_leading_one, "no leading 1"),
        (_never_special, "exponent is all ones"),
        (_ieee_always, "read as IEEE"),
        (_unsigned, "sign bit lost"),
        (_mantissa_over_its_largest, "largest value"),
        (_computes_in_uint8, "int64"),
    ],
    "nearest_code": [
        (lambda x, table: table[_by_distance(x, table)], "instead of its index"),
        (_floor_index, "next value below"),
        (lambda x, t: torch.searchsorted(t, x.contiguous()).clamp(max=len(t) - 1), "next value above"),
        (_uniform, "evenly spaced"),
        (_last_of_the_nearest, "higher index"),
        (lambda x, table: _by_distance(x.abs(), table.abs()), "sign is lost"),
        (lambda x, table: (x[..., None] - table).abs().argmax(-1), "farthest"),
    ],
    "block_scale_e8m0": [
        (lambda b, p=2: _log(b, p, dtype=torch.float32), "frexp is exact"),
        (lambda b, p=2: _log(b, p, torch.ceil), "rounded up"),
        (lambda b, p=2: _log(b, p, torch.round), "rounded to the nearest"),
        (lambda b, p=2: _log(b, p, shift=0), "not taken off"),
        (lambda b, p=2: _log(b, p, shift=-1), "added instead"),
        (lambda b, p=2: torch.frexp(b.abs().amax(-1)).exponent - 1 - p, "bias of 127"),
        (lambda b, p=2: (_wide(b, p) - 127) * (b.abs().amax(-1) > 0), "bias of 127"),
        (lambda b, p=2: _log(b.clamp(min=0), p), "sign not taken off"),
        (lambda b, p=2: _log(b.abs().max().expand(b.shape), p), "whole tensor"),
        (_wide, "Clamp"),
        (_zeros_forgotten, "block of zeros"),
        (lambda b, p=2: 2.0 ** (_log(b, p).float() - 127), "not its code"),
    ],
    "predict_bf16_loss": [(1, "mantissa bits"), (3, "doubles"), (1 / 8, "upside down"), (16, "10 against 7")],
    "predict_nf4_megabytes": [(67.3, "scales are missing"), (84.1, "64 weights, not 32"), (71.5, "FP32"),
                              (605, "unit")],
}  # fmt: skip

RIGHT = {
    "decode_float": [_decode, _one_by_one, _through_float64_bits],
    "nearest_code": [_by_distance, _count_midpoints_below],
    "block_scale_e8m0": [_log, _from_the_bits, _loop],
    "predict_bf16_loss": [8, 2 ** (10 - 7)],
    "predict_nf4_megabytes": [75.7, 134.5e6 * 4.5 / 8e6],
}
