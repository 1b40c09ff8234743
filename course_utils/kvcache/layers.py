"""Three KV caches that are exact, as layers that plug into any transformers model.

transformers asks a cache for little. Before a forward pass: how long the past is and how wide the attention
mask must be (`get_seq_length`, `get_mask_sizes`). In each attention layer: `update(keys, values)` takes the
keys and values of the new tokens, already rotated by their positions, and returns all that the queries may
look at. A `Cache` is a list of such layers. Keys and values are [batch, key-value heads, tokens, head_dim].

Interface: transformers 5.23, cache_utils.py, classes CacheLayerMixin and Cache.
"""

from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

from course_utils import costs


def make_cache(config: PreTrainedConfig, layer: type[CacheLayerMixin], **arguments: Any) -> Cache:
    """Make a transformers Cache with one `layer(**arguments)` for each layer of the model.

    Args:
        config: the model's.
        layer: a class of this package: DynamicLayer, StaticLayer, SlidingWindowLayer, QuantizedLayer.
        **arguments: what that class takes, such as max_tokens=512.

    Returns:
        An empty cache.

    Raises:
        TypeError: `layer` is no cache layer.
        ValueError: the class does not take these arguments' values, or the model does not work with it.
    """
    if not (isinstance(layer, type) and issubclass(layer, CacheLayerMixin)):
        raise TypeError(f"layer must be a class such as DynamicLayer, not {layer!r}")
    layers, _, _ = costs.kv_shape(config)
    if issubclass(layer, SlidingWindowLayer):
        _check_window_fits(config, layer(**arguments).sinks)
    return Cache(layers=[layer(**arguments) for _ in range(layers)])


def _check_window_fits(config: PreTrainedConfig, sinks: int) -> None:
    """Refuse what would get a mask or a bias for other columns than those that are kept: ValueError."""
    if config.model_type in ("bloom", "mpt") or getattr(config, "alibi", False):
        raise ValueError(f"{config.model_type} adds a number to each score by the token's place (ALiBi), "
                         "which needs the whole past: use DynamicLayer or StaticLayer")
    own = costs.attention_window(config)
    if sinks and own:
        raise ValueError(f"{config.model_type} has layers with a window of {own} tokens of its own: it would "
                         "mask sinks as if they stood elsewhere, so leave them out")


class Layer(CacheLayerMixin):
    """What our layers have in common: the tokens seen so far, and a check of what comes in."""

    is_sliding = False
    is_compileable = False  # transformers would then compile the model on a GPU
    is_croppable = False  # used by assisted decoding, which takes rejected tokens back

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0  # tokens that went through this layer

    def get_seq_length(self) -> int:
        """Count the tokens seen.

        Returns:
            Their number, which is the position of the next one.
        """
        return self.seen

    def get_max_length(self) -> int:
        """Most tokens the layer takes.

        Returns:
            -1: no limit.
        """
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """What transformers needs for the attention mask of a pass.

        Args:
            query_length: new tokens in the pass.

        Returns:
            (width of the mask, position of its first column), in tokens.
        """
        return self.seen + query_length, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Begin with no tokens, with the batch, heads, dtype and device of the first keys and values.

        Args:
            key_states: the first keys, float [batch, heads, n, head_dim].
            value_states: the first values, of the same shape.
        """
        self.keys = key_states.new_empty(*key_states.shape[:2], 0, key_states.shape[3])
        self.values = value_states.new_empty(*value_states.shape[:2], 0, value_states.shape[3])
        self.is_initialized = True

    def reset(self) -> None:
        """Forget all tokens."""
        self.keys = self.values = None
        self.is_initialized, self.seen = False, 0

    def _begin(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Set up at the first update; afterwards refuse another batch size, which would mix up requests."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.keys.shape[0] != key_states.shape[0]:
            raise ValueError(f"the cache holds a batch of {self.keys.shape[0]}, {key_states.shape[0]} came: "
                             "make a new cache, or call reset()")  # fmt: skip


class DynamicLayer(Layer):
    """Grows with the text: new keys and values are appended by concatenation.

    Holds exactly what is needed, but each step copies the whole past into a new tensor.
    """

    is_croppable = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any,
               **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the new tokens.

        Args:
            key_states: their keys, float [batch, heads, n, head_dim].
            value_states: their values, of the same shape.
            *args: ignored, as is `kwargs`: transformers passes more than we need.
            **kwargs: ignored.

        Returns:
            All keys and all values, each [batch, heads, seen, head_dim].

        Raises:
            ValueError: the batch has another size than before.
        """
        self._begin(key_states, value_states)
        self.keys = torch.cat([self.keys, key_states], dim=2)
        self.values = torch.cat([self.values, value_states], dim=2)
        self.seen += key_states.shape[2]
        return self.keys, self.values

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens.

        Args:
            tokens_to_remove: their number as a negative int (or 0), as in transformers 5.

        Raises:
            ValueError: the number is positive.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): give the tokens to remove as a negative number")
        if self.is_initialized and tokens_to_remove:
            self.seen = max(0, self.seen + tokens_to_remove)
            self.keys = self.keys[:, :, : self.seen]
            self.values = self.values[:, :, : self.seen]


