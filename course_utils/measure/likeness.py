"""How much a changed model still says what the full one says: KL divergence, first choices, greedy text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from course_utils.measure.comparison import paired_difference
from course_utils.measure.quality import check_text, evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Likeness:
    """What is left of a reference model in another one, on one text.

    Attributes:
        kl: KL(reference || model) in nats a token: 0 where both give the same probabilities.
        kl_error: its standard error, by window; NaN with one window.
        top1: share of positions at which both put the same token first.
        top1_error: its standard error, by window.
        tokens: positions compared.
        window: tokens the models see at once.
    """

    kl: float
    kl_error: float
    top1: float
    top1_error: float
    tokens: int
    window: int

    def __str__(self) -> str:
        return (
            f"KL {self.kl:.4f} ± {self.kl_error:.4f} nats a token, same first choice at {self.top1:.1%} ± "
            f"{self.top1_error:.1%} of {self.tokens:,} positions (window {self.window})"
        )

    def row(self) -> dict[str, float]:
        """The figures as columns of `measure.table`.

        Returns:
            Column -> value.
        """
        return {"KL (nats a token)": round(self.kl, 4), "its error": round(self.kl_error, 4),
                "same first choice (%)": round(100 * self.top1, 1),
                "error (%)": round(100 * self.top1_error, 1)}  # fmt: skip


def likeness(model: PreTrainedModel, reference: PreTrainedModel, tokens: torch.Tensor,
             window: int = 128) -> Likeness:
    """Compare two models' probabilities of the next token, at every position of a text.

    Both read the same windows, one at a time: only the logits of one window are in memory.

    Args:
        model: a causal language model of transformers.
        reference: another one with the same vocabulary.
        tokens: integer tensor [n], token ids; an incomplete last window is left out.
        window: tokens per window, 2 to n.

    Returns:
        KL divergence and agreement with their errors.

    Raises:
        TypeError: `tokens` is no integer tensor.
        ValueError: the text does not fit a model, or the vocabularies differ.
    """
    for each in (model, reference):
        check_text(each, tokens, window, window)
    kl, same = [], []
    with evaluating(model), evaluating(reference):
        for ids in tokens[: len(tokens) // window * window].view(-1, 1, window):
            ours, theirs = (_log_probabilities(each, ids) for each in (model, reference))
            if ours.shape != theirs.shape:
                raise ValueError(f"the vocabularies differ: {ours.shape[-1]:,} and {theirs.shape[-1]:,}")
            kl.append(F.kl_div(ours, theirs, log_target=True, reduction="sum").item())
            same.append((ours.argmax(dim=-1) == theirs.argmax(dim=-1)).sum().item())
    zeros, counts = [0.0] * len(kl), [window] * len(kl)
    mean_kl, kl_error = paired_difference(kl, zeros, counts)
    share, share_error = paired_difference(same, zeros, counts)
    return Likeness(mean_kl, kl_error, share, share_error, sum(counts), window)


def _log_probabilities(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Of the next token, float32 [length, vocabulary] on the CPU, for ids [1, length]."""
    return F.log_softmax(model(input_ids=ids.to(model.device), use_cache=False).logits[0].float(), -1).cpu()


def same_greedy(model: PreTrainedModel, reference: PreTrainedModel, prompts: torch.Tensor,
                new_tokens: int = 32) -> list[int]:
    """How far two models write the same text, always taking the likeliest token.

    Args:
        model: a causal language model of transformers.
        reference: another one.
        prompts: integer tensor [n, length] of token ids.
        new_tokens: so many are written; the end-of-text token is never chosen, so that none stops early.

    Returns:
        For each prompt the number of tokens before the first difference, at most `new_tokens`.
    """
    options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    written = []
    for each in (model, reference):
        ids = prompts.to(each.device)
        text = each.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
        written.append(text[:, prompts.shape[1]:].cpu())
    equal = written[0] == written[1]
    return equal.int().cumprod(dim=1).sum(dim=1).tolist()
