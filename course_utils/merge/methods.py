"""Merging methods on state dicts: names and tensors in, a new state dict out. The models stay as they are.

    lerp, slerp        two models, at a place t between them
    soup               any number of models, their mean
    task_arithmetic    a base and task vectors (fine-tuned minus base), added
    ties               the same, after trimming small changes and settling conflicts of sign
    dare               the same, after dropping most changes at random and enlarging the rest

All start from `states.check`. The sums are done in float32, the result has the base's dtype again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from course_utils.merge import states, vectors
from course_utils.merge.states import State

Task = dict[str, Tensor]  # what `task_vector` returns

# ---- between models ----------------------------------------------------------------------------------------


def lerp(a: State, b: State, t: float) -> dict[str, Tensor]:
    """Straight line from model a (t = 0) to model b (t = 1). Other t extrapolate.

    Raises ValueError or TypeError as `states.check` does, and for a t that is no finite number.
    """
    _check_number("t", t)
    return states.combine(lambda x, y: vectors.lerp(x, y, t), a, b)


def slerp(a: State, b: State, t: float, parallel: float = 0.9995) -> dict[str, Tensor]:
    """Arc from model a (t = 0) to model b (t = 1), for each tensor by itself as mergekit does it.

    Tensors with |cosine| >= parallel are merged by LERP; so is one that is all zero. (mergekit takes a tensor
    of zeros for one at a right angle.) Raises as `lerp` does.
    """
    _check_number("t", t)
    return states.combine(lambda x, y: vectors.slerp(x, y, t, parallel), a, b)


def soup(models: Sequence[State], shares: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Weighted mean of models. shares None: all alike (Wortsman et al., "Model soups", arXiv 2203.05482).

    shares  one number a model; they are divided by their sum
    Raises as `states.check` does, and ValueError for shares that do not fit or have the sum 0.
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

    Both are state dicts; neither is changed. Integer buffers are left out.
    Source: Ilharco et al., "Editing models with task arithmetic", arXiv 2212.04089, section 2.
    Raises ValueError when the two have different names or shapes (`states.check(finetuned, base)` does it).
    """
    states.check(finetuned, base)
    return {name: finetuned[name].float() - before.float()
            for name, before in base.items() if before.is_floating_point()}  # fmt: skip


def task_arithmetic(base: State, tasks: Sequence[Task], scale: float = 1.0) -> dict[str, Tensor]:
    """base + scale * (sum of the task vectors). A negative scale makes the model forget the tasks.

    With n tasks and scale 1/n it is the soup of the fine-tuned models. Source: arXiv 2212.04089.
    Raises ValueError when a task does not fit the base, TypeError or ValueError for a bad scale.
    """
    return _add_to(base, tasks, scale, lambda deltas: deltas.sum(dim=0))


def trim(delta: Tensor, density: float) -> Tensor:
    """Keep the share `density` of a tensor's numbers with the largest magnitude, set the others to 0.

    At least one number is kept. TIES's first step (arXiv 2306.01708, section 4.1), here for each tensor by
    itself as in mergekit; the authors' code ranks the whole model at once.
    """
    kept = max(1, int(density * delta.numel()))
    if kept >= delta.numel():
        return delta.clone()
    flat = delta.flatten()
    place = flat.abs().topk(kept).indices
    return torch.zeros_like(flat).scatter(0, place, flat[place]).reshape(delta.shape)


def elect_sign(deltas: Tensor) -> Tensor:
    """TIES's second step: for each weight, the sign in which the tasks together pull harder.

    deltas   [tasks, ...], the changes that each task makes to one tensor
    Returns a float tensor [...] of +1, -1, or 0 where both sides pull alike. The sides are weighed by
    magnitude: one large change outvotes two small ones (arXiv 2306.01708, section 4.1).
    """
    return torch.sign(deltas.float().sum(dim=0))


def agreeing_mean(deltas: Tensor, sign: Tensor) -> Tensor:
    """TIES's third step: for each weight, the mean of those changes that have the elected sign.

    deltas [tasks, ...], sign [...]; returns [...]. A task whose change is 0 does not count.
    """
    agrees = (torch.sign(deltas) == sign) & (sign != 0)
    return (deltas * agrees).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)


def ties(base: State, tasks: Sequence[Task], density: float = 0.2, scale: float = 1.0) -> dict[str, Tensor]:
    """TIES merging (Yadav et al., arXiv 2306.01708): trim, elect signs, mean of those that agree.

    density  share of each tensor's changes that is kept, above 0 up to 1
    scale    factor for the merged change
    With one task and density 1 it is task arithmetic. Raises as `task_arithmetic` does.
    """
    _check_number("density", density)
    if not 0 < density <= 1:
        raise ValueError(f"density must be above 0 and at most 1, not {density!r}")

    def merge(deltas: Tensor) -> Tensor:
        trimmed = torch.stack([trim(delta, density) for delta in deltas])
        return agreeing_mean(trimmed, elect_sign(trimmed))

    return _add_to(base, tasks, scale, merge)


def drop_and_rescale(delta: Tensor, drop: float, generator: torch.Generator | None = None) -> Tensor:
    """Set each number to 0 with probability `drop`, divide the others by 1 - drop: the mean stays.

    DARE's one step (Yu et al., "Language models are super Mario", arXiv 2311.03099). Dropout, on changes.
    """
    kept = torch.rand(delta.shape, generator=generator).to(delta.device) >= drop
    return delta * kept / (1 - drop)


def dare(base: State, tasks: Sequence[Task], drop: float = 0.9, scale: float = 1.0, seed: int = 0
         ) -> dict[str, Tensor]:  # fmt: skip
    """Task arithmetic on task vectors thinned by `drop_and_rescale` (DARE, arXiv 2311.03099).

    drop  probability from 0 (plain task arithmetic) to below 1
    Raises as `task_arithmetic` does. (mergekit enlarges by the ratio of the sums of magnitudes instead of
    1 / (1 - drop); on a large tensor the two are nearly the same.)
    """
    _check_number("drop", drop)
    if not 0 <= drop < 1:
        raise ValueError(f"drop must be at least 0 and below 1, not {drop!r}")
    generator = torch.Generator().manual_seed(seed)
    return _add_to(base, tasks, scale, lambda deltas: sum(
        drop_and_rescale(delta, drop, generator) for delta in deltas))  # fmt: skip


def _add_to(base: State, tasks: Sequence[Task], scale: float, merge: Callable[[Tensor], Tensor]
            ) -> dict[str, Tensor]:  # fmt: skip
    """base + scale * merge(changes [tasks, ...]), tensor by tensor. What no task changed is handed on."""
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


def _check_number(name: str, value) -> None:
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
        if task.keys() != expected.keys():
            name = min(task.keys() ^ expected.keys())
            raise ValueError(f"task vector {number} does not fit the base: {name} is only in one of them")
        for name, delta in task.items():
            if delta.shape != expected[name].shape:
                raise ValueError(f"{name} has shape {list(delta.shape)} in task vector {number} and "
                                 f"{list(expected[name].shape)} in the base")
