"""Many requests of uneven length against a memory of fixed size, counted step by step without a model.

A step is one forward pass in which each running request gets one token. Decoding is bound by reading the
weights, which a step does once for the whole batch: so fewer steps for the same requests mean more served in
the same time, as long as the batch is small enough (see the lesson on one token).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from course_utils.kvcache.block_tables import BlockAllocator, check_count
from course_utils.kvcache.contiguous import ContiguousMemory
from course_utils.kvcache.scheduler import Request, Scheduler


def make_trace(requests: int, prompt_mean: int = 161, output_mean: int = 338, longest: int = 2048,
               spread: float = 1.0, seed: int = 0) -> list[tuple[int, int]]:
    """Draw lengths of chat requests from log-normal distributions.

    The default means are those of ShareGPT conversations in arXiv 2309.06180, figure 11. Lengths are at
    least 1; pairs longer than `longest` together are drawn again, which lowers the means a little.

    Args:
        requests: how many.
        prompt_mean: mean tokens of a prompt.
        output_mean: mean tokens of an answer.
        longest: most tokens of prompt and answer together.
        spread: standard deviation of the lengths' logarithm.
        seed: of the random numbers.

    Returns:
        Pairs (prompt tokens, output tokens).

    Raises:
        ValueError: a number of requests or a mean is no whole number of at least 1, or `longest` is below
            the sum of the means.
    """
    for name, value in (("requests", requests), ("prompt_mean", prompt_mean), ("output_mean", output_mean)):
        check_count(name, value)
    if longest < 2 or prompt_mean + output_mean > longest:
        raise ValueError(f"longest must be at least the sum of the means, {prompt_mean + output_mean}")
    random = np.random.default_rng(seed)
    pairs = []
    while len(pairs) < requests:
        prompt, output = (max(1, round(mean * random.lognormal(-(spread**2) / 2, spread)))
                          for mean in (prompt_mean, output_mean))  # fmt: skip
        if prompt + output <= longest:
            pairs.append((prompt, output))
    return pairs


@dataclass
class Usage:
    """What serving a trace came to. Shares are means over the steps in which somebody had to wait.

    Attributes:
        steps: steps until the last request was done.
        running: requests running at once, mean.
        used: share of the whole memory that holds tokens.
        wasted: share of the reserved memory that holds none.
        preemptions: times that a request had to give way.
        recomputed: tokens read again because of that.
        samples: (stored, reserved, running, waiting) after each step, the first two in tokens.
    """

    steps: int = 0
    running: float = 0.0
    used: float = 0.0
    wasted: float = 0.0
    preemptions: int = 0
    recomputed: int = 0
    samples: list[tuple[int, int, int, int]] = field(default_factory=list, repr=False)

    def row(self) -> dict[str, int | float | str]:
        """The figures as a row of `measure.table`.

        Returns:
            Column -> value.
        """
        return {"steps": self.steps, "running at once": round(self.running, 1),
                "memory used": f"{self.used:.1%}", "reserved but empty": f"{self.wasted:.1%}",
                "preemptions": self.preemptions}  # fmt: skip


def serve(memory: BlockAllocator | ContiguousMemory, trace: Iterable[tuple[int, int]], max_batch: int = 256,
          until: int | None = None) -> Usage:
    """Serve a trace, all of whose requests wait at the start.

    Args:
        memory: a fresh one.
        trace: pairs (prompt tokens, output tokens).
        max_batch: most requests at once.
        until: stop after so many steps (to look at the memory); None: serve everything.

    Returns:
        What it came to.

    Raises:
        ValueError: a request can never fit.
    """
    scheduler = Scheduler(memory, max_batch)
    for name, (prompt, output) in enumerate(trace):
        scheduler.submit(Request(name, prompt, output))
    usage = Usage()
    while (scheduler.waiting or scheduler.running) and usage.steps != until:
        step(scheduler, usage)
        usage.steps += 1
    contended = [s for s in usage.samples if s[3]] or usage.samples
    stored, reserved, running, _ = (sum(column) for column in zip(*contended, strict=True))
    usage.running = running / len(contended)
    usage.used = stored / (memory.slots * len(contended))
    usage.wasted = 1 - stored / reserved
    return usage


def step(scheduler: Scheduler, usage: Usage) -> None:
    """One step: finished requests leave, waiting ones come in, each running one gets a token.

    Args:
        scheduler: who runs and who waits.
        usage: the step's figures are added to it.
    """
    memory = scheduler.memory
    decoding = list(scheduler.running)
    usage.preemptions += len(gone := scheduler.make_room())
    for request in decoding:
        if request not in gone:
            memory.reserve(request.name)
            memory.advance(request.name)
    for request in scheduler.admit():
        known = request.prompt_tokens + request.generated
        usage.recomputed += known if request.preemptions else 0
        memory.advance(request.name, known)
    for request in scheduler.running:
        request.generated += 1
    sample = memory.stored, memory.reserved, len(scheduler.running), len(scheduler.waiting)
    usage.samples.append(sample)
    scheduler.finish()
