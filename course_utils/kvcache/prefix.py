"""Reuse across requests: prompts that begin alike (a system prompt, a long document) are read only once.

The keys and values of a token depend on the tokens before it and on nothing after it. So the cache of one
request holds for the next one as far as their tokens agree, and exactly so.
"""

from collections import OrderedDict

from course_utils.kvcache.layers import DynamicLayer, make_cache


class PrefixStore:
    """Keeps the caches of past prompts, and starts new requests from the best of them.

    config      the model's config
    max_tokens  tokens kept in all; the prompts unused for longest go first
    """

    def __init__(self, config, max_tokens=4096):
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
            raise ValueError(f"max_tokens must be a whole number of at least 1, not {max_tokens!r}")
        self.config, self.max_tokens = config, max_tokens
        self.prompts = OrderedDict()  # tuple of token ids -> [(keys, values) of each layer]

    def save(self, ids, cache):
        """Keep the keys and values of the tokens `ids` [n] from the cache that a request has filled.

        cache  a transformers Cache of DynamicLayers (ours or transformers' own), one request in it

        Raises ValueError when the cache holds another batch or fewer tokens, or when n > max_tokens.
        """
        ids = _checked(ids)
        if len(ids) > self.max_tokens:
            raise ValueError(f"{len(ids)} tokens do not fit into {self.max_tokens}: raise max_tokens")
        states = [(layer.keys, layer.values) for layer in cache.layers]
        if any(keys is None or keys.shape[0] != 1 or keys.shape[2] < len(ids) for keys, _ in states):
            raise ValueError(f"the cache must hold one request of at least {len(ids)} tokens")
        n = len(ids)
        self.prompts[ids] = [(k[:, :, :n].clone(), v[:, :, :n].clone()) for k, v in states]
        self.prompts.move_to_end(ids)
        while sum(map(len, self.prompts)) > self.max_tokens:
            self.prompts.popitem(last=False)

    def start(self, ids):
        """(cache, n): a cache that already holds the first n tokens of the request `ids`.

        n is the longest beginning shared with a kept prompt, but at most len(ids) - 1: the model must read
        at least one token to say what comes next. n = 0 and an empty cache when nothing fits.
        """
        ids = _checked(ids)
        best, n = None, 0
        for prompt in self.prompts:
            shared = min(_shared(prompt, ids), len(ids) - 1)
            if shared > n:
                best, n = prompt, shared
        cache = make_cache(self.config, DynamicLayer)
        if best is not None:
            self.prompts.move_to_end(best)
            for layer, (keys, values) in zip(cache.layers, self.prompts[best], strict=True):
                layer.update(keys[:, :, :n], values[:, :, :n])  # copies, so the store stays as it is
        return cache, n


def _shared(a, b):
    """How many tokens two sequences have in common from the start."""
    for n, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return n
    return min(len(a), len(b))


def _checked(ids):
    ids = tuple(ids.tolist() if hasattr(ids, "tolist") else ids)
    if not ids or not all(isinstance(i, int) for i in ids):
        raise ValueError("ids must be the token ids of one request: a list or tensor [n], n >= 1")
    return ids
