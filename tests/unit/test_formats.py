"""The codecs of course_utils.formats against torch, bitsandbytes, torchao and exact rational arithmetic."""

from fractions import Fraction

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils import formats as f

TORCH = {
    "FP32": (torch.float32, torch.int32),
    "BF16": (torch.bfloat16, torch.int16),
    "FP16": (torch.float16, torch.int16),
    "FP8 E5M2": (torch.float8_e5m2, torch.uint8),
    "FP8 E4M3": (torch.float8_e4m3fn, torch.uint8),
}
SMALL = [name for name, format in f.FLOATS.items() if format.bits <= 16]
float32_bits = st.integers(0, 2**32 - 1)
finite_float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def same(a, b):
    """Equal bit for bit (so -0 is not 0), any NaN being as good as another."""
    a, b = a.float(), b.float()
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(
        a.nan_to_num().view(torch.int32), b.nan_to_num().view(torch.int32)
    )


def from_bits(bits, dtype=torch.float32, integer=torch.int32):
    return torch.as_tensor(bits).to(integer).view(dtype)


def sweep():
    """Float32 numbers of every exponent and sign, at and beside every place where a format may round."""
    high = torch.arange(2**16) << 16  # every sign, exponent and upper 7 bits of the mantissa
    low = torch.tensor([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    random = torch.randint(0, 2**32, (2**20,), generator=torch.Generator().manual_seed(0))
    return from_bits(torch.cat([(high[:, None] + low).flatten(), random]))


# --- floats against torch ----------------------------------------------------------------------------------


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


# --- E8M0 ---------------------------------------------------------------------------------------------------


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


# --- tables and integers ------------------------------------------------------------------------------------


def test_e2m1_table():
    positive = [0.0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert same(f.value_table(f.E2M1), torch.tensor(positive + [-x for x in positive]))


def test_e2m1_as_torchao():
    kernels = pytest.importorskip("torchao.prototype.mx_formats.kernels")
    x = sweep()
    x = torch.cat([x[x.isfinite()], torch.linspace(-8, 8, 2**16 + 1)])
    assert torch.equal(f.encode(x, f.E2M1), kernels.f32_to_f4_unpacked(x).int())
    codes = torch.arange(16, dtype=torch.uint8)
    assert same(f.decode(codes, f.E2M1), kernels.f4_unpacked_to_f32(codes))


def test_nf4_table_is_that_of_bitsandbytes():
    table = f.normal_float_table()
    assert torch.equal(table, bnb.get_4bit_type("nf4", device="cpu"))
    padded = bnb.create_normal_map()  # 16 values and zeros up to 256, computed with scipy
    assert torch.equal(table, torch.cat([padded[:8], padded[-8:]]))
    assert (table == 0).sum() == 1 and (table < 0).sum() == 7


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=20, unique=True),
    st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=20),
)
@settings(deadline=None)
def test_nearest_code_in_exact_arithmetic(table, values):
    table = sorted(table)
    codes = f.nearest_code(torch.tensor(values).double(), torch.tensor(table).double())
    for value, code in zip(values, codes.tolist(), strict=True):
        distances = [abs(Fraction(value) - Fraction(entry)) for entry in table]
        assert code == distances.index(min(distances))


@pytest.mark.parametrize("bits", [4, 8])
def test_integers_are_twos_complement(bits):
    codes = torch.arange(2**bits)
    values = f.decode_int(codes, bits)
    wanted = codes.to(torch.int8) if bits == 8 else ((codes << 4).to(torch.int8) >> 4)
    assert torch.equal(values, wanted.float())
    largest = 2 ** (bits - 1) - 1
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 1000.0, -1000.0, largest, -largest])
    rounded = f.decode_int(f.encode_int(x, bits), bits)
    assert rounded.tolist() == [0, 2, 2, 0, -2, largest, -largest, largest, -largest]


# --- blocks -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weight():
    """Weights with outliers, rows of very different sizes, and a row of zeros."""
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(96, 512, generator=generator) * torch.logspace(-3, 1, 96)[:, None]
    w[::7, ::50] *= 20
    w[5] = 0
    return w


def test_nf4_as_bitsandbytes(weight):
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    ours = f.quantize(weight, f.NF4)
    assert torch.equal(ours.codes, packed.flatten())
    assert torch.equal(ours.scales, state.absmax)
    assert torch.equal(ours.dequantize(), bnb.dequantize_4bit(packed, state))
    assert ours.nbytes == packed.nbytes + state.absmax.nbytes


