"""Draft, check, take back what was refused, go on."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel

from course_utils import measure
from course_utils.speculative.drafts import ModelDraft, PromptLookup, take_back
from course_utils.speculative.rule import probabilities, verify


@dataclass(frozen=True)
class Run:
    """A text that was written with a draft.

    Attributes:
        tokens: the new token ids.
        passes: of the model, the one that reads the prompt included.
        drafted: tokens that were guessed.
        accepted: how many of them stayed.
        seconds: all of it took, the reading of the prompt included.
    """

    tokens: list[int]
    passes: int
    drafted: int
    accepted: int
    seconds: float


@torch.no_grad()
def generate(model: PreTrainedModel, draft: PromptLookup | ModelDraft | None, ids: torch.Tensor,
             new_tokens: int, count: int = 4, temperature: float = 0.0, seed: int = 0) -> Run:
    """Write tokens after a prompt. With a draft they are distributed as without one, token by token.

    At temperature 0 that means: they are the same.

    Args:
        model: a causal language model with a KV cache that can forget its last tokens.
        draft: who guesses; it must draw at the same temperature or be sure. None: nobody, one token a pass.
        ids: integer tensor [n], the prompt, n >= 1.
        new_tokens: tokens to write; an end-of-text token does not stop it, so the work is always the same.
        count: tokens drafted for each pass.
        temperature: of the model's distribution; 0 is greedy.
        seed: of all chances.

    Returns:
        The text and what it took.

    Raises:
        ValueError: `ids` is no such tensor, `count` or `new_tokens` is below 1, or the text becomes too long.
    """
    _check(model, ids, new_tokens, count)
    generator = torch.Generator().manual_seed(seed)
    cache, written = DynamicCache(config=model.config), ids.tolist()
    goal, passes, drafted, accepted = len(ids) + new_tokens, 0, 0, 0
    nothing = torch.zeros(0, model.config.get_text_config().vocab_size, dtype=torch.float64)
    start = time.perf_counter()
    while len(written) < goal:
        room = min(count, goal - len(written) - 1)  # the model adds one of its own
        chances = torch.rand(2 * room + 1, generator=generator, dtype=torch.float64).tolist()
        guesses, used = draft.propose(written, chances[:room]) if draft and room else ([], nothing)
        unread = torch.tensor([written[cache.get_seq_length() :] + guesses], device=model.device)
        logits = model(input_ids=unread, past_key_values=cache, logits_to_keep=len(guesses) + 1).logits[0]
        new = verify(probabilities(logits, temperature), used, guesses, chances[room:])
        written += new
        take_back(cache, len(written) - 1)
        passes, drafted, accepted = passes + 1, drafted + len(guesses), accepted + len(new) - 1
    measure.synchronize()
    return Run(written[len(ids) :], passes, drafted, accepted, time.perf_counter() - start)


def _check(model: PreTrainedModel, ids: torch.Tensor, new_tokens: int, count: int) -> None:
    """Refuse what cannot be written: ValueError."""
    if ids.ndim != 1 or not len(ids) or ids.is_floating_point():
        raise ValueError(f"ids must be an integer tensor [n] with n >= 1, not {ids.dtype} {list(ids.shape)}")
    if new_tokens < 1 or count < 1:
        raise ValueError(f"new_tokens ({new_tokens}) and count ({count}) must be at least 1")
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest and len(ids) + new_tokens > longest:
        raise ValueError(f"the text would have {len(ids) + new_tokens} tokens, the model was made for "
                         f"{longest}")
