"""Masks: which weights stay, by their scores. Bool [out, in], True where a weight stays."""

from __future__ import annotations

import torch
from torch import Tensor

Sparsity = float | tuple[int, int]  # the share of weights that go, or (n, m): n of each m neighbours stay


def keep_highest(score: Tensor, sparsity: float, per: str = "layer") -> Tensor:
    """Mask that takes the lowest scores away.

    Args:
        score: float [out, in].
        sparsity: share of weights that go, from 0 to 1. Exactly round(sparsity * n) of the n that compete go;
            of equal scores those further left and further up go first.
        per: "layer" (all weights compete) or "row" (the weights of one output compete).

    Returns:
        bool [out, in].

    Raises:
        ValueError: for a sparsity outside 0 to 1, an unknown `per`, scores that are no finite matrix.
    """
    check_score(score)
    check_share(sparsity)
    if per not in ("layer", "row"):
        raise ValueError(f'per must be "layer" or "row", got {per!r}')
    groups = score.reshape(1, -1) if per == "layer" else score
    gone = round(sparsity * groups.shape[1])
    if gone == 0:
        return torch.ones_like(score, dtype=torch.bool)
    threshold = groups.kthvalue(gone, dim=1, keepdim=True).values
    return ~lowest(groups, threshold, gone).view_as(score)


def n_m_mask(score: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """Mask that keeps the n highest scores of each m neighbours in a row.

    Args:
        score: float [out, in]; groups begin at column 0.
        n: exactly so many stay in each group: of equal scores those further left.
        m: columns of a group.

    Returns:
        bool [out, in].

    Raises:
        ValueError: when m does not divide the number of columns.
    """
    if score.shape[1] % m:
        raise ValueError(f"{score.shape[1]} columns cannot be cut into groups of {m}")
    groups = score.reshape(-1, m)
    best = groups.argsort(dim=1, descending=True, stable=True)[:, :n]
    mask = torch.zeros_like(groups, dtype=torch.bool)
    return mask.scatter(1, best, True).reshape(score.shape)


def mask_of(score: Tensor, sparsity: Sparsity, per: str = "layer") -> Tensor:
    """`keep_highest` for a share, `n_m_mask` for a pair (n, m).

    Args:
        score: float [out, in].
        sparsity: share of weights that go, or (n, m).
        per: as for `keep_highest`; not used for a pair.

    Returns:
        bool [out, in].

    Raises:
        ValueError: as `keep_highest` and `n_m_mask`, and for scores or a pair that do not fit.
    """
    if not isinstance(sparsity, tuple):
        return keep_highest(score, sparsity, per)
    check_score(score)
    check_pattern(sparsity)
    return n_m_mask(score, *sparsity)


def lowest(groups: Tensor, threshold: Tensor | float, count: Tensor | int) -> Tensor:
    """The lowest of each row: what lies below a threshold, and some of what lies on it.

    Args:
        groups: scores [rows, n].
        threshold: [rows, 1], or one for all.
        count: so many are wanted of each row: ties are taken from the left until there are as many.

    Returns:
        bool [rows, n].
    """
    below = groups < threshold
    tied = groups == threshold
    missing = count - below.sum(dim=1, keepdim=True)
    return below | (tied & (tied.cumsum(dim=1) <= missing))


def describe(sparsity: Sparsity) -> str:
    """A sparsity in words.

    Args:
        sparsity: a share, or (n, m).

    Returns:
        Such as "50 %" or "2:4".
    """
    return f"{sparsity[0]}:{sparsity[1]}" if isinstance(sparsity, tuple) else f"{sparsity:.0%}".replace(
        "%", " %")


# ---- what is refused -------------------------------------------------------------------------------------


def check_share(sparsity: float) -> None:
    """Refuse what is no share.

    Args:
        sparsity: should be a number from 0 to 1.

    Raises:
        ValueError: when it is not.
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must be a share from 0 to 1, or a pair such as (2, 4), got {sparsity!r}")


def check_pattern(pattern: tuple[int, int]) -> None:
    """Refuse what is no pattern.

    Args:
        pattern: should be (n, m) with 1 <= n <= m.

    Raises:
        ValueError: when it is not.
    """
    whole = len(pattern) == 2 and all(isinstance(number, int) for number in pattern)
    if not whole or not 1 <= pattern[0] <= pattern[1]:
        raise ValueError(f"a pattern is a pair (n, m) of whole numbers with 1 <= n <= m, got {pattern!r}")


def check_score(score: Tensor) -> None:
    """Refuse scores that cannot be compared.

    Args:
        score: should be a matrix [out, in] of finite numbers.

    Raises:
        ValueError: when it is not.
    """
    if score.dim() != 2 or score.numel() == 0:
        raise ValueError(f"scores must be a matrix [out, in], got shape {list(score.shape)}")
    if not torch.isfinite(score).all():
        raise ValueError("the scores hold NaN or infinite values: look at the weights and the inputs")
