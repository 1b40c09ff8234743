"""course_utils.quantize.hqq: bounds as properties; torchao's and hqq's own solver beside it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.quantize import affine, hqq
from course_utils.quantize.affine import Scheme


@st.composite
def weights_and_schemes(draw):
    rows, width = draw(st.integers(1, 6)), draw(st.sampled_from([8, 16, 32]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(rows, width, generator=generator) * 10.0 ** draw(st.integers(-4, 3))
    kinds = ["random", "zero row", "constant row", "one outlier", "all zero", "positive"]
    kind = draw(st.sampled_from(kinds))
    if kind == "zero row":
        weight[0] = 0
    elif kind == "constant row":
        weight[0] = draw(st.sampled_from([3.25, -0.1]))
    elif kind == "one outlier":
        weight[0, 0] = weight.abs().max() * 10
    elif kind == "all zero":
        weight.zero_()
    elif kind == "positive":
        weight = weight.abs() + 5 * weight.abs().max()
    return weight, Scheme(draw(st.integers(2, 8)), draw(st.sampled_from([None, 4, 8])), symmetric=False,
                          scale_dtype=draw(st.sampled_from([torch.float32, torch.float16])))


def mean_error(weight, result):
    return affine.to_groups(affine.dequantize(result) - weight, result.scheme).abs().mean(dim=-1)


@settings(max_examples=200, deadline=None)
@given(weights_and_schemes())
def test_never_worse_than_where_it_starts(case):
    weight, scheme = case
    start, end = hqq.hqq_quantize(weight, scheme, iterations=0), hqq.hqq_quantize(weight, scheme)
    assert end.q.dtype == torch.uint8 and end.q.max().item() < 2**scheme.bits
    assert torch.isfinite(end.zero).all() and (end.scale > 0).all()
    assert torch.equal(start.scale, end.scale)
    assert (mean_error(weight, end) <= mean_error(weight, start) * (1 + 1e-5) + 1e-30).all()
    # Where it starts is a plain grid from min to max: half a step, and what storing the zero point adds.
    step = start.scale.unsqueeze(-1)
    slack = 1e-3 * start.zero.abs().unsqueeze(-1) * step + 1e-2 * step * 2**scheme.bits
    error = (affine.to_groups(affine.dequantize(start) - weight, scheme)).abs()
    normal = step >= torch.finfo(scheme.scale_dtype).smallest_normal  # below, FP16 itself is coarse
    assert (error <= step / 2 + slack)[normal.expand_as(error)].all()


@settings(max_examples=60, deadline=None)
@given(weights_and_schemes())
def test_stored_numbers_are_exact_in_their_dtype(case):
    weight, scheme = case
    result = hqq.hqq_quantize(weight, scheme)
    for stored in (result.scale, result.zero):
        assert torch.equal(stored, stored.to(scheme.scale_dtype).float())


@pytest.mark.parametrize("p, beta", [(0.7, 10.0), (0.5, 4.0), (1.0, 2.0)])
def test_shrink_nearly_minimises_its_objective(p, beta):
    """Brute force over a fine grid. For p < 1 the formula approximates: compare the objective, not e."""
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)
    grid = torch.linspace(-2.5, 2.5, 20001, dtype=torch.float64)

    def objective(e):
        return e.abs().pow(p) + beta / 2 * (e - x.unsqueeze(-1)).square()

    # The reference formula leaves out the factor p of the derivative, which only rescales beta.
    best = objective(grid.expand(41, -1)).amin(dim=-1)
    found = objective(hqq.shrink(x, beta, p).unsqueeze(-1)).squeeze(-1)
    assert (found - best).max() < 0.15
    if p == 1:
        torch.testing.assert_close(found, best, atol=1e-6, rtol=1e-6)


def test_shrink_by_hand():
    x = torch.tensor([-3.0, -0.01, 0.0, 0.01, 3.0])
    expected = 3 - 3**-0.3 / 10
    torch.testing.assert_close(hqq.shrink(x, 10.0), torch.tensor([-expected, 0, 0, 0, expected]))


def test_a_grid_with_a_minimum_is_restored_exactly():
    """Q4_1 weights (step * q + minimum) lie on such a grid; a whole zero point cannot reach them."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(0, 16, (64, 32), generator=generator)
    q[:, 0], q[:, 1] = 0, 15
    step = (torch.rand(64, 1, generator=generator) + 0.5).half().float()
    weight = step * q - step * (4 + torch.rand(64, 1, generator=generator))
    scheme = Scheme(4, 32, symmetric=False, scale_dtype=torch.float32)
    torch.testing.assert_close(hqq.hqq_fake_quantize(weight, scheme), weight, rtol=0, atol=1e-4)
    assert (affine.fake_quantize(weight, scheme) - weight).abs().mean() > 1e-2


