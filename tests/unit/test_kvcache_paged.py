"""Paged attention on tensors and the server: the same logits and texts as without any paging."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils import costs
from course_utils.kvcache import block_tables, decoding, paged, sizes
from course_utils.kvcache.block_tables import OutOfBlocks
from course_utils.kvcache.paged import KVPool, PagedCache
from course_utils.kvcache.server import Server
from tests.unit.test_kvcache import VOCABULARY, tiny_llama, tokens


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


def pool_for(model, n_blocks=16, block_size=4):
    return KVPool(model.config, n_blocks, block_size, model.dtype)


def alone(model, prompt, new_tokens):
    """The answer to one request by transformers' own generate."""
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=new_tokens, do_sample=False)
    return ids[0, len(prompt) :].tolist()


def prompts(n, longest=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (n,), generator=generator).tolist()
    return [torch.randint(0, VOCABULARY, (k,), generator=generator).tolist() for k in lengths]


# ---- append and gather -------------------------------------------------------------------------------------

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


def test_lookup():
    tables = torch.tensor([[5, 2, 7], [1, 0, 0]])
    ids, offsets = block_tables.lookup(tables, torch.tensor([[0, 3, 4, 11], [0, 1, 2, 3]]), 4)
    assert ids.tolist() == [[5, 5, 2, 7], [1, 1, 1, 1]] and offsets.tolist() == [[0, 3, 0, 3], [0, 1, 2, 3]]


# ---- in the model ------------------------------------------------------------------------------------------

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


# ---- the server --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n_blocks, max_batch", [(100, 8), (9, 8), (100, 1)], ids=["roomy", "tight", "one"])
def test_every_request_gets_the_text_it_would_get_alone(model, n_blocks, max_batch):
    server = Server(model, n_blocks, block_size=4, max_batch=max_batch)
    asked = {f"r{i}": (prompt, 3 + 5 * i % 17) for i, prompt in enumerate(prompts(7))}
    for name, (prompt, n) in asked.items():
        server.submit(name, prompt, n)
    requests = list(server.scheduler.waiting)
    answers = server.run()
    assert answers == {name: alone(model, prompt, n) for name, (prompt, n) in asked.items()}
    assert server.pool.reserved == 0 and server.pool.tables == {}
    preempted = sum(request.preemptions for request in requests)
    assert preempted > 0 if n_blocks == 9 else preempted == 0
    assert max(server.batches) <= max_batch and (max_batch == 1 or max(server.batches) > 1)


@pytest.mark.parametrize("prefix", [3, 4, 10])
def test_a_shared_prefix_is_read_and_stored_once(model, prefix):
    system = tokens(n=prefix, seed=3)[0].tolist()
    server = Server(model, 30, block_size=4, prefix=system)
    held = server.pool.reserved
    asked = {i: prompt for i, prompt in enumerate(prompts(5, seed=2))}
    for name, prompt in asked.items():
        server.submit(name, prompt, 6)
    assert server.run() == {name: alone(model, system + prompt, 6) for name, prompt in asked.items()}
    assert server.pool.reserved == held and list(server.pool.lengths.values()) == [prefix]


def test_a_stop_token_ends_an_answer(model):
    prompt = prompts(1)[0]
    whole = alone(model, prompt, 20)
    stop = whole[7]
    server = Server(model, 30, block_size=4, stop=[stop])
    server.submit("a", prompt, 20)
    assert server.run()["a"] == whole[: whole.index(stop) + 1]
    assert server.pool.reserved == 0


def test_requests_may_come_while_others_run(model):
    server = Server(model, 30, block_size=4)
    first, second = prompts(2, seed=4)
    server.submit("first", first, 9)
    server.step()
    server.step()
    server.submit("second", second, 4)
    finished = [name for _ in range(20) for name in server.step()]
    assert finished == ["second", "first"]
    assert server.answers == {"first": alone(model, first, 9), "second": alone(model, second, 4)}


def test_bad_input_is_refused_in_one_line(model):
    server = Server(model, 4, block_size=4)
    server.submit("a", [1, 2], 3)
    server.run()
    cache = PagedCache(pool_for(model), ["a"])
    calls = {
        "needs 5 blocks of 4, the pool has 4": lambda: server.submit("b", [1] * 10, 7),
        "was made for 2048": lambda: server.submit("b", [1] * 10, 2040),
        "name 'a' is taken": lambda: server.submit("a", [1], 1),
        "prompt_tokens must be": lambda: server.submit("b", [], 1),
        "max_new_tokens must be": lambda: server.submit("b", [1], 0),
        "needs 5 blocks": lambda: Server(model, 4, block_size=4, prefix=[1] * 17),
        "one or more different names": lambda: PagedCache(pool_for(model), ["a", "a"]),
        "sequence.s., a batch of 2 came": lambda: decoding.read(model, tokens(batch=2), cache),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
