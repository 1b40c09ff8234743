"""Paged attention on tensors: the same logits and texts as without any paging."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils import costs
from course_utils.kvcache import decoding, paged, sizes
from course_utils.kvcache.block_tables import OutOfBlocks
from course_utils.kvcache.paged import KVPool, PagedCache
from tests.unit.kvcache.common import assert_refused, tiny_llama, tokens


def pool_for(model, n_blocks=16, block_size=4):
    return KVPool(model.config, n_blocks, block_size, model.dtype)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=3), st.integers(1, 7), st.integers(1, 5),
       st.integers(0, 2**31))
def test_what_is_appended_is_gathered(lengths, n, block_size, seed):
    """Compared with plain concatenation, for scattered tables and sequences of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    width = -(-(max(lengths) + n) // block_size)
    ids = torch.randperm(width * len(lengths) + 2, generator=generator)
    tables = ids[: width * len(lengths)].view(len(lengths), width)
    pool = torch.full((len(ids), block_size, 2, 3), torch.nan)
    past = [torch.randn(2, length, 3, generator=generator) for length in lengths]
    for b, states in enumerate(past):
        if lengths[b]:
            paged.append(pool, tables[b : b + 1], torch.tensor([0]), states[None])
    new = torch.randn(len(lengths), 2, n, 3, generator=generator)
    paged.append(pool, tables, torch.tensor(lengths), new)
    got = paged.gather(pool, tables, max(lengths) + n)
    assert got.shape == (len(lengths), 2, max(lengths) + n, 3)
    for b, states in enumerate(past):
        assert torch.equal(got[b, :, : lengths[b] + n], torch.cat([states, new[b]], dim=1))
    written = (~pool.isnan()).all(dim=(2, 3)).sum()
    assert written == sum(lengths) + n * len(lengths)  # and nothing else was touched


@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("chunk", [1, 5, 24])
def test_paged_logits_equal_uncached(model, block_size, chunk):
    ids = tokens(batch=2)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
    cache = PagedCache(pool_for(model, 64, block_size), ["a", "b"])
    torch.testing.assert_close(decoding.read(model, ids, cache, chunk), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_generate_runs_on_blocks(implementation):
    model, ids = tiny_llama(implementation=implementation), tokens(batch=2, n=6)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    for options, rows in (({}, 2), ({"num_beams": 3}, 6)):
        options |= {"attention_mask": mask, "max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
        pool = pool_for(model, 60)
        expected = model.generate(ids, **options)
        got = model.generate(ids, past_key_values=PagedCache(pool, range(rows)), **options)
        assert torch.equal(got, expected)
        for row in range(rows):
            pool.free(row)
        assert pool.reserved == 0 and set(pool.references) == {0}


def test_a_fork_shares_blocks_until_it_writes(model):
    """Two continuations of one prompt: the prompt is stored once, each gets the text it would get alone."""
    pool = pool_for(model)
    prompt, (more_a, more_b) = tokens(n=10), (tokens(n=3, seed=5), tokens(n=3, seed=6))
    decoding.read(model, prompt, PagedCache(pool, ["a"]), 10)
    before = [states.clone() for states in pool.keys]
    pool.fork("a", "b")
    assert pool.reserved == 12
    for name, more in (("b", more_b), ("a", more_a)):
        with torch.no_grad():
            expected = model(torch.cat([prompt, more], dim=1), use_cache=False).logits[:, -3:]
        got = decoding.read(model, more, PagedCache(pool, [name]), 2)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert pool.tables["a"][:2] == pool.tables["b"][:2] and pool.tables["a"][2] != pool.tables["b"][2]
    for old, new in zip(before, pool.keys, strict=True):
        assert torch.equal(old[:2], new[:2])  # nobody wrote into the shared blocks


def test_sequences_of_different_lengths_in_one_batch(model):
    pool = pool_for(model)
    texts = {name: tokens(n=n, seed=n) for name, n in (("a", 9), ("b", 2), ("c", 5))}
    for name, ids in texts.items():
        decoding.read(model, ids[:, :-1], PagedCache(pool, [name]), 20)
    cache = PagedCache(pool, texts)
    last = torch.cat([ids[:, -1:] for ids in texts.values()])
    with torch.no_grad():
        got = model(last, position_ids=cache.positions(), attention_mask=cache.mask(), past_key_values=cache)
        for row, ids in zip(got.logits, texts.values(), strict=True):
            expected = model(ids, use_cache=False).logits[0, -1:]
            torch.testing.assert_close(row, expected, rtol=1e-9, atol=1e-9)


def test_the_pool_takes_its_bytes_once(model):
    pool = pool_for(model, 16, 4)
    expected = 64 * costs.kv_bytes_per_token(model.config, 8 * model.dtype.itemsize)
    assert sizes.stored_bytes(PagedCache(pool, ["a", "b"])) == expected


def test_out_of_blocks_leaves_the_pool_usable(model):
    pool = pool_for(model, n_blocks=3)
    decoding.read(model, tokens(n=10), PagedCache(pool, ["a"]), 10)
    with pytest.raises(OutOfBlocks, match="needs 1 more block"):
        decoding.read(model, tokens(n=3), PagedCache(pool, ["a"]), 3)
    assert pool.lengths["a"] == 10 and pool.free_blocks == []
    decoding.read(model, tokens(n=2), PagedCache(pool, ["a"]), 2)
    pool.free("a")
    decoding.read(model, tokens(n=12), PagedCache(pool, ["b"]), 12)


def test_reset_gives_the_blocks_back(model):
    pool = pool_for(model)
    cache = PagedCache(pool, ["a"])
    first = decoding.read(model, tokens(), cache, 24)
    cache.reset()
    assert pool.reserved == 0 and cache.get_seq_length() == 0
    torch.testing.assert_close(decoding.read(model, tokens(), cache, 24), first)


def test_bad_input_is_refused_in_one_line(model):
    cache = PagedCache(pool_for(model), ["a"])
    assert_refused({
        "one or more different names": lambda: PagedCache(pool_for(model), ["a", "a"]),
        "sequence.s., a batch of 2 came": lambda: decoding.read(model, tokens(batch=2), cache),
    })
