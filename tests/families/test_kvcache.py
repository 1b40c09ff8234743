"""Families x functions of course_utils.kvcache: what transformers gives, or refused in one line.

    python -m tests.families.test_kvcache     prints the table
"""

import re

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
from tests.families.models import WINDOW, logits, tokens
from tests.families.walking import ALL, EXACT, attempt, print_table


def continued(model, ids, new_tokens=6):
    """The text with its continuation by transformers' own generate."""
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens,
                          do_sample=False, eos_token_id=None, pad_token_id=0)


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
    assert torch.equal(decoding.greedy(model, tokens(), 6), continued(model, tokens()))


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

REFUSED = {}


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_exact_or_refused(function, family):
    reason = attempt(function, family, None)
    expected = REFUSED.get((function.__name__, family))
    assert (reason is None) == (expected is None), reason
    assert expected is None or re.search(expected, reason)


if __name__ == "__main__":
    import sys

    print_table(FUNCTIONS, sys.argv[1:])
