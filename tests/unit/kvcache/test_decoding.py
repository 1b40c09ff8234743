"""The perplexity of a text that is read through a cache. (Greedy decoding: test_layers.)"""

import pytest
from transformers import DynamicCache

from course_utils import measure
from course_utils.kvcache import decoding
from course_utils.kvcache.layers import DynamicLayer, make_cache
from tests.unit.kvcache.common import assert_refused, tokens


def test_perplexity_through_an_exact_cache_is_the_perplexity(model):
    text = tokens(n=70)[0]
    expected = measure.perplexity(model, text[:60], window=20)
    got = decoding.cached_perplexity(model, text, lambda: make_cache(model.config, DynamicLayer), 20, chunk=7)
    assert got.nll == pytest.approx(expected.nll, rel=1e-6) and got.tokens == expected.tokens


def test_bad_input_is_refused_in_one_line(model):
    ids = tokens()
    used = make_cache(model.config, DynamicLayer)
    decoding.read(model, ids, used, 24)
    assert_refused({
        "already holds all tokens": lambda: decoding.greedy(model, ids, 1, used),
        "chunk must be": lambda: decoding.read(model, ids, used, 0),
        "ids must be an integer tensor": lambda: decoding.greedy(model, ids[0], 1),
        "window must be a whole": lambda: decoding.cached_perplexity(model, ids[0], DynamicCache, 99),
    })
