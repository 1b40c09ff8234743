"""Codes that share a scale against bitsandbytes and torchao."""

import bitsandbytes.functional as bnb
import pytest
import torch

from course_utils import formats as f
from tests.unit.formats.common import same


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


@pytest.mark.parametrize("call, error, message", [
    (lambda: f.convert(torch.ones(2, 100), "MXFP4"), ValueError, "blocks of 32 do not divide rows of 100"),
    (lambda: f.convert(torch.tensor([[1, torch.inf] * 32]), "NF4"), ValueError, "32 of 64 weights are inf"),
    (lambda: f.convert(torch.ones(2, 64).int(), "NVFP4"), TypeError, "NVFP4 is made from"),
    (lambda: f.convert(torch.ones(0, 64), "NF4"), ValueError, "shape \\[0, 64\\]"),
    (lambda: f.INT8.bits_per_weight(), ValueError, "pass row_length"),
])  # fmt: skip
def test_errors_say_what_to_do(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
