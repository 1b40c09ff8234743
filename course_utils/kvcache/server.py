"""A small server with continuous batching over paged memory: many requests, one model, one pool of blocks."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from course_utils import measure
from course_utils.costs import attention_window
from course_utils.kvcache.block_tables import check_count
from course_utils.kvcache.hashed import HashedPool
from course_utils.kvcache.paged import KVPool, PagedCache
from course_utils.kvcache.scheduler import Request, Scheduler, plan_step
from course_utils.quantize.layerwise import short_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFIX = "shared prefix"


class Server:
    """Answers requests by greedy decoding; each gets the text that it would get alone.

    `submit` requests, then `run`; or call `step` and look at `scheduler` and `pool` in between.

    Args:
        model: a causal language model of transformers. It must read from paged memory as it reads a text: a
            short trial shows it.
        n_blocks: blocks in the pool.
        block_size: tokens in a block.
        max_batch: most requests that run at once.
        prefix: token ids that stand before every prompt (a system prompt): read once, stored once, shared.
        stop: token ids that end an answer.
        budget: most tokens that are read in a step, at least max_batch: long prompts are then read in pieces
            (chunked prefill). None: whole prompts.
        find_prefixes: whether to look for blocks that hold the beginning of a prompt already
            (`HashedPool`). Then no prefix need be named.

    Attributes:
        answers: request -> token ids of its answer, for finished requests.
        batches: how many requests each decoding pass served.
        tokens_read: tokens that went through the model so far.
        preemptions: how often a request had to give way so far.

    Raises:
        ValueError: the model cannot be served, the prefix does not fit into the pool or the model, both a
            prefix and find_prefixes are given, or a count is no whole number of at least 1.
    """

    def __init__(self, model: PreTrainedModel, n_blocks: int, block_size: int = 16, max_batch: int = 8,
                 prefix: Iterable[int] = (), stop: Iterable[int] = (), budget: int | None = None,
                 find_prefixes: bool = False) -> None:
        self.model, self.stop, self.budget = model, set(stop), budget
        self.prefix = list(prefix)
        if budget is not None:
            check_count("budget", budget)
            if budget < max_batch:
                raise ValueError(f"a budget of {budget} tokens does not suffice for a token for each of "
                                 f"{max_batch} requests: raise budget, or lower max_batch")
        if self.prefix and find_prefixes:
            raise ValueError("find_prefixes finds prefixes without being told: give no prefix")
        check_model(model)
        kind = HashedPool if find_prefixes else KVPool
        self.pool = kind(model.config, n_blocks, block_size, model.dtype, model.device)
        self.scheduler = Scheduler(self.pool, max_batch)
        self.ids, self.answers = {}, {}  # request name -> prompt and answer so far; finished answers
        if find_prefixes:
            self.pool.texts = self.ids
        self.batches = []  # how many requests each decoding pass served
        self.tokens_read = self.preemptions = 0
        if self.prefix:
            self.pool.check_fits(len(self.prefix))
            self._check_length(len(self.prefix))
            self._forward([PREFIX], [self.prefix])
            self.pool.prefix = PREFIX

    def submit(self, name: Hashable, prompt: Sequence[int], max_new_tokens: int) -> None:
        """Queue a request.

        Args:
            name: any hashable name that is not taken.
            prompt: token ids, without the prefix.
            max_new_tokens: tokens after which the answer ends, at least 1.

        Raises:
            ValueError: the request can never fit into the pool, the model's positions or its sliding window,
                its name is taken, or prompt or answer have no tokens.
        """
        self._check_length(len(self.prefix) + len(prompt) + max_new_tokens)
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
        self.preemptions += len(self.scheduler.make_room())
        writing = [request.name for request in self.scheduler.running if self._unread(request.name) == 1]
        if writing:
            self.batches.append(len(writing))
            self._give(writing, self._forward(writing, [self.ids[name][-1:] for name in writing]))
        self.scheduler.admit()
        self._read_prompts(writing)
        finished = self.scheduler.finish()
        for request in finished:
            self.answers[request.name] = self.ids.pop(request.name)[request.prompt_tokens :]
        return [request.name for request in finished]

    def written(self, name: Hashable) -> int:
        """Tokens of a request's answer so far.

        Args:
            name: a request that was submitted.

        Returns:
            How many there are.

        Raises:
            ValueError: no such request was submitted.
        """
        if name in self.answers:
            return len(self.answers[name])
        for request in (*self.scheduler.running, *self.scheduler.waiting):
            if request.name == name:
                return request.generated
        raise ValueError(f"no request {name!r} here: submit it first")

    def _read_prompts(self, writing: Sequence[Hashable]) -> None:
        """Read what is unread, as far as the budget goes, of all but those who wrote in this step."""
        names = [request.name for request in self.scheduler.running]
        unread = [1 if name in writing else self._unread(name) for name in names]
        for name, n in zip(names, plan_step(unread, self.budget or sum(unread)), strict=True):
            if n == 0 or name in writing:
                continue
            begin = self._stored(name)  # one by one: prompts have different lengths
            token = self._forward([name], [self.ids[name][begin : begin + n]])
            if self._unread(name) == 0:  # else there is more of the prompt to come
                self._give([name], token)

    def _stored(self, name: Hashable) -> int:
        """Tokens of a running request, without the prefix, whose keys and values are in the pool."""
        return self.pool.lengths[name] - len(self.prefix)

    def _unread(self, name: Hashable) -> int:
        return len(self.ids[name]) - self._stored(name)

    def _check_length(self, total: int) -> None:
        longest = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if longest and total > longest:
            raise ValueError(f"prompt and answer take {total} tokens, the model was made for {longest}")
        window = attention_window(self.model.config)
        if window and total > window:
            raise ValueError(f"prompt and answer take {total} tokens, but layers of this model look back "
                             f"{window} tokens only, and this server knows no sliding window")

    def _forward(self, names: Sequence[Hashable], ids: Sequence[Sequence[int]]) -> list[int]:
        """The next token for each sequence after these new tokens (equally many each)."""
        self.tokens_read += sum(map(len, ids))
        return _logits(self.model, self.pool, names, ids).argmax(dim=-1).tolist()

    def _give(self, names: Sequence[Hashable], tokens: Sequence[int]) -> None:
        requests = {request.name: request for request in self.scheduler.running}
        for name, token in zip(names, tokens, strict=True):
            self.ids[name].append(token)
            request = requests[name]
            request.generated += 1
            if token in self.stop:
                request.output_tokens = request.generated


def check_model(model: PreTrainedModel) -> None:
    """Refuse a model that does not read from paged memory what it reads from a text.

    Not every model takes positions and a mask of the kind that a `PagedCache` gives. So two short texts of
    different lengths are read in the server's way and, each alone, in the ordinary way.

    Args:
        model: a causal language model of transformers.

    Raises:
        ValueError: it keeps no plain keys and values, or its logits differ.
    """
    pool = KVPool(model.config, 3, 4, model.dtype, model.device)
    ids = short_text(model)[0].tolist()
    texts = [ids[:6], ids[6:8]]
    with measure.evaluating(model):
        try:
            for name, text in enumerate(texts):
                _logits(model, pool, [name], [text[:-1]])
            found = _logits(model, pool, [0, 1], [text[-1:] for text in texts]).float()
        except (TypeError, ValueError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"{type(model).__name__} cannot read from paged memory: {reason}") from None
        alone = [model(input_ids=torch.tensor([text], device=model.device), use_cache=False).logits[0, -1]
                 for text in texts]
    expected = torch.stack(alone).float()
    tolerance = 1e-3 if torch.finfo(model.dtype).bits >= 32 else 0.1
    if not (found - expected).square().mean().sqrt() <= tolerance * expected.std():
        raise ValueError(f"{type(model).__name__} cannot be served: with a mask of its own for each request "
                         "it gives other logits than for the text alone")


@torch.no_grad()
def _logits(model: PreTrainedModel, pool: KVPool, names: Sequence[Hashable],
            ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits [batch, vocabulary] after these new tokens (equally many for each sequence)."""
    cache = PagedCache(pool, names)
    ids = torch.tensor(ids, device=model.device)
    n = ids.shape[1]
    return model(input_ids=ids, position_ids=cache.positions(n), attention_mask=cache.mask(n),
                 past_key_values=cache, logits_to_keep=1).logits[:, -1]  # fmt: skip
