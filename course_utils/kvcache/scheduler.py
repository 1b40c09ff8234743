"""Continuous batching: after every single step, finished requests leave and waiting ones come in.

A batch that is put together once runs until its longest answer is done, and the others wait for it with
empty seats. Here the batch is put together anew for each token (G.-I. Yu et al., "Orca", OSDI 2022). When
memory runs out in the middle of answers, the request that came last gives way: its memory is freed and it
waits in front; later its tokens, prompt and answer so far, are read again (preemption by recomputation,
arXiv 2309.06180, section 4.5).
"""

from collections import deque
from dataclasses import dataclass

from course_utils.kvcache.block_tables import check_count


@dataclass
class Request:
    """What somebody asked for, and how far the answer is.

    name           any hashable name, one for each request
    prompt_tokens  tokens of the prompt
    output_tokens  tokens of the answer. The scheduler only looks at it to refuse what can never fit, and
                   hands it to the memory; paged memory ignores it
    generated      tokens of the answer so far
    preemptions    how often it had to give way
    """

    name: object
    prompt_tokens: int
    output_tokens: int
    generated: int = 0
    preemptions: int = 0

    @property
    def total(self):
        return self.prompt_tokens + self.output_tokens

    @property
    def done(self):
        return self.generated >= self.output_tokens


class Scheduler:
    """Decides who runs. First come, first served: nobody overtakes, so everybody gets done.

    memory     BlockAllocator, KVPool or ContiguousMemory
    max_batch  most requests that run at once
    """

    def __init__(self, memory, max_batch=256):
        check_count("max_batch", max_batch)
        self.memory, self.max_batch = memory, max_batch
        self.waiting, self.running = deque(), []
        self._names = set()

    def submit(self, request):
        """Put a request into the queue. ValueError when it has no tokens, or can never fit into memory."""
        check_count("prompt_tokens", request.prompt_tokens)
        check_count("output_tokens", request.output_tokens)
        self.memory.check_fits(request.total)
        if request.name in self._names:
            raise ValueError(f"a request named {request.name!r} is waiting or running: choose another name")
        self._names.add(request.name)
        self.waiting.append(request)

    def admit(self):
        """Let waiting requests in as long as there is room. Returns those: their tokens must be read now."""
        admitted = []
        while self.waiting and len(self.running) < self.max_batch:
            request = self.waiting[0]
            known = request.prompt_tokens + request.generated
            if not self.memory.start(request.name, known, request.total):
                break
            self.running.append(self.waiting.popleft())
            admitted.append(request)
        return admitted

    def make_room(self):
        """Send the latest away until each running request has room for one token. Returns those sent away."""
        preempted = []
        while not self.memory.can_grow([request.name for request in self.running]):
            request = self.running.pop()
            self.memory.free(request.name)
            request.preemptions += 1
            self.waiting.appendleft(request)
            preempted.append(request)
        return preempted

    def finish(self):
        """Let finished requests go and free their memory. Returns them."""
        finished = [request for request in self.running if request.done]
        self.running = [request for request in self.running if not request.done]
        for request in finished:
            self.memory.free(request.name)
            self._names.remove(request.name)
        return finished
