"""Blocks, contiguous memory and scheduling: the bookkeeping of paged attention, without a model."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from course_utils.kvcache import trace
from course_utils.kvcache.block_tables import BlockAllocator, OutOfBlocks
from course_utils.kvcache.contiguous import POLICIES, ContiguousMemory, power_of_two
from course_utils.kvcache.scheduler import Request, Scheduler

BLOCKS, BLOCK_SIZE = 7, 3


def owners(allocator):
    """In how many tables each block stands, counted from the tables."""
    counts = [0] * allocator.blocks
    for table in allocator.tables.values():
        for block in table:
            counts[block] += 1
    return counts


def check_sound(allocator):
    """Nothing leaks: a block is either free or owned, and its references are those of the tables."""
    counts = owners(allocator)
    assert allocator.references == counts
    assert sorted(allocator.free_blocks) == [block for block, count in enumerate(counts) if count == 0]
    for sequence, table in allocator.tables.items():
        assert len(set(table)) == len(table)
        assert allocator.blocks_for(allocator.lengths[sequence]) <= len(table)
    layout = allocator.layout()
    assert layout.count(2) == allocator.stored <= allocator.reserved == len(layout) - layout.count(0)


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


class Pieces(RuleBasedStateMachine):
    """Random starts, growth and frees of contiguous memory: pieces never overlap and all come back."""

    names = Bundle("names")

    def __init__(self):
        super().__init__()
        self.memory, self.counter = ContiguousMemory(64, "oracle", max_tokens=32), 0

    @rule(target=names, tokens=st.integers(1, 16), answer=st.integers(1, 16))
    def start(self, tokens, answer):
        self.counter += 1
        largest_hole = power_of_two(tokens + answer)
        started = self.memory.start(self.counter, tokens, tokens + answer)
        if not started:
            assert self.memory.reserved + largest_hole > 64 or len(self.memory.pieces) > 0
            return 0
        return self.counter

    @rule(name=names)
    def grow_until_full(self, name):
        if name in self.memory.pieces:
            if self.memory.lengths[name] < self.memory.pieces[name][1]:
                self.memory.advance(name)
            else:
                with pytest.raises(ValueError, match="outgrows"):
                    self.memory.advance(name)

    @rule(name=consumes(names))
    def free(self, name):
        if name in self.memory.pieces:
            self.memory.free(name)
        with pytest.raises(ValueError, match="freed already"):
            self.memory.free(name)

    @invariant()
    def pieces_do_not_overlap(self):
        taken = [slot for first, size in self.memory.pieces.values() for slot in range(first, first + size)]
        assert len(set(taken)) == len(taken) == self.memory.reserved <= 64
        layout = self.memory.layout()
        assert layout.count(2) == self.memory.stored and layout.count(0) == 64 - len(taken)


TestPieces = Pieces.TestCase
TestPieces.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


# ---- blocks one at a time ----------------------------------------------------------------------------------

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


# ---- the scheduler -----------------------------------------------------------------------------------------

def memories():
    return [BlockAllocator(24, 4), ContiguousMemory(96, "max", 64), ContiguousMemory(96, "pow2", 64),
            ContiguousMemory(96, "oracle", 64)]


@pytest.mark.parametrize("memory", memories(), ids=["paged", *POLICIES])
def test_nothing_leaks_over_thousands_of_requests(memory):
    generator = random.Random(0)
    requests = [(generator.randint(1, 20), generator.randint(1, 20)) for _ in range(3000)]
    usage = trace.serve(memory, requests, max_batch=12)
    assert memory.reserved == memory.stored == 0 and set(memory.layout()) == {0}
    if isinstance(memory, BlockAllocator):
        check_sound(memory)
        assert memory.tables == memory.lengths == {} and usage.preemptions > 0
    else:
        assert memory.pieces == memory.lengths == {} and usage.preemptions == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=12),
       st.integers(6, 14), st.integers(1, 6), st.integers(0, 9))
def test_every_request_is_served_whatever_the_pool(requests, blocks, max_batch, prefix):
    """Also when it has to give way again and again, and when a shared prefix takes part of the pool."""
    allocator = BlockAllocator(blocks + 3, 4)
    if prefix:
        allocator.create("prefix")
        allocator.reserve("prefix", prefix)
        allocator.advance("prefix", prefix)
        allocator.prefix = "prefix"
    held = allocator.reserved
    scheduler, usage, finished = Scheduler(allocator, max_batch), trace.Usage(), []
    wanted = [Request(name, *lengths) for name, lengths in enumerate(requests)]
    for request in wanted:
        scheduler.submit(request)
    for _ in range(100 * len(requests)):
        if not (scheduler.waiting or scheduler.running):
            break
        trace.step(scheduler, usage)
        check_sound(allocator)
        assert len(scheduler.running) <= max_batch
    finished = [request.name for request in wanted if request.done]
    assert finished == [request.name for request in wanted]
    assert allocator.reserved == held


def test_the_latest_gives_way_and_comes_back_first():
    allocator = BlockAllocator(5, 4)
    scheduler, usage = Scheduler(allocator), trace.Usage()
    first, second, third = (Request(name, 3, 12) for name in "abc")
    for request in (first, second, third):
        scheduler.submit(request)
    while not second.preemptions:
        trace.step(scheduler, usage)
    assert scheduler.running == [first] and list(scheduler.waiting)[:2] == [second, third]
    assert second.generated > 0
    while scheduler.waiting or scheduler.running:
        trace.step(scheduler, usage)
    assert first.preemptions == 0 and all(request.done for request in (first, second, third))


# ---- the lesson's trace ------------------------------------------------------------------------------------

def test_traces_are_seeded_and_have_their_means():
    requests = trace.make_trace(2000, seed=3)
    assert requests == trace.make_trace(2000, seed=3) != trace.make_trace(2000, seed=4)
    assert all(prompt >= 1 and output >= 1 and prompt + output <= 2048 for prompt, output in requests)
    prompts, outputs = (sum(column) / 2000 for column in zip(*requests, strict=True))
    assert 140 < prompts < 175 and 250 < outputs < 350


def test_paging_wastes_little_and_serves_at_least_twice_as_many():
    """The claim of the lesson, on a shorter trace: same memory, same requests."""
    requests, slots = trace.make_trace(150), 16_384
    usages = {policy: trace.serve(ContiguousMemory(slots, policy), requests) for policy in POLICIES}
    paged = trace.serve(BlockAllocator(slots // 16, 16), requests)
    assert paged.wasted < 0.04
    assert paged.used > usages["oracle"].used > usages["max"].used
    assert usages["max"].used < 0.30
    assert usages["max"].steps >= 2 * paged.steps
    assert paged.running >= 2 * usages["max"].running


def test_larger_blocks_waste_more():
    requests = trace.make_trace(60)
    wasted = [trace.serve(BlockAllocator(8192 // size, size), requests).wasted for size in (4, 16, 256)]
    assert 0 <= wasted[0] < wasted[1] < wasted[2]


def test_serve_can_stop_in_the_middle_to_look_at_the_memory():
    allocator = BlockAllocator(64, 16)
    usage = trace.serve(allocator, trace.make_trace(40, 20, 30, longest=400), until=5)
    assert usage.steps == len(usage.samples) == 5 and allocator.stored > 0
    assert set(usage.row()) >= {"steps", "running at once", "memory used"}


# ---- what is refused ---------------------------------------------------------------------------------------

def test_bad_input_is_refused_in_one_line():
    allocator = BlockAllocator(4, 4)
    allocator.create("a")
    scheduler = Scheduler(allocator)
    scheduler.submit(Request("x", 2, 2))
    pieces = ContiguousMemory(64, "max", 64)
    pieces.start("a", 1, 2)
    behind = BlockAllocator(4, 4, prefix="p")
    behind.create("p")
    behind.reserve("p", 6)
    behind.advance("p", 6)
    calls = {
        "blocks must be": lambda: BlockAllocator(0),
        "block_size must be": lambda: BlockAllocator(4, 1.5),
        "exists already": lambda: allocator.create("a"),
        "no sequence 'b'": lambda: allocator.free("b"),
        "no sequence 'c'": lambda: allocator.fork("c", "d"),
        "no sequence 'd'": lambda: allocator.reserve("d"),
        "tokens must be": lambda: allocator.reserve("a", 0),
        "reserve first": lambda: allocator.advance("a", 3),
        "of 17 tokens needs 5 blocks of 4, the pool has 4": lambda: scheduler.submit(Request("y", 9, 8)),
        "behind a prefix of 6": lambda: behind.check_fits(7),
        "prompt_tokens must be": lambda: scheduler.submit(Request("y", 0, 8)),
        "output_tokens must be": lambda: scheduler.submit(Request("y", 1, 0)),
        "named 'x' is waiting": lambda: scheduler.submit(Request("x", 1, 1)),
        "max_batch must be": lambda: Scheduler(allocator, 0),
        "policy must be one of": lambda: ContiguousMemory(64, "best"),
        "longer than the 64 allowed": lambda: pieces.check_fits(65),
        "enlarge it": lambda: ContiguousMemory(32, "max", 64).check_fits(3),
        "is freed already": lambda: pieces.free("b"),
        "sequence 'a' exists": lambda: pieces.start("a", 1, 2),
        "outgrows its piece": lambda: pieces.advance("a", 65),
        "requests must be": lambda: trace.make_trace(0),
        "longest must be": lambda: trace.make_trace(3, 10, 10, longest=5),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
    assert allocator.tables == {"a": []}
    behind.check_fits(6)  # a copy of the half-full block and one block more: all that is left


def test_a_failed_reservation_changes_nothing():
    allocator = BlockAllocator(2, 4)
    allocator.create("a")
    with pytest.raises(OutOfBlocks, match="needs 3 more block"):
        allocator.reserve("a", 9)
    assert allocator.tables == {"a": []} and len(allocator.free_blocks) == 2
