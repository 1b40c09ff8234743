"""course_utils.quantize.affine: bounds as properties, torch's own kernels as the independent reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.quantize import affine
from course_utils.quantize.affine import Scheme


@st.composite
def weights_and_schemes(draw):
    """Random matrices, some rows all zero or constant, some far from zero, with every kind of scheme."""
    group = draw(st.sampled_from([None, "tensor", 1, 4, 8]))
    rows, width = draw(st.integers(1, 6)), draw(st.sampled_from([8, 16, 24]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(rows, width, generator=generator) * 10.0 ** draw(st.integers(-4, 3))
    weight += draw(st.sampled_from([0.0, 0.0, 1.0, -50.0]))
    kinds = ["random", "zero row", "constant row", "zero group", "one outlier", "all zero"]
    kind = draw(st.sampled_from(kinds))
    if kind == "zero row":
        weight[0] = 0
    elif kind == "constant row":
        weight[0] = draw(st.sampled_from([3.25, -0.1]))
    elif kind == "zero group":
        weight[:, :4] = 0
    elif kind == "one outlier":
        weight[0, 0] = 1e4
    elif kind == "all zero":
        weight.zero_()
    scheme = Scheme(bits=draw(st.integers(2, 8)), group=group, symmetric=draw(st.booleans()),
                    full_range=draw(st.booleans()),
                    scale_dtype=draw(st.sampled_from([torch.float32, torch.float16])))
    return weight, scheme


@settings(max_examples=300, deadline=None)
@given(weights_and_schemes())
def test_error_is_at_most_half_a_step_inside_the_range(case):
    weight, scheme = case
    result = affine.quantize(weight, scheme)
    assert result.q.min() >= scheme.qmin and result.q.max() <= scheme.qmax
    assert (result.scale > 0).all() and torch.equal(result.zero, result.zero.round())
    values = affine.to_groups(weight, scheme)
    error = (affine.to_groups(affine.dequantize(result), scheme) - values).abs()
    scale, zero = result.scale.unsqueeze(-1), result.zero.unsqueeze(-1)
    # Half a step, and the rounding of float32 itself.
    bound = scale / 2 + 1e-6 * values.abs() + 1e-6 * scale * 2**scheme.bits
    inside = (values >= scale * (scheme.qmin - 0.5 - zero)) & (values <= scale * (scheme.qmax + 0.5 - zero))
    assert (error <= bound)[inside].all()
    if scheme.scale_dtype == torch.float32:  # a scale that was not rounded covers every value
        assert (error <= bound).all()


@settings(max_examples=100, deadline=None)
@given(weights_and_schemes())
def test_round_trip_is_idempotent_and_zero_stays_zero(case):
    weight, scheme = case
    weight[0, 0] = 0.0
    once = affine.fake_quantize(weight, scheme)
    assert once[0, 0] == 0
    result = affine.quantize(weight, scheme)
    scale, zero = result.scale.unsqueeze(-1), result.zero.unsqueeze(-1)
    again = affine.to_integers(affine.to_groups(once, scheme), scale, zero, scheme)
    assert torch.equal(again.reshape(weight.shape).to(result.q.dtype), result.q)


@settings(max_examples=60, deadline=None)
@given(weights_and_schemes())
def test_clip_search_is_never_worse(case):
    weight, scheme = case
    plain = affine.to_groups(affine.fake_quantize(weight, scheme) - weight, scheme).square().sum(-1)
    clipped = affine.to_groups(affine.fake_quantize(weight, scheme, clip_search=True) - weight, scheme)
    assert (clipped.square().sum(-1) <= plain * (1 + 1e-5) + 1e-30).all()


def test_clip_search_helps_where_one_value_stands_out():
    weight = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    weight[:, 0] = 8.0
    scheme = Scheme(bits=3)
    plain = (affine.fake_quantize(weight, scheme) - weight).square().sum()
    clipped = (affine.fake_quantize(weight, scheme, clip_search=True) - weight).square().sum()
    assert clipped < 0.8 * plain


def assert_same_integers(ours, theirs, position):
    """Integers must agree, except where `position` lies within 1e-3 of a tie: torch multiplies by 1/scale."""
    near_tie = ((position - position.floor()) - 0.5).abs() < 1e-3
    assert torch.equal(ours[~near_tie], theirs[~near_tie])
    assert (ours - theirs).abs().max() <= 1


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_per_channel_equals_torch(bits, symmetric):
    weight = torch.randn(17, 48, generator=torch.Generator().manual_seed(bits)) + 0.3
    scheme = Scheme(bits, symmetric=symmetric, scale_dtype=torch.float32)
    result = affine.quantize(weight, scheme)
    scale, zero = result.scale[:, 0], result.zero[:, 0]
    theirs = torch.fake_quantize_per_channel_affine(weight, scale, zero.int(), 0, scheme.qmin, scheme.qmax)
    integers = theirs / scale[:, None] + zero[:, None]
    assert_same_integers(result.q.float(), integers.round(), weight / scale[:, None])


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_per_tensor_equals_torch(bits, symmetric):
    weight = torch.randn(9, 32, generator=torch.Generator().manual_seed(bits)) * 3
    scheme = Scheme(bits, group="tensor", symmetric=symmetric, scale_dtype=torch.float32)
    result = affine.quantize(weight, scheme)
    scale, zero = result.scale.item(), int(result.zero.item())
    theirs = torch.fake_quantize_per_tensor_affine(weight, scale, zero, scheme.qmin, scheme.qmax)
    assert_same_integers(result.q.float(), (theirs / scale + zero).round(), weight / scale)


@pytest.mark.parametrize("bits", [4, 8])
def test_parameters_equal_torch_observers(bits):
    """torch's MinMax observers choose the same scale and zero point (full-range symmetric, affine)."""
    from torch.ao.quantization.observer import MinMaxObserver

    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(bits))
    for symmetric, qscheme, dtype in [(False, torch.per_tensor_affine, torch.quint8),
                                      (True, torch.per_tensor_symmetric, torch.qint8)]:
        scheme = Scheme(bits, "tensor", symmetric, scale_dtype=torch.float32)
        observer = MinMaxObserver(dtype=dtype, qscheme=qscheme, quant_min=scheme.qmin, quant_max=scheme.qmax)
        observer(weight)
        scale, zero = observer.calculate_qparams()
        ours = affine.quantize(weight, scheme)
        torch.testing.assert_close(ours.scale.flatten(), scale.flatten(), rtol=1e-6, atol=0)
        assert ours.zero.item() == zero.item()


