"""Reuse across requests: prompts that begin alike (a system prompt, a long document) are read only once.

The keys and values of a token depend on the tokens before it and on nothing after it. So the cache of one
request holds for the next one as far as their tokens agree, and exactly so.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from course_utils.kvcache.layers import DynamicLayer, make_cache


def reusable(kept: Sequence[int], ids: Sequence[int]) -> int:
    """How many tokens of a new prompt need not be read, because a kept prompt begins alike.

    Args:
        kept: token ids whose keys and values are at hand.
        ids: token ids of the new prompt, one or more.

    Returns:
        The number of tokens that both have in common from the start, but at most one less than `ids` has: the
        model must read at least one token to say what comes next.
    """
    n = 0
    while n < min(len(kept), len(ids) - 1) and kept[n] == ids[n]:
        n += 1
    return n


class PrefixStore:
    """Keeps the caches of past prompts, and starts new requests from the best of them.

    Args:
        config: the model's.
        max_tokens: tokens kept in all; the prompts unused for longest go first.

    Attributes:
        prompts: token ids of a prompt -> (keys, values) of each layer, the latest used last.

    Raises:
        ValueError: max_tokens is no whole number of at least 1.
    """

    def __init__(self, config: PreTrainedConfig, max_tokens: int = 4096) -> None:
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
            raise ValueError(f"max_tokens must be a whole number of at least 1, not {max_tokens!r}")
        self.config, self.max_tokens = config, max_tokens
        self.prompts = OrderedDict()  # tuple of token ids -> [(keys, values) of each layer]

    def save(self, ids: torch.Tensor | Iterable[int], cache: Cache) -> None:
        """Keep the keys and values of a prompt from the cache that a request has filled.

        Args:
            ids: token ids [n] of the prompt.
            cache: a transformers Cache of DynamicLayers (ours or transformers' own), one request in it.

        Raises:
            ValueError: the cache holds another batch or fewer tokens, or some only; n > max_tokens; or `ids`
                are no token ids.
        """
        ids = _checked(ids)
        if len(ids) > self.max_tokens:
            raise ValueError(f"{len(ids)} tokens do not fit into {self.max_tokens}: raise max_tokens")
        states = [(layer.keys, layer.values) for layer in cache.layers]
        if any(keys is None or keys.shape[0] != 1 or keys.shape[2] < len(ids) for keys, _ in states):
            raise ValueError(f"the cache must hold one request of at least {len(ids)} tokens")
        if any(not len(ids) <= layer.get_seq_length() <= layer.keys.shape[2] for layer in cache.layers):
            raise ValueError(f"the cache must hold all tokens of one request, at least {len(ids)}, as they "
                             "came: make it with DynamicLayer")
        n = len(ids)
        self.prompts[ids] = [(k[:, :, :n].clone(), v[:, :, :n].clone()) for k, v in states]
        self.prompts.move_to_end(ids)
        while sum(map(len, self.prompts)) > self.max_tokens:
            self.prompts.popitem(last=False)

    def start(self, ids: torch.Tensor | Iterable[int]) -> tuple[Cache, int]:
        """Begin a request with what is known of its prompt.

        Args:
            ids: token ids [n] of the prompt.

        Returns:
            (cache, m): a cache that already holds the first m tokens. m is the longest beginning shared with
            a kept prompt, but at most n - 1: the model must read at least one token to say what comes next.
            m = 0 and an empty cache when nothing fits.

        Raises:
            ValueError: `ids` are no token ids.
        """
        ids = _checked(ids)
        best, n = None, 0
        for prompt in self.prompts:
            if reusable(prompt, ids) > n:
                best, n = prompt, reusable(prompt, ids)
        cache = make_cache(self.config, DynamicLayer)
        if best is not None:
            self.prompts.move_to_end(best)
            for layer, (keys, values) in zip(cache.layers, self.prompts[best], strict=True):
                layer.update(keys[:, :, :n], values[:, :, :n])  # copies, so the store stays as it is
        return cache, n


def _checked(ids: torch.Tensor | Iterable[int]) -> tuple[int, ...]:
    ids = tuple(ids.tolist() if hasattr(ids, "tolist") else ids)
    if not ids or not all(isinstance(i, int) for i in ids):
        raise ValueError("ids must be the token ids of one request: a list or tensor [n], n >= 1")
    return ids
