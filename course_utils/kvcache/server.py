"""A small server with continuous batching over paged memory: many requests, one model, one pool of blocks."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from course_utils.kvcache.block_tables import check_count
from course_utils.kvcache.paged import KVPool, PagedCache
from course_utils.kvcache.scheduler import Request, Scheduler

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFIX = "shared prefix"


class Server:
    """Answers requests by greedy decoding; each gets the text that it would get alone.

    `submit` requests, then `run`; or call `step` and look at `scheduler` and `pool` in between.

    Args:
        model: a Llama-style causal language model of transformers.
        n_blocks: blocks in the pool.
        block_size: tokens in a block.
        max_batch: most requests that run at once.
        prefix: token ids that stand before every prompt (a system prompt): read once, stored once, shared.
        stop: token ids that end an answer.

    Attributes:
        answers: request -> token ids of its answer, for finished requests.
        batches: how many requests each decoding pass served.

    Raises:
        ValueError: the prefix does not fit into the pool, or a count is no whole number of at least 1.
    """

    def __init__(self, model: PreTrainedModel, n_blocks: int, block_size: int = 16, max_batch: int = 8,
                 prefix: Iterable[int] = (), stop: Iterable[int] = ()) -> None:
        self.model, self.stop = model, set(stop)
        self.pool = KVPool(model.config, n_blocks, block_size, model.dtype, model.device)
        self.scheduler = Scheduler(self.pool, max_batch)
        self.ids, self.answers = {}, {}  # request name -> prompt and answer so far; finished answers
        self.batches = []  # how many requests each decoding pass served
        self.prefix = list(prefix)
        if self.prefix:
            self.pool.check_fits(len(self.prefix))
            self._forward([PREFIX], [self.prefix])
            self.pool.prefix = PREFIX

    def submit(self, name: Hashable, prompt: Sequence[int], max_new_tokens: int) -> None:
        """Queue a request.

        Args:
            name: any hashable name that is not taken.
            prompt: token ids, without the prefix.
            max_new_tokens: tokens after which the answer ends, at least 1.

        Raises:
            ValueError: the request can never fit into the pool or the model's positions, its name is taken,
                or prompt or answer have no tokens.
        """
        total = len(self.prefix) + len(prompt) + max_new_tokens
        longest = self.model.config.max_position_embeddings
        if total > longest:
            raise ValueError(f"prompt and answer take {total} tokens, the model was made for {longest}")
        if name in self.answers or name == PREFIX:
            raise ValueError(f"the name {name!r} is taken: choose another")
        check_count("max_new_tokens", max_new_tokens)
        self.scheduler.submit(Request(name, len(prompt), max_new_tokens))
        self.ids[name] = [int(i) for i in prompt]

    def run(self) -> dict[Hashable, list[int]]:
        """Serve until nobody waits.

        Returns:
            Request -> token ids of its answer.
        """
        while self.scheduler.waiting or self.scheduler.running:
            self.step()
        return self.answers

    def step(self) -> list[Hashable]:
        """One round: a token for each running request, then room for those who wait.

        Returns:
            Names of the requests that finished.
        """
        self.scheduler.make_room()
        running = [request.name for request in self.scheduler.running]
        if running:
            self.batches.append(len(running))
            self._give(running, self._forward(running, [self.ids[name][-1:] for name in running]))
        for request in self.scheduler.admit():  # one by one: prompts have different lengths
            self._give([request.name], self._forward([request.name], [self.ids[request.name]]))
        finished = self.scheduler.finish()
        for request in finished:
            self.answers[request.name] = self.ids.pop(request.name)[request.prompt_tokens :]
        return [request.name for request in finished]

    @torch.no_grad()
    def _forward(self, names: Sequence[Hashable], ids: Sequence[Sequence[int]]) -> list[int]:
        """The next token for each sequence after these new tokens (equally many each)."""
        cache = PagedCache(self.pool, names)
        ids = torch.tensor(ids, device=self.model.device)
        n = ids.shape[1]
        logits = self.model(input_ids=ids, position_ids=cache.positions(n), attention_mask=cache.mask(n),
                            past_key_values=cache, logits_to_keep=1).logits  # fmt: skip
        return logits[:, -1].argmax(dim=-1).tolist()

    def _give(self, names: Sequence[Hashable], tokens: Sequence[int]) -> None:
        requests = {request.name: request for request in self.scheduler.running}
        for name, token in zip(names, tokens, strict=True):
            self.ids[name].append(token)
            request = requests[name]
            request.generated += 1
            if token in self.stop:
                request.output_tokens = request.generated
