"""course_utils.merge.vectors: properties of LERP and SLERP; mpmath, scipy and mergekit as references."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial import geometric_slerp

from course_utils.merge import vectors

SHARES = st.floats(0, 1, allow_nan=False)
SHAPES = st.sampled_from([(2,), (7,), (1, 5), (3, 4), (2, 3, 4), (64,)])


@st.composite
def pairs(draw, dtype=torch.float32):
    """Two tensors of one shape, from nearly parallel to nearly antiparallel, of unlike lengths."""
    shape, seed = draw(SHAPES), draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    a, other = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    toward = draw(st.sampled_from([0.0, 0.5, -0.5, 2.0, -2.0, 5.0, -5.0]))
    b = toward * a + other
    lengths = [10.0 ** draw(st.integers(-6, 6)) for _ in range(2)]
    return (a * lengths[0]).to(dtype), (b * lengths[1]).to(dtype)


def by_mpmath(a, b, t, parallel=0.9995):
    """SLERP from its definition, in 60 decimal digits. Returns (numbers in float64, cosine)."""
    with mpmath.workdps(60):
        x, y = ([mpmath.mpf(v) for v in tensor.double().flatten().tolist()] for tensor in (a, b))
        norms = [mpmath.sqrt(mpmath.fsum(v * v for v in arrow)) for arrow in (x, y)]
        dot = mpmath.fsum(v * w for v, w in zip(x, y, strict=True)) / (norms[0] * norms[1])
        t = mpmath.mpf(t)
        if abs(dot) > parallel:
            weights = 1 - t, t
        else:
            angle = mpmath.acos(dot)
            weights = (mpmath.sin(s * angle) / mpmath.sin(angle) for s in (1 - t, t))
        weights = list(weights)
        mixed = [float(weights[0] * v + weights[1] * w) for v, w in zip(x, y, strict=True)]
    return torch.tensor(mixed, dtype=torch.float64).reshape(a.shape), float(dot)


def size(a, b):
    return max(a.double().norm().item(), b.double().norm().item())


def assert_near(result, expected, a, b, error):
    assert result.shape == expected.shape
    apart = (result.double() - expected.double()).norm().item()
    assert apart <= error * size(a, b), (apart, size(a, b))


@settings(max_examples=300, deadline=None)
@given(pairs(), SHARES)
def test_slerp_agrees_with_sixty_digits(pair, t):
    a, b = pair
    expected, cosine = by_mpmath(a, b, t)
    assume(abs(abs(cosine) - 0.9995) > 1e-6)  # at the threshold itself, either way is right
    # Near antiparallel sin(A) is small: 0.03 at the threshold. It magnifies the cosine's last digit.
    assert_near(vectors.slerp(a, b, t), expected, a, b, 3e-6 / (1 - min(cosine**2, 0.999)) ** 1.5)
    assert vectors.cosine(a, b) == pytest.approx(cosine, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(pairs(torch.float64), SHARES)
def test_float64_keeps_its_digits(pair, t):
    a, b = pair
    expected, cosine = by_mpmath(a, b, t)
    assume(abs(abs(cosine) - 0.9995) > 1e-9)
    result = vectors.slerp(a, b, t)
    assert result.dtype == torch.float64
    assert_near(result, expected, a, b, 1e-10)


@settings(max_examples=200, deadline=None)
@given(pairs(), SHARES)
def test_arrows_of_length_one_agree_with_scipy(pair, t):
    a, b = (v.double().flatten() / v.double().norm() for v in pair)
    cosine = torch.dot(a, b).item()
    assume(abs(cosine) < 0.9994)
    expected = torch.from_numpy(geometric_slerp(a.numpy(), b.numpy(), np.float64(t)))
    result = vectors.slerp(a, b, t)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-9)
    assert result.norm().item() == pytest.approx(1, abs=1e-9)  # the arc never leaves the sphere
    turned = math.acos(max(-1, min(1, torch.dot(a, result).item())))
    assert turned == pytest.approx(t * math.acos(cosine), abs=1e-6)  # at constant speed


@settings(max_examples=200, deadline=None)
@given(pairs(), SHARES)
def test_slerp_agrees_with_mergekit(pair, t):
    theirs = pytest.importorskip("mergekit.merge_methods.slerp").slerp
    a, b = pair
    assume(a.norm() > 1e-6 and b.norm() > 1e-6)  # mergekit takes shorter ones for zero
    cosine = vectors.cosine(a, b)
    assume(abs(abs(cosine) - 0.9995) > 1e-6)
    expected = theirs(torch.tensor([t], dtype=torch.float64), a[None], b[None])[0]
    assert_near(vectors.slerp(a, b, t), expected, a, b, 3e-6 / (1 - min(cosine**2, 0.999)) ** 1.5)


@settings(max_examples=200, deadline=None)
@given(pairs(), SHARES)
def test_ends_are_exact_and_both_directions_are_one_way(pair, t):
    a, b = pair
    for way in (vectors.lerp, vectors.slerp):
        assert torch.equal(way(a, b, 0.0), a) and torch.equal(way(a, b, 1.0), b)
        spread = 1 / (1 - min(vectors.cosine(a, b) ** 2, 0.999))
        assert_near(way(a, b, t), way(b, a, 1 - t), a, b, 1e-5 * spread)


@settings(max_examples=100, deadline=None)
@given(pairs(torch.bfloat16), SHARES)
def test_bfloat16_is_rounded_once_at_the_end(pair, t):
    a, b = pair
    cosine = vectors.cosine(a, b)
    assume(abs(abs(cosine) - 0.9995) > 1e-6)
    result = vectors.slerp(a, b, t)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, vectors.slerp(a.float(), b.float(), t).bfloat16())


def test_a_quarter_circle():
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    half = vectors.slerp(a, b, 0.5)
    torch.testing.assert_close(half, torch.full((2,), 3 / math.sqrt(2)))
    torch.testing.assert_close(vectors.lerp(a, b, 0.5), torch.full((2,), 1.5))


@settings(max_examples=100, deadline=None)
@given(pairs(), SHARES, st.sampled_from([1.0, 2.0, 1 + 1e-4, -1.0, -3.0, -1 - 1e-4]))
def test_parallel_and_antiparallel_are_linear(pair, t, factor):
    a = pair[0]
    result = vectors.slerp(a, factor * a, t)
    assert torch.equal(result, vectors.lerp(a, factor * a, t))
    assert torch.isfinite(result).all()


@settings(max_examples=50, deadline=None)
@given(pairs(), SHARES)
def test_a_zero_tensor_is_merged_linearly(pair, t):
    a, zero = pair[0], torch.zeros_like(pair[0])
    assert torch.equal(vectors.slerp(a, zero, t), vectors.lerp(a, zero, t))
    assert torch.equal(vectors.slerp(zero, a, t), vectors.lerp(zero, a, t))
    assert torch.equal(vectors.slerp(zero, zero, t), zero)
    assert math.isnan(vectors.cosine(a, zero))


def test_rounding_beyond_one_is_clamped():
    generator = torch.Generator().manual_seed(0)
    above = 0
    for _ in range(200):  # one of these has a cosine of 1.0000001 before the clamp
        a = torch.randn(1000, generator=generator)
        b = a * 3
        above += (torch.dot(a / a.norm(), b / b.norm()) > 1).item()
        assert torch.isfinite(vectors.slerp(a, b, 0.3, parallel=1.0)).all()
        assert vectors.cosine(a, b) <= 1
    assert above


def test_strided_tensors_and_single_numbers():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(6, 4, generator=generator), torch.randn(4, 6, generator=generator).T
    torch.testing.assert_close(vectors.slerp(a, b, 0.3), vectors.slerp(a, b.contiguous(), 0.3))
    torch.testing.assert_close(vectors.slerp(a[:, ::2], b[:, ::2], 0.3),
                               vectors.slerp(a[:, ::2].clone(), b[:, ::2].clone(), 0.3))  # fmt: skip
    assert vectors.slerp(torch.tensor(1.0), torch.tensor(3.0), 0.25).item() == 1.5
    assert vectors.slerp(torch.empty(0, 3), torch.empty(0, 3), 0.5).shape == (0, 3)


def test_nan_is_not_hidden():
    a = torch.tensor([1.0, math.nan])
    assert vectors.slerp(a, torch.ones(2), 0.5).isnan().any()


def test_arguments_stay_as_they_are():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([2.0, -1.0])
    vectors.slerp(a, b, 0.5), vectors.lerp(a, b, 0.5)
    assert a.tolist() == [1, 2] and b.tolist() == [2, -1]


@pytest.mark.parametrize("function", [vectors.lerp, vectors.slerp, lambda a, b, t: vectors.cosine(a, b)])
def test_shapes_that_would_broadcast_are_refused(function):
    with pytest.raises(ValueError, match=r"shapes differ: \[3\] and \[1\]"):
        function(torch.ones(3), torch.ones(1), 0.5)
    with pytest.raises(ValueError, match="shapes differ"):
        function(torch.ones(2, 3), torch.ones(3, 2), 0.5)
