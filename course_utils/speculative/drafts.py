"""Who guesses the next tokens: the text itself, or a smaller model."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from course_utils.prune import depth
from course_utils.speculative.rule import draw, probabilities


def prompt_lookup(ids: list[int], longest: int, count: int) -> list[int]:
    """Guess that the text goes on as it did before: after the same last tokens.

    Looks for the last `longest` tokens further up in the text; if they are not there for one token less, down
    to one. Of several places the first in the text counts, as in transformers.

    Source: A. Saxena, "Prompt Lookup Decoding", github.com/apoorvumang/prompt-lookup-decoding.

    Args:
        ids: the text so far, at least one token.
        longest: how many of its last tokens to look for at first, at least 1.
        count: tokens to guess at most.

    Returns:
        What followed there, at most `count` tokens: fewer at the end of the text, none when nothing is found.
    """
    for n in range(longest, 0, -1):
        for start in range(len(ids) - n):
            if ids[start : start + n] == ids[-n:]:
                return ids[start + n : start + n + count]
    return []


class PromptLookup:
    """A draft without a model: see `prompt_lookup`. It is sure of each guess.

    Args:
        vocabulary: how many tokens the model knows.
        longest: how many of the last tokens it looks for at first.
        device: where the distributions are made.
    """

    def __init__(self, vocabulary: int, longest: int = 3, device: torch.device | str = "cpu") -> None:
        self.vocabulary, self.longest, self.device = vocabulary, longest, device

    def propose(self, ids: list[int], chances: list[float]) -> tuple[list[int], Tensor]:
        """Guess tokens.

        Args:
            ids: the text so far.
            chances: one for each token to guess; not used, nothing is drawn.

        Returns:
            At most as many token ids, and float64 [tokens, vocabulary]: 1 at each of them.
        """
        found = prompt_lookup(ids, self.longest, len(chances))
        sure = torch.tensor(found, dtype=torch.long, device=self.device)
        return found, F.one_hot(sure, self.vocabulary).double()


class ModelDraft:
    """A draft by a smaller model with the same vocabulary. It keeps its own KV cache.

    Args:
        model: a causal language model.
        temperature: 0 for greedy.
    """

    def __init__(self, model: PreTrainedModel, temperature: float = 0.0) -> None:
        self.model, self.temperature = model, temperature
        self.cache = DynamicCache(config=model.config)

    @torch.no_grad()
    def propose(self, ids: list[int], chances: list[float]) -> tuple[list[int], Tensor]:
        """Guess tokens, one pass of the small model for each.

        Args:
            ids: the text so far. It begins as at the last call, except for guesses that were refused.
            chances: one for each token to guess.

        Returns:
            As many token ids, and float64 [tokens, vocabulary]: what each was drawn from.
        """
        take_back(self.cache, len(ids) - 1)
        ids, guessed, used = list(ids), [], []
        for chance in chances:
            unread = torch.tensor([ids[self.cache.get_seq_length() :]], device=self.model.device)
            logits = self.model(input_ids=unread, past_key_values=self.cache, logits_to_keep=1).logits[0, -1]
            used.append(probabilities(logits, self.temperature))
            guessed.append(draw(used[-1], chance))
            ids.append(guessed[-1])
        vocabulary = self.model.config.get_text_config().vocab_size
        return guessed, torch.stack(used) if used else torch.zeros(0, vocabulary, dtype=torch.float64)


def take_back(cache: DynamicCache, length: int) -> None:
    """Let a cache forget what lies behind its first tokens; nothing happens when it holds no more.

    Args:
        cache: a transformers cache; it is changed in place.
        length: tokens that stay.
    """
    excess = cache.get_seq_length() - length
    if excess > 0:
        cache.crop(-excess)


def shorter(model: PreTrainedModel, removed: Iterable[int]) -> PreTrainedModel:
    """A model without some blocks that uses the very weights of the whole one: it takes no memory of its own.

    Args:
        model: a causal language model; it stays as it is.
        removed: numbers of the blocks to leave out.

    Returns:
        Another model. Who changes its weights changes those of `model`.

    Raises:
        ValueError: as `depth.remove_blocks`.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    depth.remove_blocks(twin, removed)
    return twin
