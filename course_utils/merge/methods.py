"""Merging methods on state dicts: names and tensors in, a new state dict out. The models stay as they are.

lerp and slerp merge two models, at a place t between them; soup takes the mean of any number of models.
task_arithmetic adds task vectors (fine-tuned minus base) to a base; ties does the same after trimming small
changes and settling conflicts of sign, dare after dropping most changes at random and enlarging the rest.

All start from `states.check`. The sums are done in float32, the result has the base's dtype again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from course_utils.merge import states, vectors
from course_utils.merge.states import State

Task = dict[str, Tensor]  # what `task_vector` returns

# ---- between models ----------------------------------------------------------------------------------------


def lerp(a: State, b: State, t: float) -> dict[str, Tensor]:
    """Straight line from one model to another.

    Args:
        a: the model at t = 0.
        b: the model at t = 1.
        t: the place; t outside 0 to 1 extrapolates.

    Returns:
        A new state dict.

    Raises:
        TypeError: t is no number, or a model is no state dict.
        ValueError: t is not finite, or the models do not agree (see `states.check`).
    """
    _check_number("t", t)
    return states.combine(lambda x, y: vectors.lerp(x, y, t), a, b)


def slerp(a: State, b: State, t: float, parallel: float = 0.9995) -> dict[str, Tensor]:
    """Arc from one model to another, for each tensor by itself as mergekit does it.

    Args:
        a: the model at t = 0.
        b: the model at t = 1.
        t: the place.
        parallel: tensors with |cosine| >= parallel are merged by LERP; so is one that is all zero. (mergekit
            takes a tensor of zeros for one at a right angle.)

    Returns:
        A new state dict.

    Raises:
        TypeError: t is no number, or a model is no state dict.
        ValueError: t is not finite, or the models do not agree (see `states.check`).
    """
    _check_number("t", t)
    return states.combine(lambda x, y: vectors.slerp(x, y, t, parallel), a, b)


def soup(models: Sequence[State], shares: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Weighted mean of models. Source: Wortsman et al., "Model soups", arXiv 2203.05482.

    Args:
        models: state dicts.
        shares: one number a model; they are divided by their sum. None: all alike.

    Returns:
        A new state dict.

    Raises:
        TypeError: a share is no number, or a model is no state dict.
        ValueError: the shares do not fit, are not finite or have the sum 0, or the models do not agree (see
            `states.check`).
    """
    shares = [1.0] * len(models) if shares is None else list(shares)
    if len(shares) != len(models):
        raise ValueError(f"{len(shares)} shares do not fit {len(models)} models; give one for each")
    for share in shares:
        _check_number("a share", share)
    total = sum(shares)
    if models and abs(total) < 1e-12:
        raise ValueError("the shares have the sum 0; a mean needs another one")

    def mean(*tensors: Tensor) -> Tensor:
        mixed = sum(share / total * _float(tensor) for share, tensor in zip(shares, tensors, strict=True))
        return mixed.to(tensors[0].dtype)

    return states.combine(mean, *models)


# ---- task vectors ------------------------------------------------------------------------------------------


def task_vector(finetuned: State, base: State) -> dict[str, Tensor]:
    """What fine-tuning changed: finetuned - base for each floating-point tensor of the base, in float32.

    Source: Ilharco et al., "Editing models with task arithmetic", arXiv 2212.04089, section 2.

    Args:
        finetuned: a state dict; it is not changed.
        base: the state dict that it grew from; it is not changed.

    Returns:
        Name -> change, float32. Integer buffers are left out.

    Raises:
        TypeError: one is no state dict.
        ValueError: the two have different names or shapes (`states.check(finetuned, base)` does it).
    """
    states.check(finetuned, base)
    return {name: finetuned[name].float() - before.float()
            for name, before in base.items() if before.is_floating_point()}  # fmt: skip


def task_arithmetic(base: State, tasks: Sequence[Task], scale: float = 1.0) -> dict[str, Tensor]:
    """Add task vectors to a base: base + scale * (their sum). Source: arXiv 2212.04089.

    With n tasks and scale 1/n it is the soup of the fine-tuned models.

    Args:
        base: a state dict.
        tasks: task vectors, one or more.
        scale: factor for the sum. A negative one makes the model forget the tasks.

    Returns:
        A new state dict.

    Raises:
        TypeError: the scale is no number, the base no state dict, or a task no dict of tensors.
        ValueError: the scale is not finite, there is no task, or a task does not fit the base.
    """
    return _add_to(base, tasks, scale, lambda deltas: deltas.sum(dim=0))


def trim(delta: Tensor, density: float) -> Tensor:
    """TIES's first step: keep the numbers with the largest magnitude, set the others to 0.

    Source: arXiv 2306.01708, section 4.1, here for each tensor by itself as in mergekit; the authors' code
    ranks the whole model at once.

    Args:
        delta: the change of one tensor.
        density: share of its numbers that is kept; at least one number is.

    Returns:
        A new tensor of the same shape.
    """
    kept = max(1, int(density * delta.numel()))
    if kept >= delta.numel():
        return delta.clone()
    flat = delta.flatten()
    place = flat.abs().topk(kept).indices
    return torch.zeros_like(flat).scatter(0, place, flat[place]).reshape(delta.shape)


def elect_sign(deltas: Tensor) -> Tensor:
    """TIES's second step: for each weight, the sign in which the tasks together pull harder.

    The sides are weighed by magnitude: one large change outvotes two small ones.
    Source: arXiv 2306.01708, section 4.1.

    Args:
        deltas: [tasks, ...], the changes that each task makes to one tensor.

    Returns:
        Float tensor [...] of +1, -1, or 0 where both sides pull alike.
    """
    return torch.sign(deltas.float().sum(dim=0))


