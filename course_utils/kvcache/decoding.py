"""Greedy decoding written out, and the perplexity of a text that is read through a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from course_utils import measure

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache


@torch.no_grad()
def greedy(model: PreTrainedModel, ids: torch.Tensor, new_tokens: int,
           cache: Cache | None = None) -> torch.Tensor:
    """Continue a text by the most likely token, again and again.

    Args:
        model: a causal language model of transformers.
        ids: integer tensor [batch, n], n >= 1, no padding.
        new_tokens: tokens to write; an end-of-text token does not stop it, so the work is always the same.
        cache: a transformers Cache (possibly holding the first tokens of ids already); None: no cache at
            all, each step reads the whole text again.

    Returns:
        Integer tensor [batch, n + new_tokens].

    Raises:
        ValueError: `ids` is no such tensor, the text becomes too long for the model, the cache holds all its
            tokens already, the model puts nothing into it, or it reads in both directions.
    """
    _check_ids(ids)
    measure.check_causal(model, ids[0])
    _check_length(model, ids.shape[1] + new_tokens)
    for _ in range(new_tokens):
        if cache is None:
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits
        else:
            unread = ids[:, cache.get_seq_length() :]
            if unread.shape[1] == 0:
                raise ValueError("the cache already holds all tokens of ids: leave out at least the last")
            logits = _through(model, unread, cache, logits_to_keep=1)
        ids = torch.cat([ids, logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    return ids


@torch.no_grad()
def read(model: PreTrainedModel, ids: torch.Tensor, cache: Cache, chunk: int = 1) -> torch.Tensor:
    """Logits of every token when a text is read through a cache, `chunk` tokens a pass.

    Args:
        model: a causal language model of transformers.
        ids: integer tensor [batch, n], the part of the text that the cache does not hold yet.
        cache: a transformers Cache; it holds these tokens too afterwards.
        chunk: tokens in one pass. Within a pass a token sees the exact keys and values of its pass-mates, so
            a cache that rounds or forgets shows its effect only between passes.

    Returns:
        Float logits [batch, n, vocabulary].

    Raises:
        ValueError: `ids` is no such tensor, the text is too long for the model, `chunk` is below 1, or the
            model reads in both directions or puts nothing into the cache.
    """
    _check_ids(ids)
    measure.check_causal(model, ids[0])
    _check_length(model, cache.get_seq_length() + ids.shape[1])
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"chunk must be a whole number of at least 1, not {chunk!r}")
    passes = [_through(model, part, cache) for part in ids.split(chunk, dim=1)]
    return torch.cat(passes, dim=1)


def cached_perplexity(model: PreTrainedModel, tokens: torch.Tensor, make: Callable[[], Cache],
                      window: int = 512, chunk: int = 32) -> measure.Perplexity:
    """Perplexity of a text, each window of which is read through a cache of its own.

    Args:
        model: a causal language model of transformers.
        tokens: integer tensor [n], token ids; an incomplete last window is left out.
        make: returns an empty cache.
        window: tokens a cache must hold, at least 2.
        chunk: tokens a pass, see `read`.

    Returns:
        With an exact cache, the same number as measure.perplexity(model, tokens, window) on whole windows.

    Raises:
        ValueError: the text is shorter than a window, `window` or `chunk` does not fit, or the tokens are not
            of this model's vocabulary.
    """
    measure.check_text(model, tokens, window, window)
    device = next(model.parameters()).device
    whole = tokens[: len(tokens) // window * window].view(-1, window).to(device)
    sums = []
    for row in tqdm(whole, desc="cached perplexity", unit="window", leave=False, delay=3):
        logits = read(model, row[None], make(), chunk)[0, :-1]
        sums.append(F.cross_entropy(logits.float(), row[1:], reduction="sum").item())
    counts = [window - 1] * len(whole)
    return measure.perplexity_of_windows(sums, counts, whole.flatten(), window, window, device)


def _through(model: PreTrainedModel, ids: torch.Tensor, cache: Cache, **arguments: Any) -> torch.Tensor:
    """Logits of one pass that reads and fills the cache: some models take no notice of it."""
    before = int(cache.get_seq_length())  # StaticCache of transformers hands out the tensor that it counts in
    logits = model(input_ids=ids, past_key_values=cache, **arguments).logits
    if cache.get_seq_length() == before:
        raise ValueError(f"{type(model).__name__} puts nothing into a KV cache: read the text without one")
    return logits


def _check_length(model: PreTrainedModel, tokens: int) -> None:
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest and tokens > longest:
        raise ValueError(f"the text would have {tokens} tokens, the model was made for {longest}")


def _check_ids(ids: Any) -> None:
    if not isinstance(ids, torch.Tensor) or ids.ndim != 2 or ids.shape[1] == 0 or ids.is_floating_point():
        shape = list(ids.shape) if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise ValueError(f"ids must be an integer tensor [batch, n] with n >= 1, not {shape}")
