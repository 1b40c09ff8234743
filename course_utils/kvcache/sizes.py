"""What a KV cache costs: the bytes that a cache object really holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers.cache_utils import Cache


def stored_bytes(cache: Cache) -> int:
    """Bytes of memory that a transformers Cache holds right now, whatever kind it is.

    Counts each piece of memory once: a view counts with all of the memory that it keeps alive, a pool that
    all layers share is not counted again.

    Args:
        cache: a transformers Cache (ours or theirs).

    Returns:
        Bytes, 0 for a cache that has seen no token.

    Raises:
        TypeError: `cache` has no list of layers.
    """
    if not isinstance(getattr(cache, "layers", None), list):
        raise TypeError(f"cache must be a transformers Cache, not {type(cache).__name__}")
    memory = {}
    for layer in cache.layers:
        for tensor in _tensors(vars(layer)):
            storage = tensor.untyped_storage()
            memory[storage.data_ptr()] = storage.nbytes()
    return sum(memory.values())


def _tensors(value: Any) -> list[torch.Tensor]:
    """All tensors with a token axis inside dicts, lists and small objects that offer `tensors()`."""
    if isinstance(value, torch.Tensor):
        return [value] if value.ndim >= 3 else []  # counters and flags have fewer dimensions
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return _tensors(value.tensors()) if hasattr(value, "tensors") else []