def agreeing_mean(deltas: Tensor, sign: Tensor) -> Tensor:
    """TIES's third step: for each weight, the mean of those changes that have the elected sign.

    Args:
        deltas: [tasks, ...], the changes that each task makes to one tensor. A change of 0 does not count.
        sign: [...], what `elect_sign` returns.

    Returns:
        Tensor [...], 0 where no change agrees.
    """
    agrees = (torch.sign(deltas) == sign) & (sign != 0)
    return (deltas * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)


def ties(base: State, tasks: Sequence[Task], density: float = 0.2, scale: float = 1.0) -> dict[str, Tensor]:
    """TIES merging: trim, elect signs, mean of those that agree. Source: Yadav et al., arXiv 2306.01708.

    With one task and density 1 it is task arithmetic.

    Args:
        base: a state dict.
        tasks: task vectors, one or more.
        density: share of each tensor's changes that is kept, above 0 up to 1.
        scale: factor for the merged change.

    Returns:
        A new state dict.

    Raises:
        TypeError: density or scale is no number, the base no state dict, or a task no dict of tensors.
        ValueError: density or scale is out of range, there is no task, or a task does not fit the base.
    """
    _check_number("density", density)
    if not 0 < density <= 1:
        raise ValueError(f"density must be above 0 and at most 1, not {density!r}")

    def merge(deltas: Tensor) -> Tensor:
        trimmed = torch.stack([trim(delta, density) for delta in deltas])
        return agreeing_mean(trimmed, elect_sign(trimmed))

    return _add_to(base, tasks, scale, merge)


def drop_and_rescale(delta: Tensor, drop: float, generator: torch.Generator | None = None) -> Tensor:
    """DARE's one step: set each number to 0 at random, enlarge the others: the mean stays.

    It is dropout, on changes. Source: Yu et al., "Language models are super Mario", arXiv 2311.03099.

    Args:
        delta: the change of one tensor.
        drop: probability of 0, below 1; the others are divided by 1 - drop.
        generator: a CPU generator of the random numbers; None: torch's own.

    Returns:
        A new tensor of the same shape.
    """
    kept = torch.rand(delta.shape, generator=generator).to(delta.device) >= drop
    return delta * kept / (1 - drop)


def dare(base: State, tasks: Sequence[Task], drop: float = 0.9, scale: float = 1.0, seed: int = 0
         ) -> dict[str, Tensor]:  # fmt: skip
    """Task arithmetic on task vectors thinned by `drop_and_rescale` (DARE, arXiv 2311.03099).

    mergekit enlarges by the ratio of the sums of magnitudes instead of 1 / (1 - drop); on a large tensor the
    two are nearly the same.

    Args:
        base: a state dict.
        tasks: task vectors, one or more.
        drop: probability from 0 (plain task arithmetic) to below 1.
        scale: factor for the sum.
        seed: of the random numbers.

    Returns:
        A new state dict.

    Raises:
        TypeError: drop or scale is no number, the base no state dict, or a task no dict of tensors.
        ValueError: drop or scale is out of range, there is no task, or a task does not fit the base.
    """
    _check_number("drop", drop)
    if not 0 <= drop < 1:
        raise ValueError(f"drop must be at least 0 and below 1, not {drop!r}")
    generator = torch.Generator().manual_seed(seed)
    return _add_to(base, tasks, scale, lambda deltas: sum(
        drop_and_rescale(delta, drop, generator) for delta in deltas))  # fmt: skip


def _add_to(base: State, tasks: Sequence[Task], scale: float, merge: Callable[[Tensor], Tensor]
            ) -> dict[str, Tensor]:  # fmt: skip
    """Tensor by tensor base + scale * merge(changes [tasks, ...]). What no task changed is handed on."""
    _check_number("scale", scale)
    _check_tasks(base, tasks)

    def add(name: str, before: Tensor) -> Tensor:
        deltas = torch.stack([task[name] for task in tasks])
        if not deltas.any():  # frozen in all the tasks
            return before
        return (_float(before) + scale * merge(deltas)).to(before.dtype)

    return states.for_each_weight(add, base)


# ---- the checks --------------------------------------------------------------------------------------------


def _float(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, not {value!r}")


def _check_tasks(base: State, tasks: Sequence[Task]) -> None:
    states.check(base)
    if not tasks:
        raise ValueError("no task vectors to add; make one with task_vector(finetuned, base)")
    expected = {name: tensor for name, tensor in base.items() if tensor.is_floating_point()}
    for number, task in enumerate(tasks, 1):
        if not isinstance(task, Mapping) or not all(isinstance(delta, Tensor) for delta in task.values()):
            raise TypeError(f"task vector {number} must be a dict of names and tensors, as task_vector makes")
        if task.keys() != expected.keys():
            name = min(task.keys() ^ expected.keys())
            raise ValueError(f"task vector {number} does not fit the base: {name} is only in one of them")
        for name, delta in task.items():
            if delta.shape != expected[name].shape:
                raise ValueError(f"{name} has shape {list(delta.shape)} in task vector {number} and "
                                 f"{list(expected[name].shape)} in the base")
            if delta.device != expected[name].device or not delta.is_floating_point():
                raise ValueError(f"{name} is {delta.dtype} on {delta.device} in task vector {number}; it "
                                 f"must be a float on {expected[name].device}, as the base is")
            if not torch.isfinite(delta).all():
                raise ValueError(f"{name} of task vector {number} has NaN or infinity; a merge would "
                                 "spread it")