def test_nf4_double_quantization_beside_bitsandbytes(weight):
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
    ours = f.quantize(weight, f.NF4_DOUBLE)
    assert torch.equal(ours.codes, packed.flatten())
    error = (ours.dequantize() - weight).norm()
    assert error < 1.02 * (bnb.dequantize_4bit(packed, state) - weight).norm()
    assert error < 1.02 * (f.quantize(weight, f.NF4).dequantize() - weight).norm()
    theirs = packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes + state.offset.nbytes
    assert theirs <= ours.nbytes < theirs + 256  # ours fills up the last block of scales


def test_mxfp4_as_torchao(weight):
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    from torchao.prototype.mx_formats.kernels import unpack_uint4

    scales, packed = mx.to_mx(weight, torch.float4_e2m1fn_x2, 32)
    ours = f.quantize(weight, f.MXFP4)
    assert torch.equal(ours.scales, scales.view(torch.uint8).flatten())
    assert torch.equal(f.unpack_4bit(ours.codes), unpack_uint4(packed).flatten())
    theirs = mx.to_dtype(packed, scales, torch.float4_e2m1fn_x2, 32, torch.float32)
    assert same(ours.dequantize(), theirs)


def test_nvfp4_as_torchao(weight):
    nv = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    weight = weight[10:]  # the small rows: torchao keeps block scales out of E4M3's subnormals
    tensor_scale = nv.per_tensor_amax_to_scale(weight.abs().max())
    theirs = nv.NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=tensor_scale)
    ours = f.quantize(weight, f.NVFP4)
    assert torch.equal(ours.tensor_scale, tensor_scale)
    large = ours.block_scales() > tensor_scale * f.E4M3.smallest_normal
    assert large.float().mean() > 0.8
    assert torch.equal(ours.scales[large], theirs.scale.view(torch.uint8).flatten()[large])
    a, b = ours.dequantize().view(-1, 16)[large], theirs.dequantize(torch.float32).view(-1, 16)[large]
    agree = torch.isclose(a, b, rtol=1e-6, atol=0)  # the products of scales round in another order
    assert agree.float().mean() > 0.9999


@pytest.mark.parametrize("name", f.BLOCKS)
def test_each_weight_gets_the_nearest_code(name, weight):
    """Brute force in float64: no code of the table comes closer, given the block's scale."""
    ours = f.quantize(weight, f.BLOCKS[name])
    reference = f.quantize(weight, f.NF4) if name == "NF4 double" else ours  # codes are chosen before it
    scales = reference.block_scales().double()[:, None]
    blocks = weight.double().view(len(scales), -1)
    table = ours.format.table.double()
    table = table[table.isfinite()]
    codes = f.unpack_4bit(ours.codes) if ours.format.code_bits == 4 else ours.codes
    came = ours.format.table.double()[codes.int()].view(blocks.shape) * scales
    best = torch.full_like(blocks, torch.inf)
    for value in table:
        best = torch.minimum(best, (blocks - value * scales).abs())
    excess = (blocks - came).abs() - best
    assert (excess <= 1e-6 * blocks.abs().amax(dim=1, keepdim=True)).all()


