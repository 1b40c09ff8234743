"""The lesson's trace: seeded, and paging wastes less of the memory than what it replaced."""

from course_utils.kvcache import trace
from course_utils.kvcache.block_tables import BlockAllocator
from course_utils.kvcache.contiguous import POLICIES, ContiguousMemory
from tests.unit.kvcache.common import assert_refused


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


def test_bad_input_is_refused_in_one_line():
    assert_refused({
        "requests must be": lambda: trace.make_trace(0),
        "longest must be": lambda: trace.make_trace(3, 10, 10, longest=5),
    })
