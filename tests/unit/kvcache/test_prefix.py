"""A request that begins like an earlier one is answered alike, and only the rest is read."""

import torch

from course_utils.kvcache import decoding, prefix
from course_utils.kvcache.layers import DynamicLayer, make_cache
from tests.unit.kvcache.common import VOCABULARY, assert_refused, tokens


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


def test_bad_input_is_refused_in_one_line(model):
    ids, config = tokens(), model.config
    used = make_cache(config, DynamicLayer)
    decoding.read(model, ids, used, 24)
    assert_refused({
        "raise max_tokens": lambda: prefix.PrefixStore(config, 3).save(ids[0], used),
        "at least 30 tokens": lambda: prefix.PrefixStore(config).save(list(range(30)), used),
        "ids must be the token ids": lambda: prefix.PrefixStore(config).start([]),
    })
