"""Exact caches equal no cache; a sliding window equals the windowed model."""

import pytest
import torch
from transformers import StaticCache

from course_utils import costs
from course_utils.kvcache import decoding, layers, sizes
from course_utils.kvcache.layers import DynamicLayer, SlidingWindowLayer, StaticLayer, make_cache
from course_utils.kvcache.quantized import QuantizedLayer
from tests.unit.kvcache.common import assert_refused, tiny_llama, tokens

EXACT = {
    "dynamic": (DynamicLayer, {}),
    "static": (StaticLayer, {"max_tokens": 40}),
    "window as long as the text": (SlidingWindowLayer, {"window": 40}),
    "nothing old enough to be rounded": (QuantizedLayer, {"recent": 40, "bits": 8}),
}
each_exact = pytest.mark.parametrize("layer, arguments", EXACT.values(), ids=EXACT)
OTHERS = [(SlidingWindowLayer, {"window": 6, "sinks": 2}),
          (QuantizedLayer, {"recent": 4, "group": 4, "bits": 4})]


@each_exact
@pytest.mark.parametrize("chunk", [1, 5, 24])
def test_cached_logits_equal_uncached(model, layer, arguments, chunk):
    ids = tokens(batch=2)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
    got = decoding.read(model, ids, make_cache(model.config, layer, **arguments), chunk)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@each_exact
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_text_is_that_of_generate(layer, arguments, implementation):
    model, ids = tiny_llama(implementation=implementation), tokens(n=7)
    expected = model.generate(ids, max_new_tokens=20, do_sample=False)
    assert torch.equal(decoding.greedy(model, ids, 20), expected)
    first, second = (make_cache(model.config, layer, **arguments) for _ in range(2))
    assert torch.equal(decoding.greedy(model, ids, 20, first), expected)
    theirs = model.generate(ids, max_new_tokens=20, do_sample=False, past_key_values=second)
    assert torch.equal(theirs, expected)


@each_exact
def test_padded_batches_and_beams_work(model, layer, arguments):
    ids = tokens(batch=2, n=6)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0  # the second prompt is padded on the left
    for options in ({}, {"num_beams": 3}):
        options |= {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        expected = model.generate(ids, **options)
        cache = make_cache(model.config, layer, **arguments)
        assert torch.equal(model.generate(ids, past_key_values=cache, **options), expected)


@pytest.mark.parametrize("layer, arguments", [*EXACT.values(), *OTHERS])
def test_a_cache_can_be_used_again_after_reset(model, layer, arguments):
    cache = make_cache(model.config, layer, **arguments)
    first = decoding.greedy(model, tokens(n=9), 8, cache)
    assert cache.get_seq_length() == 16  # nobody has read the last token
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(decoding.greedy(model, tokens(n=9), 8, cache), first)


def test_tokens_can_be_taken_back_from_a_dynamic_cache(model):
    cache = make_cache(model.config, DynamicLayer)
    ids = tokens(n=12)
    decoding.read(model, ids, cache, 12)
    cache.crop(-4)
    assert cache.get_seq_length() == 8
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits[:, 8:]
    torch.testing.assert_close(decoding.read(model, ids[:, 8:], cache), expected, rtol=1e-9, atol=1e-9)


def test_a_static_cache_takes_its_memory_at_once_and_keeps_it(model):
    ours = make_cache(model.config, StaticLayer, max_tokens=40)
    theirs = StaticCache(config=model.config, max_cache_len=40)
    assert sizes.stored_bytes(ours) == 0
    for cache in (ours, theirs):
        decoding.read(model, tokens(n=3), cache, 3)
        assert sizes.stored_bytes(cache) == 40 * costs.kv_bytes_per_token(model.config, 64)
    address = ours.layers[0].keys.data_ptr()
    decoding.read(model, tokens(n=30), ours, 1)
    ours.reset()
    assert ours.layers[0].keys.data_ptr() == address


@pytest.mark.parametrize("window, sinks", [(1, 0), (2, 0), (6, 0), (6, 2), (1, 3), (30, 4)])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_sliding_window_is_the_windowed_model(window, sinks, implementation):
    model, ids = tiny_llama(implementation=implementation), tokens()
    mask = layers.window_mask(ids.shape[1], window, sinks, torch.float64)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask, use_cache=False).logits
    cache = make_cache(model.config, SlidingWindowLayer, window=window, sinks=sinks)
    near = 1e-9 if implementation == "sdpa" else 1e-5  # eager attention takes its softmax in float32
    torch.testing.assert_close(decoding.read(model, ids, cache), expected, rtol=near, atol=near)
    kept = min(ids.shape[1], window - 1 + sinks)
    assert cache.layers[0].keys.shape[2] == kept
    per_token = costs.kv_bytes_per_token(model.config, 64)
    assert sizes.stored_bytes(cache) == kept * per_token  # no view that keeps the dropped tokens alive


def test_a_window_shorter_than_the_text_does_change_the_result(model):
    ids = tokens()
    with torch.no_grad():
        full = model(ids, use_cache=False).logits
    got = decoding.read(model, ids, make_cache(model.config, SlidingWindowLayer, window=6))
    assert torch.allclose(got[:, :6], full[:, :6]) and not torch.allclose(got[:, -1], full[:, -1])


def test_bad_input_is_refused_in_one_line(model):
    ids, config = tokens(), model.config
    full = make_cache(config, StaticLayer, max_tokens=10)
    used = make_cache(config, DynamicLayer)
    decoding.read(model, ids, used, 24)
    assert_refused({
        "room for 10 tokens, 24 are needed": lambda: decoding.read(model, ids, full, 24),
        "holds a batch of 1, 2 came": lambda: decoding.read(model, tokens(batch=2), used),
        "as a negative number": lambda: used.crop(3),
        "max_tokens must be": lambda: StaticLayer(max_tokens=0),
        "window must be": lambda: SlidingWindowLayer(window=0),
        "sinks must be": lambda: layers.window_mask(4, 2, -1),
    })
    with pytest.raises(TypeError, match="layer must be a class"):
        make_cache(config, torch.nn.Linear)
