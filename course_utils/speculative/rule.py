"""Which drafted tokens stay. Each function takes its chance from outside, so that it can be computed by hand.

In all of it p is the model's distribution of the next token, q the draft's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """The distribution that a token is drawn from.

    Args:
        logits: float [..., vocabulary].
        temperature: the logits are divided by it; 0 is greedy: all on the most likely token.

    Returns:
        float64 [..., vocabulary]: sums over a large vocabulary need the digits.

    Raises:
        ValueError: the temperature is negative.
    """
    if temperature < 0:
        raise ValueError(f"the temperature is {temperature}: it must be 0, for greedy decoding, or above")
    if temperature == 0:
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).double()
    return torch.softmax(logits.double() / temperature, dim=-1)


def draw(distribution: Tensor, chance: float) -> int:
    """Draw a token: the first one up to which the probabilities add up to more than `chance`.

    Args:
        distribution: float [vocabulary], probabilities.
        chance: a number from 0 up to 1, drawn evenly.

    Returns:
        The token's id; never one with probability 0.
    """
    sums = distribution.cumsum(dim=0)
    return int(torch.searchsorted(sums, chance * sums[-1], right=True))


def residual(target: Tensor, draft: Tensor) -> Tensor:
    """What a token is drawn from after the drafted one was refused: max(p - q, 0), divided by its sum.

    Source: arXiv 2211.17192, section 2.3.

    Args:
        target: float [vocabulary], p. It differs from q, or nothing would have been refused.
        draft: float [vocabulary], q.

    Returns:
        float [vocabulary], probabilities.
    """
    left = (target - draft).clamp(min=0)
    return left / left.sum()


def verify(target: Tensor, draft: Tensor, drafted: list[int], chances: list[float]) -> list[int]:
    """Keep drafted tokens up to the first that is refused, and add one that the model draws itself.

    Drafted token x at place i is refused when chances[i] * q(x) >= p(x). So it stays with the probability
    min(1, p(x) / q(x)). In the place of a refused one a token is drawn from the residual there; when all
    stay, one is drawn from the model's distribution behind the last. Both by `draw`, with the last chance.

    Source: arXiv 2211.17192, algorithm 1.

    Args:
        target: float [n + 1, vocabulary], p before each drafted token and behind the last.
        draft: float [n, vocabulary], q of each drafted token.
        drafted: n token ids, drawn from q.
        chances: n + 1 numbers from 0 up to 1, drawn evenly.

    Returns:
        From 1 to n + 1 token ids.
    """
    for i, token in enumerate(drafted):
        if chances[i] * draft[i, token] >= target[i, token]:
            return [*drafted[:i], draw(residual(target[i], draft[i]), chances[-1])]
    return [*drafted, draw(target[-1], chances[-1])]


def acceptance_rate(target: Tensor, draft: Tensor) -> Tensor:
    """How likely a drafted token stays: the sum of min(p, q), what the two distributions have in common.

    Args:
        target: float [..., vocabulary], p.
        draft: of the same shape, q.

    Returns:
        float [...], from 0 to 1.
    """
    return torch.minimum(target, draft).sum(dim=-1)


def expected_tokens(acceptance: float, drafted: int) -> float:
    """How many tokens a pass of the model gives on average, when each drafted token stays independently.

    1 + a + a^2 + ... + a^n: the model's own token, the first drafted one, the second if the first stayed...
    Source: arXiv 2211.17192, equation 1.

    Args:
        acceptance: a, the probability that a drafted token stays, from 0 to 1.
        drafted: n, tokens drafted for each pass, 0 or more.

    Returns:
        From 1 to n + 1.
    """
    return sum(acceptance**i for i in range(drafted + 1))


def expected_speedup(acceptance: float, drafted: int, draft_cost: float, verify_cost: float = 1.0) -> float:
    """How many times as fast as without a draft, by counting. Arithmetic, not a measurement.

    Source: arXiv 2211.17192, theorem 3.8, where checking costs no more than one token: verify_cost = 1.

    Args:
        acceptance: the probability that a drafted token stays.
        drafted: tokens drafted for each pass.
        draft_cost: time of one drafted token, as a multiple of a pass of the model with one token.
        verify_cost: time of the pass that checks the drafted tokens, as such a multiple.

    Returns:
        Below 1 the draft makes it slower.
    """
    return expected_tokens(acceptance, drafted) / (drafted * draft_cost + verify_cost)
