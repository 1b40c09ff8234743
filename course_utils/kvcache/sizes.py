"""What a KV cache costs: the bytes that a cache object really holds."""

import torch


def stored_bytes(cache):
    """Bytes of memory that a transformers Cache holds right now, whatever kind it is.

    cache  a transformers Cache (ours or theirs)

    Counts each piece of memory once: a view counts with all of the memory that it keeps alive, a pool that
    all layers share is not counted again. Returns an int, 0 for a cache that has seen no token.
    Raises TypeError when `cache` has no list of layers.
    """
    if not isinstance(getattr(cache, "layers", None), list):
        raise TypeError(f"cache must be a transformers Cache, not {type(cache).__name__}")
    memory = {}
    for layer in cache.layers:
        for tensor in _tensors(vars(layer)):
            storage = tensor.untyped_storage()
            memory[storage.data_ptr()] = storage.nbytes()
    return sum(memory.values())


def _tensors(value):
    """All tensors with a token axis inside dicts, lists and small objects that offer `tensors()`."""
    if isinstance(value, torch.Tensor):
        return [value] if value.ndim >= 3 else []  # counters and flags have fewer dimensions
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return _tensors(value.tensors()) if hasattr(value, "tensors") else []