class StaticLayer(Layer):
    """Preallocated: room for max_tokens is taken at the first update, new tokens are written in place.

    Nothing is copied and no address changes, but the room is taken from the first token on. We return the
    filled part only. transformers' own StaticCache returns all of it and masks the rest: every shape then
    stays the same, which torch.compile and CUDA graphs need.

    Args:
        max_tokens: tokens to take room for.

    Raises:
        ValueError: max_tokens is no whole number of at least 1.
    """

    def __init__(self, max_tokens: int) -> None:
        super().__init__()
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
            raise ValueError(f"max_tokens must be a whole number of at least 1, not {max_tokens!r}")
        self.max_tokens = max_tokens

    def get_max_length(self) -> int:
        """Most tokens the layer takes.

        Returns:
            max_tokens.
        """
        return self.max_tokens

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take the memory: two tensors of zeros [batch, heads, max_tokens, head_dim].

        Args:
            key_states: the first keys, float [batch, heads, n, head_dim].
            value_states: the first values, of the same shape.
        """
        self.keys = key_states.new_zeros(*key_states.shape[:2], self.max_tokens, key_states.shape[3])
        self.values = value_states.new_zeros(*value_states.shape[:2], self.max_tokens, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any,
               **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens behind the others.

        Args:
            key_states: their keys, float [batch, heads, n, head_dim].
            value_states: their values, of the same shape.
            *args: ignored.
            **kwargs: ignored.

        Returns:
            The filled part: all keys and all values, each [batch, heads, seen, head_dim].

        Raises:
            ValueError: the tokens do not fit, or the batch has another size than before.
        """
        self._begin(key_states, value_states)
        end = self.seen + key_states.shape[2]
        if end > self.max_tokens:
            raise ValueError(f"the static cache has room for {self.max_tokens} tokens, {end} are needed: "
                             "make it with a larger max_tokens")  # fmt: skip
        self.keys[:, :, self.seen : end] = key_states
        self.values[:, :, self.seen : end] = value_states
        self.seen = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def reset(self) -> None:
        """Forget all tokens but keep the memory: that is the point of it."""
        self.seen = 0


class SlidingWindowLayer(Layer):
    """Keeps the newest tokens, and the first few if asked: memory stops growing.

    Fed token by token (or with a first prompt no longer than the window), it gives what a model without
    cache gives under `window_mask`. When several tokens come in one pass, the earlier ones of them see a
    little more than their window. With sinks, a batch of padded prompts is not supported: the mask of the
    padding would fall on the wrong columns.

    Args:
        window: how many tokens a token looks at, itself included, at least 1.
        sinks: how many of the first tokens are kept besides ("attention sinks", arXiv 2309.17453).

    Raises:
        ValueError: a number is no whole one, or too small.
    """

    is_sliding = True

    def __init__(self, window: int, sinks: int = 0) -> None:
        super().__init__()
        check_window(window, sinks)
        self.window, self.sinks = window, sinks

    def get_max_length(self) -> int:
        """Most tokens that one token looks at.

        Returns:
            The window and the sinks.
        """
        return self.sinks + self.window

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """What transformers needs for the attention mask of a pass.

        Args:
            query_length: new tokens in the pass.

        Returns:
            (width of the mask, position of its first column), in tokens: only what is kept has columns.
        """
        kept = self._kept()
        return kept + query_length, self.seen - kept

    def _kept(self) -> int:
        return min(self.seen, self.sinks + self.window - 1)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any,
               **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the new tokens, then drop what the next token must not see.

        Args:
            key_states: their keys, float [batch, heads, n, head_dim].
            value_states: their values, of the same shape.
            *args: ignored.
            **kwargs: ignored.

        Returns:
            Keys and values of what was kept and of the new tokens, each [batch, heads, kept + n, head_dim].

        Raises:
            ValueError: the batch has another size than before.
        """
        self._begin(key_states, value_states)
        keys = torch.cat([self.keys, key_states], dim=2)
        values = torch.cat([self.values, value_states], dim=2)
        self.seen += key_states.shape[2]
        self.keys, self.values = self._trim(keys), self._trim(values)
        return keys, values

    def _trim(self, states: torch.Tensor) -> torch.Tensor:
        tokens = states.shape[2]
        if tokens <= self._kept():
            return states
        recent = states[:, :, tokens - (self.window - 1) :]  # not -(window - 1): for window 1 that is all
        return torch.cat([states[:, :, : self.sinks], recent], dim=2)  # a copy: a view would keep all alive


def window_mask(tokens: int, window: int, sinks: int = 0,
                dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The attention mask of a sliding window, for a model that runs without cache.

    A token sees itself, the window - 1 tokens before it, and the first `sinks` tokens.

    Args:
        tokens: length of the text.
        window: tokens that a token looks at, itself included, at least 1.
        sinks: how many of the first tokens are seen besides.
        dtype: a float dtype, that of the attention scores.

    Returns:
        Tensor [1, 1, tokens, tokens] of `dtype`, to be added to the attention scores: 0 where the query
        (row) may see the key (column), the lowest number of `dtype` elsewhere.

    Raises:
        ValueError: `window` or `sinks` is no whole number, or too small.
    """
    check_window(window, sinks)
    query, key = torch.arange(tokens)[:, None], torch.arange(tokens)[None, :]
    visible = (key <= query) & ((query - key < window) | (key < sinks))
    mask = torch.zeros(tokens, tokens, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
    return mask[None, None]


def check_window(window: Any, sinks: Any) -> None:
    """Refuse a window or a number of first tokens that makes no sense.

    Args:
        window: tokens that a token looks at, itself included.
        sinks: how many of the first tokens are seen besides.

    Raises:
        ValueError: one of them is no whole number, or too small.
    """
    for name, value, low in (("window", window, 1), ("sinks", sinks, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"{name} must be a whole number of at least {low}, not {value!r}")
