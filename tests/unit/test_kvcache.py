"""course_utils.kvcache: exact caches equal no cache, rounded ones stay within their bound."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from course_utils import costs, measure
from course_utils.kvcache import decoding, layers, prefix, quantized, sizes
from course_utils.kvcache.layers import DynamicLayer, SlidingWindowLayer, StaticLayer, make_cache
from course_utils.kvcache.quantized import QuantizedLayer

VOCABULARY = 64


def tiny_llama(kv_heads=2, implementation="sdpa"):
    """Two layers, four query heads, in float64: what is equal is equal to many digits."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=kv_heads, eos_token_id=None,
                         bos_token_id=None, attn_implementation=implementation)  # fmt: skip
    model = LlamaForCausalLM(config).eval().to(torch.float64)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(8)  # sharper attention: a wrong cache shows
    return model


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


def tokens(batch=1, n=24, seed=1):
    return torch.randint(0, VOCABULARY, (batch, n), generator=torch.Generator().manual_seed(seed))


EXACT = {
    "dynamic": (DynamicLayer, {}),
    "static": (StaticLayer, {"max_tokens": 40}),
    "window as long as the text": (SlidingWindowLayer, {"window": 40}),
    "nothing old enough to be rounded": (QuantizedLayer, {"recent": 40, "bits": 8}),
}
each_exact = pytest.mark.parametrize("layer, arguments", EXACT.values(), ids=EXACT)
OTHERS = [(SlidingWindowLayer, {"window": 6, "sinks": 2}),
          (QuantizedLayer, {"recent": 4, "group": 4, "bits": 4})]


# ---- exact caches ------------------------------------------------------------------------------------------

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


def test_perplexity_through_an_exact_cache_is_the_perplexity(model):
    text = tokens(n=70)[0]
    expected = measure.perplexity(model, text[:60], window=20)
    got = decoding.cached_perplexity(model, text, lambda: make_cache(model.config, DynamicLayer), 20, chunk=7)
    assert got.nll == pytest.approx(expected.nll, rel=1e-6) and got.tokens == expected.tokens


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


# ---- sliding window ----------------------------------------------------------------------------------------

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


# ---- bytes -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_a_token_are_those_of_the_tensors(kv_heads, dtype):
    model = tiny_llama(kv_heads).to(dtype)
    expected = 24 * costs.kv_bytes_per_token(model.config, 8 * dtype.itemsize)
    for cache in (DynamicCache(config=model.config), make_cache(model.config, DynamicLayer)):
        decoding.read(model, tokens(), cache, 24)
        assert sizes.stored_bytes(cache) == expected


def test_bytes_of_known_models():
    smollm = LlamaConfig(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3)
    assert costs.kv_bytes_per_token(smollm) == 23_040
    llama13b = LlamaConfig(hidden_size=5120, num_hidden_layers=40, num_attention_heads=40)
    assert costs.kv_bytes_per_token(llama13b) == 819_200
    llama70b = LlamaConfig(hidden_size=8192, num_hidden_layers=80, num_attention_heads=64,
                           num_key_value_heads=8)
    assert costs.kv_bytes_per_token(llama70b) == 320 * 1024


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


# ---- quantized ---------------------------------------------------------------------------------------------

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


# ---- prefix reuse ------------------------------------------------------------------------------------------

def test_prefix_reuse_is_exact_and_reads_only_the_rest(model):
    store = prefix.PrefixStore(model.config)
    first, second = tokens(n=20)[0], tokens(n=20)[0].clone()
    second[12:] = tokens(n=20, seed=2)[0, 12:]
    second[12] = (first[12] + 1) % VOCABULARY
    cache, n = store.start(first)
    assert n == 0
    decoding.greedy(model, first[None], 3, cache)
    store.save(first, cache)
    for ids, shared in ((second, 12), (first, 19)):  # the last token must be read again
        cache, n = store.start(ids)
        assert n == shared == cache.get_seq_length()
        expected = decoding.greedy(model, ids[None], 10)
        assert torch.equal(decoding.greedy(model, ids[None], 10, cache), expected)
    assert store.start([(int(first[0]) + 1) % VOCABULARY, 2, 3])[1] == 0


def test_a_full_store_forgets_what_was_unused_for_longest(model):
    store = prefix.PrefixStore(model.config, max_tokens=10)
    prompts = [[i, 1, 2, 3, 4] for i in range(3)]
    for ids in prompts[:2]:
        cache = make_cache(model.config, DynamicLayer)
        decoding.read(model, torch.tensor([ids]), cache, 5)
        store.save(ids, cache)
    store.start([0, 1, 2])  # now prompt 1 is the oldest
    cache = make_cache(model.config, DynamicLayer)
    decoding.read(model, torch.tensor([prompts[2]]), cache, 5)
    store.save(prompts[2], cache)
    assert [store.start(ids)[1] for ids in prompts] == [4, 0, 4]


# ---- what is refused ---------------------------------------------------------------------------------------

def test_bad_input_is_refused_in_one_line(model):
    ids, config = tokens(), model.config
    full = make_cache(config, StaticLayer, max_tokens=10)
    used = make_cache(config, DynamicLayer)
    decoding.read(model, ids, used, 24)
    x = torch.ones(1, 1, 2, 6)
    calls = {
        "room for 10 tokens, 24 are needed": lambda: decoding.read(model, ids, full, 24),
        "holds a batch of 1, 2 came": lambda: decoding.read(model, tokens(batch=2), used),
        "already holds all tokens": lambda: decoding.greedy(model, ids, 1, used),
        "as a negative number": lambda: used.crop(3),
        "max_tokens must be": lambda: StaticLayer(max_tokens=0),
        "window must be": lambda: SlidingWindowLayer(window=0),
        "sinks must be": lambda: layers.window_mask(4, 2, -1),
        "bits must be 2, 4 or 8": lambda: QuantizedLayer(bits=3),
        "group must be": lambda: QuantizedLayer(group=0),
        "recent must be": lambda: QuantizedLayer(recent=1.5),
        "keys_by must be": lambda: QuantizedLayer(keys_by="head"),
        "use 8 bits": lambda: quantized.round_to_bits(x, 2, -1),
        "NaN, infinite": lambda: quantized.round_to_bits(x * float("nan"), 4, -1),
        "beyond float16": lambda: quantized.round_to_bits(x * 1e6, 4, -1),
        "chunk must be": lambda: decoding.read(model, ids, used, 0),
        "ids must be an integer tensor": lambda: decoding.greedy(model, ids[0], 1),
        "window must be a whole": lambda: decoding.cached_perplexity(model, ids[0], DynamicCache, 99),
        "raise max_tokens": lambda: prefix.PrefixStore(config, 3).save(ids[0], used),
        "at least 30 tokens": lambda: prefix.PrefixStore(config).save(list(range(30)), used),
        "ids must be the token ids": lambda: prefix.PrefixStore(config).start([]),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    with pytest.raises(TypeError, match="layer must be a class"):
        make_cache(config, torch.nn.Linear)
    with pytest.raises(TypeError, match="must be a transformers Cache"):
        sizes.stored_bytes([1])
