"""The perplexity of a text that is read through a cache. (Greedy decoding: test_layers.)"""

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, DynamicCache, OpenAIGPTConfig

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


@pytest.mark.parametrize(("config", "reason"), [
    (OpenAIGPTConfig(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64),
     "puts nothing into a KV cache"),
    (BertConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                intermediate_size=48), "reads in both directions")])
def test_a_model_that_takes_no_notice_of_a_cache_or_sees_ahead_is_refused(config, reason):
    """The one would read each piece without what came before, the other each token with what comes after."""
    torch.manual_seed(0)
    config.initializer_range = 0.3
    model = AutoModelForCausalLM.from_config(config).eval()
    for call in (decoding.read, lambda model, ids, cache: decoding.greedy(model, ids, 2, cache)):
        with pytest.raises(ValueError, match=reason):
            call(model, tokens(), make_cache(config, DynamicLayer))