@pytest.mark.parametrize("name", f.BLOCKS)
def test_zeros_and_codes_survive(name, weight):
    assert torch.equal(f.convert(torch.zeros(4, 512), name)[0], torch.zeros(4, 512))
    once, nbytes = f.convert(weight, name)
    assert once.shape == weight.shape and once.dtype == torch.float32 and once.isfinite().all()
    twice, again = f.convert(once, name)
    assert nbytes == again
    if name not in ("NF4 double", "NVFP4"):  # what is representable stays; there, the scales move a little
        assert torch.allclose(once, twice, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("name", f.BLOCKS)
def test_tiny_and_huge_weights(name):
    x = torch.tensor([1e-3, -1.0, 0.5, 0.25]).repeat(128)[None]
    for factor in (1e-30, 1e30):
        if name.startswith("INT") and factor > 1:
            with pytest.raises(ValueError, match="too large a scale"):
                f.convert(x * factor, name)
            continue
        values, _ = f.convert(x * factor, name)
        assert values.isfinite().all()
        if not name.startswith("INT"):  # an FP16 scale underflows to 0 instead
            assert ((values / factor - x).norm() / x.norm()) < 0.2


def test_bits_per_weight():
    bits = {name: format.bits_per_weight(512) for name, format in f.BLOCKS.items()}
    assert bits["NF4"] == bits["NVFP4"] == 4.5
    assert bits["MXFP4"] == bits["INT4"] == 4.25
    assert round(bits["NF4 double"], 3) == 4.127
    assert bits["INT8"] == 8 + 16 / 512 and bits["FP8 E4M3 row"] == 8 + 32 / 512
    w = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    for name, format in f.BLOCKS.items():
        once = {"NVFP4": 4, "NF4 double": 4}.get(name, 0)  # bytes that a tensor stores once
        assert f.convert(w, name)[1] - once == w.numel() * format.bits_per_weight(512) / 8
    for name, per_weight in (("FP32", 4), ("TF32", 4), ("BF16", 2), ("FP8 E4M3", 1), ("FP4 E2M1", 0.5)):
        assert f.convert(w, name)[1] == w.numel() * per_weight


def test_packing_four_bits():
    codes = torch.randint(0, 16, (3, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert f.pack_4bit(codes).shape == (3, 4)
    assert torch.equal(f.unpack_4bit(f.pack_4bit(codes)), codes)
    assert f.pack_4bit(torch.tensor([1, 2], dtype=torch.uint8)) == 0x12


# --- a whole model ------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True))  # fmt: skip


def test_converting_a_model_and_back(tiny_model):
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    matrices = {name: p for name, p in tiny_model.named_parameters() if p.dim() == 2}
    vectors = sum(p.nbytes for p in tiny_model.parameters() if p.dim() != 2)
    with f.converting(tiny_model) as put_weights_in:
        for name in f.FORMATS:
            result = put_weights_in(name)
            wanted = {key: f.convert(before[key], name) for key in matrices}
            assert all(torch.equal(matrices[key], values) for key, (values, _) in wanted.items())
            assert result.nbytes == vectors + sum(nbytes for _, nbytes in wanted.values())
            assert result.weights == sum(p.numel() for p in matrices.values())  # the tied embedding once
            lost = torch.cat([(values - before[key]).flatten() for key, (values, _) in wanted.items()])
            original = torch.cat([before[key].flatten() for key in matrices])
            assert result.error == pytest.approx((lost.norm() / original.norm()).item(), rel=1e-4)
            assert set(result.row()) == {"bits per weight", "MB", "weight error (%)"}
    after = tiny_model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_converting_gives_the_weights_back_after_an_error(tiny_model):
    before = tiny_model.model.embed_tokens.weight.clone()
    with pytest.raises(KeyboardInterrupt), f.converting(tiny_model) as put_weights_in:
        put_weights_in("FP4 E2M1")
        assert not torch.equal(before, tiny_model.model.embed_tokens.weight)
        raise KeyboardInterrupt
    assert torch.equal(before, tiny_model.model.embed_tokens.weight)


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call, error, message", [
    (lambda: f.decode(torch.ones(3), f.FP16), TypeError, "FP16 codes are integers, not torch.float32"),
    (lambda: f.encode(torch.ones(3, dtype=torch.float64), f.FP16), TypeError, "FP16 is made from .*float64"),
    (lambda: f.encode_e8m0(torch.ones(3, dtype=torch.int32)), TypeError, "E8M0 is made from .*int32"),
    (lambda: f.round_to(torch.tensor([1, torch.nan]), f.E2M1), ValueError, "no NaN, but 1 of 2"),
    (lambda: f.convert(torch.ones(2, 100), "MXFP4"), ValueError, "blocks of 32 do not divide rows of 100"),
    (lambda: f.convert(torch.tensor([[1, torch.inf] * 32]), "NF4"), ValueError, "32 of 64 weights are inf"),
    (lambda: f.convert(torch.ones(2, 64).int(), "NVFP4"), TypeError, "NVFP4 is made from"),
    (lambda: f.convert(torch.ones(0, 64), "NF4"), ValueError, "shape \\[0, 64\\]"),
    (lambda: f.convert(torch.ones(2, 64), "FP12"), ValueError, "no format 'FP12'; there are FP32, TF32"),
    (lambda: f.INT8.bits_per_weight(), ValueError, "pass row_length"),
    (lambda: f.value_table(f.TF32), ValueError, "TF32 would have 2\\*\\*19"),
])  # fmt: skip
def test_errors_say_what_to_do(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
