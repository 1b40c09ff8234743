"""Families x functions of course_utils.kvcache: what transformers gives, or refused in one line.

    python -m tests.families.test_kvcache     prints the table
"""


import pytest
import torch
from transformers import DynamicCache

from course_utils import costs, measure
from course_utils.kvcache import decoding, prefix, sizes
from course_utils.kvcache.layers import (
    DynamicLayer,
    SlidingWindowLayer,
    StaticLayer,
    make_cache,
    window_mask,
)
from course_utils.kvcache.paged import KVPool, PagedCache
from course_utils.kvcache.quantized import QuantizedLayer
from course_utils.kvcache.server import Server
from tests.families.models import WINDOW, logits, tiny, tokens
from tests.families.walking import ALL, EXACT, assert_exact_or_refused, print_table


def continued(model, ids, new_tokens=6, **arguments):
    """The text with its continuation by transformers' own generate."""
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens,
                          do_sample=False, eos_token_id=None, pad_token_id=0, **arguments)


def read_and_continue(model, make):
    """A text that is longer than any window, read in pieces and continued."""
    expected = logits(model)
    found = decoding.read(model, tokens(), make(), chunk=5)
    assert (found - expected).square().mean().sqrt() < EXACT * expected.std()
    assert torch.equal(decoding.greedy(model, tokens(), 6, make()), continued(model, tokens()))


# ---- what is tried -----------------------------------------------------------------------------------------

def shape(model, folder=None):
    """What the cache of a real pass holds, and how many bytes."""
    layers, heads, width = costs.kv_shape(model.config)
    cache = model(tokens(), past_key_values=DynamicCache(), use_cache=True).past_key_values
    held = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    assert len(cache.layers) == layers
    assert all(tensor.shape == (*tokens().shape[:1], heads, tokens().shape[1], width) for tensor in held)
    assert tokens().numel() * costs.kv_bytes_per_token(model.config, 32) == sum(t.nbytes for t in held)


def without_cache(model, folder=None):
    assert torch.equal(decoding.greedy(model, tokens(), 6), continued(model, tokens(), use_cache=False))


def dynamic(model, folder=None):
    read_and_continue(model, lambda: make_cache(model.config, DynamicLayer))


def static(model, folder=None):
    read_and_continue(model, lambda: make_cache(model.config, StaticLayer, max_tokens=40))


def quantized(model, folder=None):
    """With all tokens recent nothing is rounded; in 8 bits it comes close, and the cache is smaller."""
    read_and_continue(model, lambda: make_cache(model.config, QuantizedLayer, recent=64))
    cache, exact = make_cache(model.config, QuantizedLayer, bits=8, group=4, recent=0), logits(model)
    found = decoding.read(model, tokens(), cache, chunk=4)
    assert 0 < (found - exact).square().mean().sqrt() < 0.1 * exact.std()
    whole = tokens().numel() * costs.kv_bytes_per_token(model.config, 32)
    assert sizes.stored_bytes(cache) < 0.75 * whole


def window(model, folder=None, sinks=0):
    """Token by token it is what the mask of the window gives."""
    cache = make_cache(model.config, SlidingWindowLayer, window=WINDOW - 2, sinks=sinks)
    found = decoding.read(model, tokens(), cache, chunk=1)
    mask = window_mask(tokens().shape[1], WINDOW - 2, sinks)
    with torch.no_grad():
        expected = model(tokens(), attention_mask=mask.expand(len(tokens()), -1, -1, -1),
                         position_ids=torch.arange(tokens().shape[1])[None], use_cache=False).logits
    assert (found - expected).square().mean().sqrt() < EXACT * expected.std()


def window_and_sinks(model, folder=None):
    window(model, sinks=2)


def paged(model, folder=None):
    """Texts of one length."""
    pools = []

    def make():
        pools.append(KVPool(model.config, 20, 4, model.dtype))
        return PagedCache(pools[-1], ["a", "b"])

    read_and_continue(model, make)


def server(model, folder=None):
    """Requests of different lengths behind a prefix: each gets the text that it would get alone."""
    begin, prompts = tokens()[0, :3].tolist(), [tokens()[1, i:8].tolist() for i in (1, 3, 0, 5)]
    serve = Server(model, n_blocks=14, block_size=4, prefix=begin)
    for name, prompt in enumerate(prompts):
        serve.submit(name, prompt, 5)
    answers = serve.run()
    for name, prompt in enumerate(prompts):
        alone = continued(model, torch.tensor([begin + prompt]), 5)
        assert answers[name] == alone[0, len(begin) + len(prompt) :].tolist()


