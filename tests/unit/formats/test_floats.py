"""Floats and E8M0 against torch and exact rational arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils import formats as f
from tests.unit.formats.common import finite_float32, from_bits, same, sweep

TORCH = {
    "FP32": (torch.float32, torch.int32),
    "BF16": (torch.bfloat16, torch.int16),
    "FP16": (torch.float16, torch.int16),
    "FP8 E5M2": (torch.float8_e5m2, torch.uint8),
    "FP8 E4M3": (torch.float8_e4m3fn, torch.uint8),
}
SMALL = [name for name, format in f.FLOATS.items() if format.bits <= 16]
float32_bits = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("name", ["BF16", "FP16", "FP8 E5M2", "FP8 E4M3"])
def test_decode_every_code(name):
    dtype, integer = TORCH[name]
    format = f.FLOATS[name]
    codes = torch.arange(2**format.bits)
    assert same(f.decode(codes, format), from_bits(codes, dtype, integer))


def test_decode_fp32():
    x = sweep()
    assert same(f.decode(x.view(torch.int32), f.FP32), x)


@pytest.mark.parametrize("integer", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_decode_takes_any_integer_dtype(integer):
    codes = torch.arange(256).to(integer)
    assert same(f.decode(codes, f.E4M3), f.decode(torch.arange(256), f.E4M3))


@pytest.mark.parametrize("name", ["FP32", "BF16", "FP16", "FP8 E5M2"])
def test_encode_as_torch_casts(name):
    x, (dtype, _), format = sweep(), TORCH[name], f.FLOATS[name]
    codes = f.encode(x, format)
    assert 0 <= codes.min() and codes.max() < 2**format.bits
    assert same(f.decode(codes, format), x.to(dtype))
    assert same(f.round_to(x, format), x.to(dtype))


def test_encode_e4m3_as_torch_casts():
    x = sweep()
    finite = x[~(x.abs() > 464)]  # 464 is halfway to the next step and rounds to 448: what is above overflows
    assert same(f.decode(f.encode(finite, f.E4M3), f.E4M3), finite.to(torch.float8_e4m3fn))
    above = x[x.abs() > 464]
    assert f.round_to(above, f.E4M3).isnan().all()
    assert torch.equal(f.round_to(above, f.E4M3, saturate=True), 448 * above.sign())
    # torch saturates from 2.12 on and gave NaN before: pytorch/pytorch#178817
    torchs = above.to(torch.float8_e4m3fn).float()
    assert torchs.isnan().all() or torch.equal(torchs, 448 * above.sign())


@pytest.mark.parametrize("name", f.FLOATS)
@given(bits=st.lists(float32_bits, min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_round_to_is_decode_of_encode(name, bits):
    x, format = from_bits(np.array(bits, dtype=np.uint32).view(np.int32)), f.FLOATS[name]
    x = x.nan_to_num() if format is f.E2M1 else x
    for saturate in (False, True):
        decoded = f.decode(f.encode(x, format, saturate), format)
        assert same(f.round_to(x, format, saturate), decoded)
        assert same(f.round_to(decoded.nan_to_num(), format, True), decoded.nan_to_num(posinf=format.largest,
                                                                    neginf=-format.largest))


@pytest.mark.parametrize("name", f.FLOATS)
@given(finite_float32)
@settings(max_examples=200, deadline=None)
def test_encode_is_nearest_with_ties_to_even_in_exact_arithmetic(name, value):
    format, x = f.FLOATS[name], Fraction(value)
    code = int(f.encode(torch.tensor([value]), format, saturate=True))
    sign = 2 ** (format.bits - 1)
    magnitude = code & (sign - 1)
    exact = {c: Fraction(exact_value(c, format)) for c in (magnitude - 1, magnitude, magnitude + 1)
             if 0 <= c <= format.largest_code}
    distances = {c: abs(abs(x) - number) for c, number in exact.items()}
    best = min(distances.values())
    assert distances[magnitude] == best
    if list(distances.values()).count(best) == 2:
        assert magnitude % 2 == 0
    assert bool(code & sign) == (str(value)[0] == "-")


def exact_value(code, format):
    """The number behind a positive code, as a fraction: counted up step by step from the subnormals."""
    exponent, mantissa = divmod(code, 2**format.mantissa_bits)
    step = Fraction(2) ** (max(exponent, 1) - format.bias - format.mantissa_bits)
    return (mantissa + (2**format.mantissa_bits if exponent else 0)) * step


def test_tf32_is_fp32_with_13_bits_less():
    numbers = f.decode(torch.arange(2**19), f.TF32)
    cut = torch.arange(2**19) << 13  # the same codes, as FP32
    assert same(numbers, from_bits(cut))
    x = sweep()
    kept = f.encode(x[x.isfinite()], f.TF32)
    exact = (x[x.isfinite()].view(torch.int32).long() & 0xFFFFFFFF)
    rounded = (exact + 0xFFF + ((exact >> 13) & 1)) >> 13  # round half to even on the bits themselves
    assert torch.equal(kept.long(), rounded)


def test_half_precision_input():
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
        assert torch.equal(f.encode(x, f.E4M3), f.encode(x.float(), f.E4M3))


def test_strided_and_empty_input():
    x = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(f.round_to(x.t(), f.BF16), x.t().bfloat16().float())
    assert f.round_to(torch.empty(0, 3), f.FP16).shape == (0, 3)
    assert f.round_to(torch.tensor(0.1), f.FP16) == torch.tensor(0.1).half()
    before = x.clone()
    f.encode(x, f.FP16), f.round_to(x, f.FP16), f.convert(x, "NVFP4")
    assert torch.equal(x, before)


def test_known_ranges():
    assert [f.FLOATS[name].largest for name in SMALL] == [
        torch.finfo(torch.bfloat16).max, torch.finfo(torch.float16).max, 57344, 448, 6]  # fmt: skip
    for name, (dtype, _) in TORCH.items():
        format, info = f.FLOATS[name], torch.finfo(dtype)
        assert (format.largest, format.smallest_normal, format.epsilon) == (info.max, info.tiny, info.eps)
        assert format.smallest == info.smallest_normal * info.eps
    assert [f.FLOATS[name].largest_power for name in SMALL] == [127, 15, 15, 8, 2]


def test_bit_string():
    assert f.bit_string(f.encode(torch.tensor(-0.15625), f.FP16), f.FP16) == "1 01100 0100000000"
    assert f.bit_string(f.encode(torch.tensor(-1.0), f.FP32), f.FP32) == "1 01111111 " + 23 * "0"


def test_e2m1_as_torchao():
    kernels = pytest.importorskip("torchao.prototype.mx_formats.kernels")
    x = sweep()
    x = torch.cat([x[x.isfinite()], torch.linspace(-8, 8, 2**16 + 1)])
    assert torch.equal(f.encode(x, f.E2M1), kernels.f32_to_f4_unpacked(x).int())
    codes = torch.arange(16, dtype=torch.uint8)
    assert same(f.decode(codes, f.E2M1), kernels.f4_unpacked_to_f32(codes))


def test_e8m0_every_code_and_cast():
    codes = torch.arange(256)
    assert same(f.decode_e8m0(codes), codes.to(torch.uint8).view(torch.float8_e8m0fnu))
    x = sweep()
    assert torch.equal(f.encode_e8m0(x), x.to(torch.float8_e8m0fnu).view(torch.uint8))


@given(st.lists(finite_float32, min_size=1, max_size=8), st.integers(0, 8))
@settings(max_examples=200, deadline=None)
def test_block_scale_in_exact_arithmetic(values, largest_power):
    absmax = max(Fraction(abs(value)) for value in values)
    power = -10000
    if absmax:
        power = absmax.numerator.bit_length() - absmax.denominator.bit_length()
        power -= Fraction(2) ** power > absmax
    expected = min(max(power - largest_power + 127, 0), 254)
    assert f.block_scale_e8m0(torch.tensor(values), largest_power) == expected


@pytest.mark.parametrize("call, error, message", [
    (lambda: f.decode(torch.ones(3), f.FP16), TypeError, "FP16 codes are integers, not torch.float32"),
    (lambda: f.encode(torch.ones(3, dtype=torch.float64), f.FP16), TypeError, "FP16 is made from .*float64"),
    (lambda: f.encode_e8m0(torch.ones(3, dtype=torch.int32)), TypeError, "E8M0 is made from .*int32"),
    (lambda: f.round_to(torch.tensor([1, torch.nan]), f.E2M1), ValueError, "no NaN, but 1 of 2"),
])  # fmt: skip
def test_errors_say_what_to_do(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
