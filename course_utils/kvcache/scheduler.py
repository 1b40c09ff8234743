"""Continuous batching: after every single step, finished requests leave and waiting ones come in.

A batch that is put together once runs until its longest answer is done, and the others wait for it with
empty seats. Here the batch is put together anew for each token (G.-I. Yu et al., "Orca", OSDI 2022). When
memory runs out in the middle of answers, the request that came last gives way: its memory is freed and it
waits in front; later its tokens, prompt and answer so far, are read again (preemption by recomputation,
arXiv 2309.06180, section 4.5). A long prompt holds everybody up while it is read; read in pieces, it lets the
others write in between (chunked prefill: A. Agrawal et al., "Sarathi-Serve", arXiv 2403.02310).
"""

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from course_utils.kvcache.block_tables import BlockAllocator, check_count
from course_utils.kvcache.contiguous import ContiguousMemory


def plan_step(unread: Sequence[int], budget: int) -> list[int]:
    """How many tokens each running request reads in the next step, with at most `budget` tokens in all.

    Who writes an answer has one unread token, the one that was written last. These come first: each reads its
    token. What is left of the budget goes to those with more unread tokens (a prompt), first come, first
    served: each gets as much of it as it can use.

    Args:
        unread: tokens that each running request has not read yet, 1 or more, in the order in which they came.
        budget: most tokens in a step.

    Returns:
        Tokens that each request reads, from 0 to its unread ones.

    Raises:
        ValueError: the budget does not even suffice for those with one unread token.
    """
    plan = [1 if tokens == 1 else 0 for tokens in unread]
    left = budget - sum(plan)
    if left < 0:
        raise ValueError(f"a budget of {budget} tokens is too small for {sum(plan)} requests that write")
    for index, tokens in enumerate(unread):
        if tokens > 1:
            plan[index] = min(tokens, left)
            left -= plan[index]
    return plan


@dataclass
class Request:
    """What somebody asked for, and how far the answer is.

    Attributes:
        name: any hashable name, one for each request.
        prompt_tokens: tokens of the prompt.
        output_tokens: tokens of the answer. The scheduler only looks at it to refuse what can never fit, and
            hands it to the memory; paged memory ignores it.
        generated: tokens of the answer so far.
        preemptions: how often it had to give way.
    """

    name: Hashable
    prompt_tokens: int
    output_tokens: int
    generated: int = 0
    preemptions: int = 0

    @property
    def total(self) -> int:
        """Tokens of prompt and answer together."""
        return self.prompt_tokens + self.output_tokens

    @property
    def done(self) -> bool:
        """Whether the answer is complete."""
        return self.generated >= self.output_tokens


class Scheduler:
    """Decides who runs. First come, first served: nobody overtakes, so everybody gets done.

    Args:
        memory: gives each request its place; a KVPool is a BlockAllocator.
        max_batch: most requests that run at once.

    Attributes:
        waiting: requests in the order in which they will be let in.
        running: requests that have memory, the latest last.

    Raises:
        ValueError: max_batch is no whole number of at least 1.
    """

    def __init__(self, memory: BlockAllocator | ContiguousMemory, max_batch: int = 256) -> None:
        check_count("max_batch", max_batch)
        self.memory, self.max_batch = memory, max_batch
        self.waiting, self.running = deque(), []
        self._names = set()

    def submit(self, request: Request) -> None:
        """Put a request into the queue.

        Args:
            request: a new one.

        Raises:
            ValueError: it has no tokens, can never fit into memory, or its name is taken.
        """
        check_count("prompt_tokens", request.prompt_tokens)
        check_count("output_tokens", request.output_tokens)
        self.memory.check_fits(request.total)
        if request.name in self._names:
            raise ValueError(f"a request named {request.name!r} is waiting or running: choose another name")
        self._names.add(request.name)
        self.waiting.append(request)

    def admit(self) -> list[Request]:
        """Let waiting requests in as long as there is room.

        Returns:
            Those let in: their tokens must be read now.
        """
        admitted = []
        while self.waiting and len(self.running) < self.max_batch:
            request = self.waiting[0]
            known = request.prompt_tokens + request.generated
            if not self.memory.start(request.name, known, request.total):
                break
            self.running.append(self.waiting.popleft())
            admitted.append(request)
        return admitted

    def make_room(self) -> list[Request]:
        """Send the latest away until each running request has room for one token.

        Returns:
            Those sent away.
        """
        preempted = []
        while not self.memory.can_grow([request.name for request in self.running]):
            request = self.running.pop()
            self.memory.free(request.name)
            request.preemptions += 1
            self.waiting.appendleft(request)
            preempted.append(request)
        return preempted

    def finish(self) -> list[Request]:
        """Let finished requests go and free their memory.

        Returns:
            Those that are finished.
        """
        finished = [request for request in self.running if request.done]
        self.running = [request for request in self.running if not request.done]
        for request in finished:
            self.memory.free(request.name)
            self._names.remove(request.name)
        return finished