def prefix_store(model, folder=None):
    store = prefix.PrefixStore(model.config)
    ids = tokens()[:1]
    cache, known = store.start(ids[0, :20])
    assert known == 0
    decoding.read(model, ids[:, :20], cache, chunk=20)
    store.save(ids[0, :20], cache)
    cache, known = store.start(ids[0])
    assert known == 20
    assert torch.equal(decoding.greedy(model, ids, 6, cache), continued(model, ids))


def perplexity(model, folder=None):
    text = tokens().flatten()
    found = decoding.cached_perplexity(
        model, text, lambda: make_cache(model.config, DynamicLayer), window=12, chunk=5)
    rows = text.view(-1, 12)
    nll = torch.nn.functional.cross_entropy(logits(model, rows)[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
    assert found.nll == pytest.approx(nll.item(), rel=1e-4)
    assert measure.perplexity(model, text, window=12).nll == pytest.approx(nll.item(), rel=1e-4)


FUNCTIONS = [shape, without_cache, dynamic, static, quantized, window, window_and_sinks, paged, server,
             prefix_store, perplexity]

# ---- what is refused, and why; everything else is exact ----------------------------------------------------

WINDOWS = ("mistral", "qwen2 with a window", "gemma2", "gemma3", "gpt_oss")
REFUSED = {("window_and_sinks", family): "window of 8 tokens of its own" for family in WINDOWS}
REFUSED |= {("server", family): "look back 8 tokens only" for family in WINDOWS}
REFUSED |= {("window", "bloom"): "ALiBi", ("window_and_sinks", "bloom"): "ALiBi",
            ("server", "bloom"): "cannot read from paged memory"}
REFUSED |= {(function.__name__, family): reason for function in FUNCTIONS if function is not without_cache
            for family, reason in (("deepseek_v3", "compressed, of different widths"),
                                   ("qwen3_next", "another kind, linear_attention"),
                                   ("mamba", "no attention heads"), ("rwkv", "no attention heads"))}


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_exact_or_refused(function, family):
    assert_exact_or_refused(function, family, None, REFUSED)


@pytest.mark.parametrize("family", WINDOWS)
def test_a_server_serves_what_fits_the_window(family):
    model, prompt = tiny(family), tokens()[0, : WINDOW - 3].tolist()
    serve = Server(model, n_blocks=8, block_size=4)
    serve.submit("fits", prompt, 3)
    assert serve.run()["fits"] == continued(model, torch.tensor([prompt]), 3)[0, len(prompt) :].tolist()
    with pytest.raises(ValueError, match="look back 8 tokens only"):
        Server(model, n_blocks=8, block_size=4, prefix=tokens()[0, : WINDOW + 1].tolist())


@pytest.mark.parametrize("kind, changes, shape", [
    ("falcon", {"multi_query": False}, (4, 4, 16)),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, (4, 4, 16)),
    ("falcon", {"alibi": True}, (4, 1, 16)), ("llama", {"head_dim": 24}, (4, 2, 24))])
def test_what_is_kept_where_configs_differ(kind, changes, shape):
    model = tiny(kind, **changes)
    assert costs.kv_shape(model.config) == shape
    cache = model(tokens(), past_key_values=DynamicCache(), use_cache=True).past_key_values
    assert cache.layers[0].keys.shape == (2, shape[1], tokens().shape[1], shape[2])


def test_alibi_of_falcon_is_refused_too():
    model = tiny("falcon", alibi=True)
    with pytest.raises(ValueError, match="ALiBi"):
        make_cache(model.config, SlidingWindowLayer, window=4)


def test_a_prefix_is_kept_whole_or_not_at_all():
    model = tiny("mistral")
    store, ids = prefix.PrefixStore(model.config), tokens()[0]
    trimmed = DynamicCache(config=model.config)
    model(ids[None], past_key_values=trimmed)
    static = make_cache(model.config, StaticLayer, max_tokens=40)
    model(ids[None, :4], past_key_values=static)
    for cache in (trimmed, static):
        with pytest.raises(ValueError, match="must hold all tokens"):
            store.save(ids[:6], cache)
    assert not store.prompts


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_a_text_longer_than_the_models_positions_is_refused(family):
    model = tiny(family)
    with pytest.raises(ValueError, match="130 tokens, the model was made for 128"):
        decoding.greedy(model, tokens(), 106)
    with pytest.raises(ValueError, match="130 tokens, the model was made for 128"):
        decoding.read(model, tokens(1, 130), make_cache(model.config, DynamicLayer))


if __name__ == "__main__":
    import sys

    print_table(FUNCTIONS, sys.argv[1:])