def test_group_equals_each_slice_alone():
    weight = torch.randn(6, 96, generator=torch.Generator().manual_seed(1))
    for symmetric in (True, False):
        whole = affine.fake_quantize(weight, Scheme(4, 32, symmetric))
        parts = [affine.fake_quantize(part, Scheme(4, None, symmetric)) for part in weight.split(32, dim=1)]
        assert torch.equal(whole, torch.cat(parts, dim=1))


def test_strides_and_dtypes():
    weight = torch.randn(64, 12, generator=torch.Generator().manual_seed(2))
    scheme = Scheme(4, 16)
    assert torch.equal(affine.fake_quantize(weight.t(), scheme),
                       affine.fake_quantize(weight.t().contiguous(), scheme))
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert affine.fake_quantize(weight.t().to(dtype), scheme).dtype == dtype
    before = weight.clone()
    affine.quantize(weight, Scheme(4))
    assert torch.equal(weight, before)


def test_stored_scales_are_exact_in_their_dtype():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(3))
    for dtype in (torch.float16, torch.bfloat16):
        scale = affine.quantize(weight, Scheme(4, 16, scale_dtype=dtype)).scale
        assert torch.equal(scale, scale.to(dtype).float())


def test_symmetric_grids():
    row = torch.tensor([[-1.0, 1.0, 0.2, 0.0]])
    assert affine.absmax_scale(row, 4).item() == pytest.approx(1 / 7.5)
    assert affine.absmax_scale(row, 4, full_range=False).item() == pytest.approx(1 / 7)
    assert affine.quantize(row, Scheme(4)).q.tolist() == [[-8, 7, 2, 0]]
    assert affine.quantize(row, Scheme(4, full_range=False)).q.tolist() == [[-7, 7, 1, 0]]


@pytest.mark.parametrize("scheme, expected", [
    (Scheme(4, 64), 4.25), (Scheme(4, 32), 4.5), (Scheme(4, 64, symmetric=False), 4.3125),
    (Scheme(8), 8 + 16 / 576), (Scheme(4, 64, scale_dtype=torch.float32), 4.5),
])
def test_bits_per_weight(scheme, expected):
    assert affine.bits_per_weight(scheme, 576) == pytest.approx(expected)


def test_bits_per_weight_of_a_tensor():
    assert affine.bits_per_weight(Scheme(4, "tensor"), 576, rows=192) == pytest.approx(4 + 16 / (576 * 192))
    with pytest.raises(ValueError, match="give rows"):
        affine.bits_per_weight(Scheme(4, "tensor"), 576)


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 4.0, True, "4", None])
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match="bits must be an integer from 2 to 8"):
        Scheme(bits)


@pytest.mark.parametrize("group", [0, -1, 2.5, "row", True])
def test_bad_group(group):
    with pytest.raises(ValueError, match="group must be a positive integer"):
        Scheme(4, group)


def test_group_that_does_not_divide():
    with pytest.raises(ValueError, match="group 128 does not divide the width 576: use 8, 16, 32, 64"):
        affine.quantize(torch.ones(2, 576), Scheme(4, 128))
    with pytest.raises(ValueError, match="group 128 does not divide the width 576"):
        affine.bits_per_weight(Scheme(4, 128), 576)
    with pytest.raises(ValueError, match="use 577"):
        affine.quantize(torch.ones(2, 577), Scheme(4, 64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf(bad):
    weight = torch.ones(2, 4)
    weight[1, 2] = bad
    with pytest.raises(ValueError, match="holds 1 NaN or infinite"):
        affine.quantize(weight, Scheme(4))


def test_wrong_input():
    with pytest.raises(TypeError, match="floating-point tensor, got torch.int64"):
        affine.quantize(torch.ones(2, 4, dtype=torch.long), Scheme(4))
    with pytest.raises(TypeError, match="got list"):
        affine.quantize([[1.0]], Scheme(4))
    with pytest.raises(ValueError, match=r"matrix \[out, in\], got shape \[4\]"):
        affine.quantize(torch.ones(4), Scheme(4))
    with pytest.raises(ValueError, match="non-empty"):
        affine.quantize(torch.ones(0, 4), Scheme(4))
    with pytest.raises(ValueError, match="does not fit into torch.float16"):
        affine.quantize(torch.full((2, 4), 1e6), Scheme(4))
    with pytest.raises(ValueError, match="steps must be"):
        affine.search_clip(torch.ones(1, 4), Scheme(4), steps=0)
