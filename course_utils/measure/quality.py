"""How good a model is: perplexity on text, accuracy on labels."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Logits are the largest thing a perplexity needs: 512 tokens x 49,152 entries
# x 4 bytes = 100 MB. One batch of windows may hold about this much.
LOGIT_BYTES = 128e6


@dataclass(frozen=True)
class Perplexity:
    """A perplexity, with all that is needed to compare it with another one.

    Attributes:
        value: exp(nll): the model hesitates as if between this many equally likely tokens.
        nll: mean negative log-likelihood of a scored token, in nats.
        tokens: number of tokens scored.
        window: tokens the model sees at once.
        stride: tokens by which the window moves (= window: windows do not overlap).
        device: where it ran.
        window_nll: negative log-likelihood of each window, summed over its scored tokens, in nats:
            `measure.compare` pairs two models by window.
        window_tokens: number of tokens scored in each window.
        text: digest of the tokens and of how they were cut; two perplexities of one text have the same.
    """

    value: float
    nll: float
    tokens: int
    window: int
    stride: int
    device: str
    window_nll: tuple[float, ...] = field(default=(), repr=False)
    window_tokens: tuple[int, ...] = field(default=(), repr=False)
    text: str = field(default="", repr=False)

    def __str__(self) -> str:
        return (
            f"perplexity {self.value:.2f} ({self.nll:.4f} nats per token; {self.tokens:,} tokens scored, "
            f"window {self.window}, stride {self.stride}, {self.device})"
        )

    def row(self) -> dict[str, float]:
        """The figures as a row of `measure.table`.

        Returns:
            Column -> value.
        """
        return {"perplexity": round(self.value, 2), "tokens scored": self.tokens, "window": self.window}


def perplexity(model: PreTrainedModel, tokens: torch.Tensor, window: int = 512, stride: int | None = None,
               batch_size: int | None = None) -> Perplexity:
    """Perplexity of a causal language model on a text.

    The text is cut into windows of `window` tokens. The model predicts every token of a window from the
    ones before it in the same window, so the first token of a window is not scored. With `stride` smaller
    than `window` the windows overlap, and only tokens that no earlier window scored are scored: each has
    more context, and the work grows by window / stride. Method: "Perplexity of fixed-length models",
    transformers documentation, with every token counted once.

    Args:
        model: a causal language model of transformers: model(input_ids).logits is [batch, length, vocab].
        tokens: integer tensor [n], token ids.
        window: tokens per window, 2 to n.
        stride: 1 to window; None means window.
        batch_size: windows per forward pass; None chooses it so that the logits stay near 128 MB.

    Returns:
        The perplexity and how it was measured.

    Raises:
        TypeError: `tokens` is no integer tensor.
        ValueError: an argument is out of range, the tokens are not of this model's vocabulary, or the model
            reads in both directions.
    """
    stride = window if stride is None else stride
    check_text(model, tokens, window, stride)
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size must be a whole number of at least 1, or None, not {batch_size!r}")
    device = next(model.parameters()).device
    spans = _spans(len(tokens), window, stride)
    scored = sum(end - first for _, first, end in spans)
    sums = []
    progress = tqdm(total=scored, desc="perplexity", unit="token", leave=False, delay=3)
    with evaluating(model), progress:
        for batch in _batches(spans, batch_size or _batch_size(model, window)):
            nll = _scored_nll(model, tokens, batch, device)
            sums += nll.double().view(len(batch), -1).sum(dim=1).tolist()
            progress.update(nll.numel())
    return perplexity_of_windows(
        sums, [end - first for _, first, end in spans], tokens, window, stride, device
    )


def perplexity_of_windows(sums: Sequence[float], counts: Sequence[int], tokens: torch.Tensor, window: int,
                          stride: int, device: torch.device | str) -> Perplexity:
    """The perplexity of a text whose windows were scored.

    Args:
        sums: [windows], negative log-likelihood of the scored tokens of each window, in nats.
        counts: [windows], how many tokens were scored in each.
        tokens: integer tensor [n], the text.
        window: tokens per window.
        stride: tokens by which the window moved.
        device: where it ran.

    Returns:
        The perplexity, with its windows, so that `measure.compare` can pair it with another one.
    """
    mean = sum(sums) / sum(counts)
    return Perplexity(_exp(mean), mean, sum(counts), window, stride, str(device), tuple(sums), tuple(counts),
                      _digest(tokens, window, stride))


def _digest(values: torch.Tensor, *how: int) -> str:
    """Short digest of whole numbers and of how they were used."""
    return hashlib.sha256(f"{values.tolist()} {how}".encode()).hexdigest()[:16]


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Switch dropout and gradients off inside the block; afterwards every module is as it was.

    Args:
        model: its modules are set to eval mode.

    Yields:
        The model.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():  # not inference_mode: what a layer keeps from it could not be trained
            yield model
    finally:
        for module in training:
            module.training = True


def _spans(n: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """(begin, first token to score, end) of each window; every token but those without context once."""
    spans, scored_up_to = [], 0
    for begin in range(0, n, stride):
        end = min(begin + window, n)
        first = max(scored_up_to, begin + 1)
        if first < end:
            spans.append((begin, first, end))
        scored_up_to = end
        if end == n:
            break
    return spans


def _batches(spans: list[tuple[int, int, int]], batch_size: int) -> list[list[tuple[int, int, int]]]:
    """Lists of spans of one shape, at most batch_size each, in the order of the text."""
    batches = []
    for span in spans:
        begin, first, end = span
        if batches and len(batches[-1]) < batch_size:
            begin0, first0, end0 = batches[-1][0]
            if (end0 - begin0, first0 - begin0) == (end - begin, first - begin):
                batches[-1].append(span)
                continue
        batches.append([span])
    return batches


def _scored_nll(model: PreTrainedModel, tokens: torch.Tensor, spans: list[tuple[int, int, int]],
                device: torch.device) -> torch.Tensor:
    """Negative log-likelihood in nats of each scored token of a batch of spans, float32 [scored tokens]."""
    ids = torch.stack([tokens[begin:end] for begin, _, end in spans]).to(device)
    begin, first, _ = spans[0]
    # The logits at position i are about token i + 1: hence the - 1 on both ends.
    logits = model(input_ids=ids, use_cache=False).logits[:, first - begin - 1 : -1].flatten(0, 1)
    targets = ids[:, first - begin :].flatten()
    return F.cross_entropy(logits.float(), targets, reduction="none")


def _batch_size(model: PreTrainedModel, window: int) -> int:
    return max(1, int(LOGIT_BYTES // (4 * window * _vocabulary(model))))


def _vocabulary(model: PreTrainedModel) -> int:
    return model.config.get_text_config().vocab_size


def _exp(nll: float) -> float:
    """Exp that gives infinity where the number is too large, as a ruined model needs it."""
    return math.exp(nll) if nll < 700 else (math.nan if math.isnan(nll) else math.inf)


def check_text(model: PreTrainedModel, tokens: Any, window: Any, stride: Any) -> None:
    """Refuse a text that a perplexity cannot be measured on.

    Args:
        model: a causal language model of transformers.
        tokens: should be an integer tensor [n] of token ids.
        window: should be from 2 to n, and no more than the model's positions.
        stride: should be from 1 to window.

    Raises:
        TypeError: `tokens` is no integer tensor.
        ValueError: an argument is out of range, the tokens are not of this model's vocabulary, or the model
            reads in both directions.
    """
    if not isinstance(tokens, torch.Tensor) or tokens.is_floating_point() or tokens.dtype == torch.bool:
        kind = f"a {tokens.dtype} tensor" if isinstance(tokens, torch.Tensor) else type(tokens).__name__
        raise TypeError(f"tokens must be an integer tensor of token ids, not {kind}")
    if tokens.dim() != 1:
        raise ValueError(
            f"tokens must have one dimension, not shape {list(tokens.shape)}; try tokens.flatten()"
        )
    if len(tokens) < 2:
        raise ValueError(f"the text has {len(tokens)} tokens; a perplexity needs at least 2")
    for name, value, low, high in (("window", window, 2, len(tokens)), ("stride", stride, 1, window)):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            limit = "the number of tokens" if name == "window" else "the window"
            raise ValueError(f"{name} must be a whole number from {low} to {high} ({limit}), not {value!r}")
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and window > longest:
        raise ValueError(f"window {window} is longer than the {longest} positions this model was made for")
    low, high = tokens.min().item(), tokens.max().item()
    if low < 0 or high >= _vocabulary(model):
        raise ValueError(
            f"token ids run from {low} to {high}, but the model knows 0 to {_vocabulary(model) - 1}: "
            "were they made by this model's tokenizer?"
        )
    check_causal(model, tokens)


def check_causal(model: PreTrainedModel, tokens: torch.Tensor) -> None:
    """Refuse a model that sees the token it is asked for, as a BERT does when loaded as a language model.

    Args:
        model: a language model of transformers.
        tokens: integer tensor [n], token ids of its vocabulary, n at least 1.

    Raises:
        ValueError: the model reads in both directions.
    """
    config = model.config.get_text_config()
    if getattr(config, "is_decoder", True) and getattr(config, "causal", True):
        return
    # What comes second must not move the logits of what comes first.
    first = tokens[0].item()
    ids = torch.tensor([[first, 0], [first, 1]], device=next(model.parameters()).device)
    with evaluating(model):
        logits = model(input_ids=ids).logits[:, 0].float()
    if (logits[0] - logits[1]).abs().max() > 1e-3 * logits.std():
        raise ValueError(f"{type(model).__name__} reads in both directions, it sees what it should predict:"
                         " name a causal model, or load a BERT with is_decoder=True")


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers with its 95 % confidence interval (Wilson score interval).

    Attributes:
        value: the share, between 0 and 1.
        low: lower end of the interval.
        high: upper end of the interval.
        correct: number of right answers.
        total: number of answers.
        right: whether each answer is right: `measure.compare` pairs two models by answer.
        examples: digest of the labels; two accuracies on the same examples have the same.
    """

    value: float
    low: float
    high: float
    correct: int
    total: int
    right: tuple[bool, ...] = field(default=(), repr=False)
    examples: str = field(default="", repr=False)

    def __str__(self) -> str:
        return (
            f"accuracy {self.value:.1%} ({self.correct:,} of {self.total:,}; "
            f"95 % interval {self.low:.1%} to {self.high:.1%})"
        )

    def row(self) -> dict[str, float | str]:
        """The figures as a row of `measure.table`.

        Returns:
            Column -> value.
        """
        return {
            "accuracy (%)": round(100 * self.value, 1),
            "95 % interval (%)": f"{100 * self.low:.1f} to {100 * self.high:.1f}",
            "examples": self.total,
        }


