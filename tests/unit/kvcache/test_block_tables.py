"""Block tables: nothing leaks, nobody reads another's tokens."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from course_utils.kvcache import block_tables
from course_utils.kvcache.block_tables import BlockAllocator, OutOfBlocks
from tests.unit.kvcache.common import assert_refused, check_sound

BLOCKS, BLOCK_SIZE = 7, 3


def test_lookup():
    tables = torch.tensor([[5, 2, 7], [1, 0, 0]])
    ids, offsets = block_tables.lookup(tables, torch.tensor([[0, 3, 4, 11], [0, 1, 2, 3]]), 4)
    assert ids.tolist() == [[5, 5, 2, 7], [1, 1, 1, 1]] and offsets.tolist() == [[0, 3, 0, 3], [0, 1, 2, 3]]


class Paging(RuleBasedStateMachine):
    """Random create, write, fork, free on a small pool, compared with plain lists of tokens.

    `memory` plays the tensors: what lies in each slot. If a shared block were written without a copy, or a
    block given out twice, some sequence would read another's tokens.
    """

    names = Bundle("names")

    def __init__(self):
        super().__init__()
        self.allocator = BlockAllocator(BLOCKS, BLOCK_SIZE)
        self.memory = [[None] * BLOCK_SIZE for _ in range(BLOCKS)]
        self.texts = {}
        self.counter = 0

    def new_name(self):
        self.counter += 1
        return f"s{self.counter}"

    @rule(target=names)
    def create(self):
        name = self.new_name()
        self.allocator.create(name)
        self.texts[name] = []
        return name

    @rule(target=names, parent=names)
    def fork(self, parent):
        name, free = self.new_name(), len(self.allocator.free_blocks)
        self.allocator.fork(parent, name)
        assert len(self.allocator.free_blocks) == free
        self.texts[name] = list(self.texts[parent])
        return name

    @rule(name=names, n=st.integers(1, 7), ahead=st.integers(0, 4))
    def write(self, name, n, ahead):
        """Reserve for n tokens and some more, write n."""
        allocator = self.allocator
        before = repr((allocator.tables, allocator.references, allocator.free_blocks))
        if allocator.blocks_needed(name, n + ahead) > len(allocator.free_blocks):
            with pytest.raises(OutOfBlocks, match="needs .* more block"):
                allocator.reserve(name, n + ahead)
            assert repr((allocator.tables, allocator.references, allocator.free_blocks)) == before
            return
        free, needed = len(allocator.free_blocks), allocator.blocks_needed(name, n + ahead)
        for old, new in allocator.reserve(name, n + ahead):
            self.memory[new] = list(self.memory[old])
        assert len(allocator.free_blocks) == free - needed
        assert allocator.reserve(name, n + ahead) == []  # asking again changes nothing
        for _ in range(n):
            self.counter += 1
            block, offset = divmod(len(self.texts[name]), BLOCK_SIZE)
            assert allocator.references[allocator.tables[name][block]] == 1
            self.memory[allocator.tables[name][block]][offset] = self.counter
            self.texts[name].append(self.counter)
        allocator.advance(name, n)

    @rule(name=consumes(names))
    def free(self, name):
        self.allocator.free(name)
        del self.texts[name]
        with pytest.raises(ValueError, match="never created, or is freed already"):
            self.allocator.free(name)

    @rule(name=names, n=st.integers(1, 30))
    def write_without_room(self, name, n):
        if len(self.texts[name]) + n > self.allocator.room(name):
            with pytest.raises(ValueError, match="reserve first"):
                self.allocator.advance(name, n)

    @invariant()
    def everybody_reads_their_own_tokens(self):
        slots = set()
        for name, text in self.texts.items():
            assert self.allocator.lengths[name] == len(text)
            table = self.allocator.tables[name]
            places = [(table[i // BLOCK_SIZE], i % BLOCK_SIZE) for i in range(len(text))]
            assert [self.memory[block][offset] for block, offset in places] == text
            slots |= set(places)
        assert self.allocator.stored == len(slots)

    @invariant()
    def nothing_leaks(self):
        check_sound(self.allocator)

    def teardown(self):
        for name in list(self.texts):
            self.allocator.free(name)
        check_sound(self.allocator)
        assert len(self.allocator.free_blocks) == BLOCKS and self.allocator.reserved == 0


TestPaging = Paging.TestCase
TestPaging.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


def test_a_shared_prefix_is_stored_once_and_copied_on_write():
    allocator = BlockAllocator(10, 4, prefix="system")
    allocator.create("system")
    allocator.reserve("system", 6)
    allocator.advance("system", 6)
    assert allocator.tables["system"] == [0, 1]
    allocator.fork("system", "a")
    assert allocator.tables["a"] == [0, 1] and allocator.references[:2] == [2, 2]
    assert allocator.reserve("a", 1) == [(1, 2)]  # the half-full block, copied; the full one stays shared
    assert allocator.tables == {"system": [0, 1], "a": [0, 2]}
    assert allocator.reserve("system", 1) == []  # nobody else looks at block 1 now
    allocator.free("a")
    assert allocator.free_blocks[-1] == 2 and allocator.references[0] == 1


def test_full_blocks_are_shared_without_a_copy():
    allocator = BlockAllocator(10, 4)
    allocator.create("a")
    allocator.reserve("a", 8)
    allocator.advance("a", 8)
    allocator.fork("a", "b")
    assert allocator.reserve("b", 1) == [] and allocator.tables["b"] == [0, 1, 2]


def test_reserved_but_empty_blocks_are_not_shared():
    allocator = BlockAllocator(10, 4)
    allocator.create("a")
    allocator.reserve("a", 12)
    allocator.advance("a", 4)
    allocator.fork("a", "b")
    assert allocator.tables["b"] == [0]


def test_a_failed_reservation_changes_nothing():
    allocator = BlockAllocator(2, 4)
    allocator.create("a")
    with pytest.raises(OutOfBlocks, match="needs 3 more block"):
        allocator.reserve("a", 9)
    assert allocator.tables == {"a": []} and len(allocator.free_blocks) == 2


def test_bad_input_is_refused_in_one_line():
    allocator = BlockAllocator(4, 4)
    allocator.create("a")
    behind = BlockAllocator(4, 4, prefix="p")
    behind.create("p")
    behind.reserve("p", 6)
    behind.advance("p", 6)
    assert_refused({
        "blocks must be": lambda: BlockAllocator(0),
        "block_size must be": lambda: BlockAllocator(4, 1.5),
        "exists already": lambda: allocator.create("a"),
        "no sequence 'b'": lambda: allocator.free("b"),
        "no sequence 'c'": lambda: allocator.fork("c", "d"),
        "no sequence 'd'": lambda: allocator.reserve("d"),
        "tokens must be": lambda: allocator.reserve("a", 0),
        "reserve first": lambda: allocator.advance("a", 3),
        "behind a prefix of 6": lambda: behind.check_fits(7),
    })
    assert allocator.tables == {"a": []}
    behind.check_fits(6)  # a copy of the half-full block and one block more: all that is left