def library_error(weight, bits, group):
    """Mean |error| of torchao's copy of the reference solver."""
    primitives = pytest.importorskip("torchao.quantization.quant_primitives")
    q, scale, zero, _ = primitives._choose_qparams_and_quantize_affine_hqq(
        weight, nbits=bits, group_size=group, axis=1, compute_dtype=torch.float32, device="cpu",
        raw_output=True)
    restored = (q.reshape(len(weight), -1, group) - zero.unsqueeze(-1)) * scale.unsqueeze(-1)
    return (restored.reshape(weight.shape) - weight).abs().mean().item()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, 64])
def test_no_worse_than_torchaos_hqq(bits, group):
    weight = torch.randn(96, 192, generator=torch.Generator().manual_seed(bits)) * 0.05
    weight[::7, 3] *= 8
    scheme = Scheme(bits, group, symmetric=False, scale_dtype=torch.float32)
    ours = (hqq.hqq_fake_quantize(weight, scheme) - weight).abs().mean().item()
    plain = (affine.fake_quantize(weight, scheme) - weight).abs().mean().item()
    theirs = library_error(weight, bits, group)
    assert ours <= theirs * 1.001 and ours < plain
    assert theirs <= ours * 1.05  # and close to it: it is the same method


def test_close_to_the_hqq_package():
    quantizer = pytest.importorskip("hqq.core.quantize").Quantizer
    weight = torch.randn(96, 192, generator=torch.Generator().manual_seed(0)) * 0.05
    for bits in (2, 3, 4):
        packed, meta = quantizer.quantize(weight, nbits=bits, group_size=64, axis=1, bitpack=False,
                                          device="cpu")
        theirs = (quantizer.dequantize(packed, meta | {"compute_dtype": torch.float32}) - weight).abs().mean()
        scheme = Scheme(bits, 64, symmetric=False, scale_dtype=torch.float32)
        ours = (hqq.hqq_fake_quantize(weight, scheme) - weight).abs().mean()
        assert 0.95 * theirs < ours <= 1.001 * theirs


def test_strides_dtypes_and_input_left_alone():
    weight = torch.randn(64, 16, generator=torch.Generator().manual_seed(2))
    scheme = Scheme(4, 16, symmetric=False)
    before = weight.clone()
    assert torch.equal(hqq.hqq_fake_quantize(weight.t(), scheme),
                       hqq.hqq_fake_quantize(weight.t().contiguous(), scheme))
    assert torch.equal(weight, before)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert hqq.hqq_fake_quantize(weight.to(dtype), scheme).dtype == dtype


def test_bits_per_weight():
    assert hqq.hqq_bits_per_weight(Scheme(4, 64, symmetric=False), 576) == pytest.approx(4.5)
    assert hqq.hqq_bits_per_weight(Scheme(3, None, symmetric=False), 576) == pytest.approx(3 + 32 / 576)


def test_wrong_input():
    with pytest.raises(ValueError, match="symmetric=False"):
        hqq.hqq_quantize(torch.ones(2, 4), Scheme(4))
    with pytest.raises(ValueError, match="symmetric=False"):
        hqq.hqq_quantize(torch.ones(2, 4), Scheme(4, "tensor", symmetric=False))
    with pytest.raises(TypeError, match="floating-point"):
        hqq.hqq_quantize(torch.ones(2, 4, dtype=torch.long), Scheme(4, symmetric=False))
    with pytest.raises(ValueError, match="does not fit into torch.float16"):
        hqq.hqq_quantize(torch.randn(2, 4) * 1e7, Scheme(4, symmetric=False))
    with pytest.raises(ValueError, match="group 3 does not divide"):
        hqq.hqq_quantize(torch.ones(2, 4), Scheme(4, 3, symmetric=False))
