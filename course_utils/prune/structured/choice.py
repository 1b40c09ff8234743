"""Which to keep: the most important in each block, in each group, or in the whole model."""

from __future__ import annotations

from torch import Tensor


def kept_in_each(scores: Tensor, keep: int) -> list[list[int]]:
    """In each block, the indices of the highest scores.

    Every block keeps the same number: the only choice for Llama, whose config has one head count for all.

    Args:
        scores: float [blocks, n].
        keep: so many stay in each block, 1 to n.

    Returns:
        For each block the indices, in ascending order.

    Raises:
        ValueError: for another `keep`.
    """
    if not 1 <= keep <= scores.shape[1]:
        raise ValueError(f"keep must be from 1 to {scores.shape[1]}, not {keep}")
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :keep]
    return [sorted(row) for row in order.tolist()]


def kept_in_groups(scores: Tensor, groups: int, keep: int) -> list[list[int]]:
    """As `kept_in_each`, but the row is cut into equal groups and `keep` stay in each: the pattern of GQA.

    Args:
        scores: float [blocks, heads].
        groups: key-value heads.
        keep: query heads left for each of them.

    Returns:
        For each block the indices, in ascending order.

    Raises:
        ValueError: when the heads do not fall into equal groups, or so many cannot stay.
    """
    if scores.shape[1] % groups:
        raise ValueError(f"{scores.shape[1]} heads do not fall into {groups} equal groups")
    size = scores.shape[1] // groups
    by_group = kept_in_each(scores.reshape(-1, size), keep)
    return [[g * size + head for g in range(groups) for head in by_group[block * groups + g]]
            for block in range(len(scores))]


def kept_overall(scores: Tensor, remove: int, at_least: int = 1) -> list[list[int]]:
    """What is left in each block when the lowest of all scores go.

    Args:
        scores: float [blocks, n].
        remove: so many go.
        at_least: so many stay in each block, whatever their scores.

    Returns:
        For each block the indices, in ascending order.

    Raises:
        ValueError: when so many cannot go.
    """
    blocks, n = scores.shape
    if not 0 <= remove <= blocks * (n - at_least):
        raise ValueError(f"remove must be from 0 to {blocks * (n - at_least)}: {blocks} blocks of {n}, "
                         f"each keeps {at_least} at least")
    kept = [list(range(n)) for _ in range(blocks)]
    for flat in scores.flatten().argsort(stable=True).tolist():
        block, index = divmod(flat, n)
        if remove and len(kept[block]) > at_least:
            kept[block].remove(index)
            remove -= 1
    return kept