def accuracy(predictions: torch.Tensor | Sequence[int], labels: torch.Tensor | Sequence[int]) -> Accuracy:
    """Share of right predictions, with the uncertainty that so few examples leave.

    Interval: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 22 (1927).

    Args:
        predictions: [n] class indices, or float [n, classes] logits (the largest wins).
        labels: [n] class indices.

    Returns:
        The share and its interval.

    Raises:
        TypeError: class indices are no whole numbers.
        ValueError: shapes differ, nothing is given, a logit is NaN, there is only one class, or a label is
            none of the classes.
    """
    predictions, labels = torch.as_tensor(predictions), torch.as_tensor(labels)
    if predictions.is_floating_point() and predictions.isnan().any():
        raise ValueError("the predictions hold NaN: the model is broken, it has no answer")
    classes = math.inf
    if predictions.dim() == 2:
        classes = predictions.shape[1]
        if classes < 2:
            raise ValueError(f"logits {list(predictions.shape)} leave no choice: give two classes or more")
        predictions = predictions.argmax(dim=1)
    if predictions.shape != labels.shape or labels.dim() != 1:
        raise ValueError(
            f"{list(predictions.shape)} predictions do not fit {list(labels.shape)} labels; "
            "give [n] or [n, classes] predictions and [n] labels"
        )
    n = len(labels)
    if n == 0:
        raise ValueError("accuracy of no examples is not defined; give at least one")
    if predictions.is_floating_point() or labels.is_floating_point():
        raise TypeError("predictions and labels of shape [n] must be whole numbers (class indices)")
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= classes:
        raise ValueError(f"labels run from {low} to {high}: a class is a number from 0"
                         + (f" to {classes - 1}" if classes < math.inf else ""))
    return accuracy_of_answers((predictions.to(labels.device) == labels).tolist(), labels)


def accuracy_of_answers(right: Sequence[bool], examples: torch.Tensor) -> Accuracy:
    """The accuracy of answers that are judged already.

    Args:
        right: [n], whether each answer is right; n at least 1.
        examples: integer tensor, what was asked, so that only answers to the same can be paired.

    Returns:
        The share and its interval.
    """
    correct, n = sum(right), len(right)
    low, high = _wilson(correct, n)
    return Accuracy(correct / n, low, high, correct, n, tuple(right), _digest(examples))


def _wilson(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share: it stays within 0 and 1 and works near both ends."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)
