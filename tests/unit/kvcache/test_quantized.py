"""Rounded caches stay within their bound."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.kvcache import decoding, quantized
from course_utils.kvcache.layers import make_cache
from course_utils.kvcache.quantized import QuantizedLayer
from tests.unit.kvcache.common import assert_refused, tokens


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([2, 4, 8]), st.sampled_from([-1, -2]), st.floats(1e-3, 1e3),
       st.floats(-50, 50))
def test_rounding_errs_by_half_a_step(seed, bits, dim, size, offset):
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(seed)) * size + offset
    rounded = quantized.round_to_bits(x, bits, dim)
    error = (quantized.restore(rounded, torch.float32) - x).abs()
    low, scale = rounded.low.float(), rounded.scale.float()
    float16 = low.abs() * 2**-11 + scale * 2**bits * 2**-11 + 2**-24 * 2**bits
    assert (error <= scale / 2 + float16 + 1e-6 * x.abs()).all()
    assert rounded.codes.numel() == x.numel() * bits // 8


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([2, 4, 8]))
def test_packing_is_lossless(seed, bits):
    codes = torch.randint(0, 2**bits, (3, 2, 16), generator=torch.Generator().manual_seed(seed)).byte()
    packed = quantized.pack(codes, bits)
    assert packed.shape[-1] == 16 * bits // 8 and torch.equal(quantized.unpack(packed, bits), codes)


def test_constant_numbers_come_back_exactly():
    x = torch.full((1, 1, 2, 8), 3.5)
    assert torch.equal(quantized.restore(quantized.round_to_bits(x, 2, -1), torch.float32), x)


def test_a_channel_far_from_zero_keeps_its_levels():
    """A grid that must contain 0 would have a step of 10 / 15 here."""
    x = torch.linspace(8, 10, 32).view(1, 1, 32, 1).repeat(1, 1, 1, 2)
    error = (quantized.restore(quantized.round_to_bits(x, 4, -2), torch.float32) - x).abs().max()
    assert error <= 2 / 15 / 2 + 1e-2


def test_more_bits_come_closer_to_the_exact_logits(model):
    ids = tokens()
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
    errors = [
        (decoding.read(model, ids, make_cache(model.config, QuantizedLayer, bits=bits, group=4, recent=4))
         - expected).abs().mean().item()
        for bits in (2, 4, 8)
    ]  # fmt: skip
    assert errors[0] > 3 * errors[1] > 9 * errors[2] > 0
    assert errors[2] < 0.01 * expected.std()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.sampled_from([1, 3, 4]), st.integers(0, 6),
       st.sampled_from(["channel", "token"]), st.sampled_from([2, 8]))
def test_quantized_layer_keeps_the_recent_window(passes, group, recent, by, bits):
    """Whatever the sizes of the passes: the newest tokens exact, the older ones within a step, none lost."""
    generator = torch.Generator().manual_seed(0)
    layer = QuantizedLayer(bits=bits, group=group, recent=recent, keys_by=by, values_by=by)
    whole = torch.randn(2, 1, 2, sum(passes), 8, generator=generator).double()
    seen = 0
    for n in passes:
        new = whole[..., seen : seen + n, :]
        keys, values = layer.update(new[0], new[1])
        seen += n
        assert keys.shape == values.shape == (1, 2, seen, 8)
        exact = min(seen, n + recent)
        for got, expected in ((keys, whole[0]), (values, whole[1])):
            assert torch.equal(got[:, :, seen - exact :], expected[:, :, seen - exact : seen])
            assert (got - expected[:, :, :seen]).abs().max() <= 8 / (2**bits - 1)
    assert layer.get_seq_length() == seen
    assert min(seen, recent) <= layer.keys.shape[2] < recent + group


def test_rounded_tokens_are_never_rounded_again():
    layer = QuantizedLayer(bits=2, group=2, recent=0)
    generator = torch.Generator().manual_seed(0)
    layer.update(*torch.randn(2, 1, 1, 2, 8, generator=generator))
    before, _ = layer.update(*torch.randn(2, 1, 1, 2, 8, generator=generator))
    after, _ = layer.update(*torch.randn(2, 1, 1, 2, 8, generator=generator))
    assert torch.equal(after[:, :, :2], before[:, :, :2])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_bits_per_number_are_those_stored(bits):
    layer = QuantizedLayer(bits=bits, group=32, recent=0)
    layer.update(*torch.randn(2, 1, 3, 64, 16))
    stored = sum(t.nbytes for r in (layer.old_keys, layer.old_values) for t in r.tensors())
    assert stored * 8 / (2 * 3 * 64 * 16) == quantized.bits_per_number(bits, 32, 16)


def test_beams_reorder_what_is_rounded():
    layer = QuantizedLayer(bits=8, group=2, recent=1)
    states = torch.randn(2, 3, 2, 5, 8)
    layer.update(*states)
    layer.reorder_cache(torch.tensor([2, 2, 0]))
    keys, _ = layer.update(*torch.zeros(2, 3, 2, 1, 8))
    assert (keys[:, :, :5] - states[0][[2, 2, 0]]).abs().max() < 0.05


def test_bad_input_is_refused_in_one_line():
    x = torch.ones(1, 1, 2, 6)
    assert_refused({
        "bits must be 2, 4 or 8": lambda: QuantizedLayer(bits=3),
        "group must be": lambda: QuantizedLayer(group=0),
        "recent must be": lambda: QuantizedLayer(recent=1.5),
        "keys_by must be": lambda: QuantizedLayer(keys_by="head"),
        "use 8 bits": lambda: quantized.round_to_bits(x, 2, -1),
        "NaN, infinite": lambda: quantized.round_to_bits(x * float("nan"), 4, -1),
        "beyond float16": lambda: quantized.round_to_bits(x * 1e6, 4, -1),
    })
