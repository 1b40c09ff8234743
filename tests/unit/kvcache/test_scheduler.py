"""Every request is served, whoever has to give way."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.kvcache import trace
from course_utils.kvcache.block_tables import BlockAllocator
from course_utils.kvcache.contiguous import POLICIES, ContiguousMemory
from course_utils.kvcache.scheduler import Request, Scheduler
from tests.unit.kvcache.common import assert_refused, check_sound


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


def test_bad_input_is_refused_in_one_line():
    allocator = BlockAllocator(4, 4)
    allocator.create("a")
    scheduler = Scheduler(allocator)
    scheduler.submit(Request("x", 2, 2))
    assert_refused({
        "of 17 tokens needs 5 blocks of 4, the pool has 4": lambda: scheduler.submit(Request("y", 9, 8)),
        "prompt_tokens must be": lambda: scheduler.submit(Request("y", 0, 8)),
        "output_tokens must be": lambda: scheduler.submit(Request("y", 1, 0)),
        "named 'x' is waiting": lambda: scheduler.submit(Request("x", 1, 1)),
        "max_batch must be": lambda: Scheduler(allocator, 0),
    })
    assert allocator.tables == {"a": []}
