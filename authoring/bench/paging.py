"""The same trace of requests in the same memory: reserved in one piece, and in blocks. No model, no clock."""

from course_utils.kvcache import trace
from course_utils.kvcache.block_tables import BlockAllocator
from course_utils.kvcache.contiguous import ContiguousMemory

TITLE = "200 requests in a KV memory of 16,384 tokens: one piece for each, and blocks"
RATIO_OF = "steps"
SLOTS = 16_384
MEMORIES = {
    "blocks of 16": lambda: BlockAllocator(SLOTS // 16, 16),
    "blocks of 128": lambda: BlockAllocator(SLOTS // 128, 128),
    "one piece, the length known": lambda: ContiguousMemory(SLOTS, "oracle"),
    "one piece, the length guessed within 2x": lambda: ContiguousMemory(SLOTS, "pow2"),
    "one piece of 2,048 slots": lambda: ContiguousMemory(SLOTS, "max"),
}


def bench() -> list[dict]:
    """Serve the trace from each memory.

    Returns:
        One row for each way to give out memory; "ratio" is steps against blocks of 16.
    """
    requests = trace.make_trace(200)
    rows = []
    for name, make in MEMORIES.items():
        usage = trace.serve(make(), requests)
        rows.append({"memory": name, "steps": usage.steps, "running at once": usage.running,
                     "memory used": usage.used, "reserved but empty": usage.wasted,
                     "preemptions": usage.preemptions, "tokens recomputed": usage.recomputed})
    return rows
