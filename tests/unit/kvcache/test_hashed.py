"""Blocks are found by their text: the same answers, fewer tokens read, nothing leaks."""

import hashlib
import random

import pytest
import torch

from course_utils.kvcache.hashed import HashedPool, block_keys
from course_utils.kvcache.server import Server
from tests.unit.kvcache.common import VOCABULARY, assert_refused, check_sound
from tests.unit.kvcache.test_server import alone


def test_keys_are_sha256_of_the_key_before_and_the_tokens():
    first = hashlib.sha256(b"".join(i.to_bytes(8, "little") for i in (5, 300))).digest()
    second = hashlib.sha256(first + b"".join(i.to_bytes(8, "little") for i in (5, 70_000))).digest()
    assert block_keys([5, 300, 5, 70_000, 9], 2) == [first.hex(), second.hex()]


def test_equal_keys_mean_equal_texts_from_the_first_token_on():
    draw = random.Random(0)
    texts = [[draw.randrange(2) for _ in range(9)] for _ in range(200)]
    by_key = {}
    for text in texts:
        for index, key in enumerate(block_keys(text, 3)):
            beginning = tuple(text[: 3 * (index + 1)])
            assert by_key.setdefault(key, beginning) == beginning
    assert len(set(by_key.values())) == len(by_key)  # and equal texts have equal keys


def conversation(n=12, seed=0):
    """Prompts that begin alike in different lengths, some twice."""
    draw = random.Random(seed)
    system = [draw.randrange(VOCABULARY) for _ in range(11)]
    prompts = []
    for _ in range(n):
        own = [draw.randrange(VOCABULARY) for _ in range(draw.randrange(1, 9))]
        prompts.append(system[: draw.choice((5, 8, 11))] + own)
    return prompts + prompts[:2]


@pytest.mark.parametrize("n_blocks, budget", [(60, None), (14, None), (14, 9)],
                         ids=["roomy", "tight", "in pieces"])
def test_answers_are_those_of_a_request_alone_and_fewer_tokens_are_read(model, n_blocks, budget):
    read = {}
    for find in (False, True):
        server = Server(model, n_blocks, block_size=4, max_batch=5, budget=budget, find_prefixes=find)
        for name, prompt in enumerate(conversation()):
            server.submit(name, prompt, 3 + name % 7)
        while server.scheduler.waiting or server.scheduler.running:
            server.step()
            check_sound(server.pool)
        read[find] = server.tokens_read
        assert server.answers == {name: alone(model, prompt, 3 + name % 7)
                                  for name, prompt in enumerate(conversation())}
    assert server.pool.found > 0 and server.pool.reserved == 0
    if n_blocks == 60:  # without preemptions every token that was found is one that was not read
        assert read[False] - read[True] == server.pool.found


def test_a_block_in_use_by_nobody_is_found_until_it_is_taken(model):
    pool = HashedPool(model.config, 4, 2, torch.float64)

    def come(name, ids):
        pool.texts[name] = ids
        assert pool.start(name, len(ids), 0)
        found = pool.lengths[name]
        pool.advance(name, len(ids) - found)
        return found

    assert come("a", [1, 2, 3, 4, 5]) == 0
    pool.free("a")
    assert come("b", [1, 2, 3, 4, 6]) == 4  # both full blocks of a
    pool.free("b")
    assert come("c", [1, 2]) == 0  # at least one token must be read: the block of 1, 2 is no help
    pool.free("c")
    assert come("d", [7, 7, 7, 7, 7, 7, 7]) == 0  # takes all four blocks
    pool.free("d")
    assert come("e", [1, 2, 3, 4, 5]) == 0


def test_the_beginning_of_a_text_is_taken_last(model):
    pool = HashedPool(model.config, 4, 2, torch.float64)
    pool.texts = {"a": [1, 2, 3, 4, 5], "b": [9] * 5, "c": [1, 2, 3, 4, 5]}
    for name in "ab":
        pool.start(name, len(pool.texts[name]), 0)
        pool.advance(name, len(pool.texts[name]))
        pool.free(name)
    pool.start("c", 5, 0)  # b took the block that never was full, and the last full one
    assert pool.lengths["c"] == 2


def test_a_text_that_is_missing_or_too_short_is_refused_before_anything_changes(model):
    pool = HashedPool(model.config, 4, 2, torch.float64)
    pool.texts = {"a": [1, 2]}
    assert_refused({"0 tokens of sequence 'b'": lambda: pool.start("b", 3, 0),
                    "2 tokens of sequence 'a', 3 are needed": lambda: pool.start("a", 3, 0)})
    assert pool.tables == {}
    pool.start("a", 2, 0)
    pool.advance("a", 2)
    assert_refused({"2 tokens of sequence 'a', 3 are needed": lambda: pool.advance("a", 1)})
    assert pool.lengths["a"] == 2


def test_a_pool_that_is_too_full_changes_nothing(model):
    pool = HashedPool(model.config, 3, 2, torch.float64)
    pool.texts = {"a": [1, 2, 3], "b": [1, 2, 4, 5, 6, 7]}
    pool.start("a", 3, 0)
    pool.advance("a", 3)
    assert not pool.start("b", 6, 0)
    assert list(pool.tables) == ["a"] and pool.found == 0
    check_sound(pool)
