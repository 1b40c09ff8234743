"""State dicts: what must agree before models are merged, and a walk over their tensors.

A state dict maps each tensor's name to the tensor: `model.state_dict()`. Merging reads several of them and
writes one that `model.load_state_dict` takes. Nothing in the arithmetic would notice that two models do not
belong together: shapes broadcast, dtypes are promoted. So it is checked first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def check(*states: State) -> None:
    """Raise unless these state dicts can be merged tensor by tensor.

    All must have the same names; under each name the same shape, dtype and device, and finite numbers; the
    same weights tied; and equal integer buffers. It cannot see whether two models grew from the same base.

    Args:
        *states: one a model. Models are counted from 1 in messages.

    Raises:
        TypeError: something is no state dict.
        ValueError: none are given, or one is empty; else the first thing that does not agree.
    """
    if not states:
        raise ValueError("no models to merge; give at least one state dict")
    for number, state in enumerate(states, 1):
        _check_state(number, state)
    first = states[0]
    for number, state in enumerate(states[1:], 2):
        _check_names(number, first, state)
        _check_ties(number, first, state)
        for name in first:
            _check_tensor(number, name, first[name], state[name])


def combine(function: Callable[..., Tensor], *models: State) -> dict[str, Tensor]:
    """Check the state dicts, then merge the tensors of each name.

    Weights that are tied stay tied. What is the same memory in all the models is handed on as it is, not
    copied.

    Args:
        function: takes a tensor of each model, gives the merged one. It must be a mean of some kind:
            f(x, x) = x.
        *models: state dicts.

    Returns:
        A new state dict, in the order of names of the first.

    Raises:
        TypeError: something is no state dict.
        ValueError: the models do not agree (see `check`).
    """
    check(*models)

    def merge(name: str, first: Tensor) -> Tensor:
        tensors = [model[name] for model in models]
        shared = all(_place(tensor) == _place(first) for tensor in tensors)
        return first if shared else function(*tensors)

    return for_each_weight(merge, models[0])


def for_each_weight(function: Callable[[str, Tensor], Tensor], state: State) -> dict[str, Tensor]:
    """Replace each floating-point tensor of a state dict. Integer buffers are handed on as they are.

    Args:
        function: takes name and tensor, gives the new tensor. It is called once for weights that are tied,
            under their first name, so they stay tied.
        state: stays as it is.

    Returns:
        A new state dict.
    """
    new: dict[str, Tensor] = {}
    done: dict[tuple[Hashable, ...], Tensor] = {}
    for name, tensor in state.items():
        place = _place(tensor)
        if place not in done:
            done[place] = function(name, tensor) if tensor.is_floating_point() else tensor
        new[name] = done[place]
    return new


def weights(state: State) -> dict[str, Tensor]:
    """The floating-point tensors of a state dict, each tied group once.

    Args:
        state: a state dict.

    Returns:
        Name -> tensor, a tied group under its first name.
    """
    found: dict[tuple[Hashable, ...], str] = {}
    for name, tensor in state.items():
        if tensor.is_floating_point():
            found.setdefault(_place(tensor), name)
    return {name: state[name] for name in found.values()}


def tied(state: State) -> set[tuple[str, ...]]:
    """Groups of names that stand for one tensor in memory: same memory, shape and strides.

    Args:
        state: a state dict.

    Returns:
        Groups of two or more names, such as ("model.embed_tokens.weight", "lm_head.weight").
    """
    groups: dict[tuple[Hashable, ...], list[str]] = {}
    for name, tensor in state.items():
        groups.setdefault(_place(tensor), []).append(name)
    return {tuple(names) for names in groups.values() if len(names) > 1}


def cosine(a: State, b: State) -> float:
    """Cosine of the angle between two models, or two task vectors.

    Each is read as one long arrow of all its floating-point numbers; computed in float64.

    Args:
        a: a state dict.
        b: one with the same names, shapes, dtypes, devices and ties.

    Returns:
        From -1 to 1; NaN if one is all zero.

    Raises:
        TypeError: one is no state dict.
        ValueError: they do not agree (see `check`).
    """
    check(a, b)
    names = weights(a)
    dot = sum(torch.dot(a[name].flatten().double(), b[name].flatten().double()).item() for name in names)
    return dot / (norm(a) * norm(b)) if norm(a) * norm(b) else math.nan


def norm(state: State) -> float:
    """Length of a state dict's floating-point numbers as one arrow (Euclidean norm), computed in float64.

    Args:
        state: a state dict.

    Returns:
        The length.
    """
    return math.sqrt(sum(tensor.double().square().sum().item() for tensor in weights(state).values()))


# ---- the checks --------------------------------------------------------------------------------------------


def _place(tensor: Tensor) -> tuple[Hashable, ...]:
    """Where a tensor lies in memory. An empty tensor lies nowhere, so it is tied to nothing."""
    at = tensor.data_ptr() if tensor.numel() else id(tensor)
    return tensor.device, at, tuple(tensor.shape), tensor.stride(), tensor.dtype


def _check_state(number: int, state: Any) -> None:
    if isinstance(state, torch.nn.Module):
        raise TypeError(f"model {number} is a {type(state).__name__}; give its state_dict()")
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise TypeError(f"model {number} must be a dict of names and tensors, not a {type(state).__name__}")
    if not state:
        raise ValueError(f"the state dict of model {number} is empty")
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} of model {number} has NaN or infinity; a merge would spread it")


def _check_names(number: int, first: State, state: State) -> None:
    for place, extra in ((1, first.keys() - state.keys()), (number, state.keys() - first.keys())):
        if extra:
            more = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
            raise ValueError(f"models 1 and {number} differ: {min(extra)}{more} is only in model {place}; "
                             "merge models of one architecture, saved in one way")


def _check_ties(number: int, first: State, state: State) -> None:
    for place, groups in ((1, tied(first) - tied(state)), (number, tied(state) - tied(first))):
        if groups:
            raise ValueError(f"{' and '.join(min(groups))} are one tied tensor in model {place}, but not in "
                             f"model {number if place == 1 else 1}; tie or untie both in the same way")


def _check_tensor(number: int, name: str, first: Tensor, other: Tensor) -> None:
    for what, a, b in (("shape", list(first.shape), list(other.shape)), ("dtype", first.dtype, other.dtype),
                       ("device", first.device, other.device)):
        if a != b:
            remedy = "only models of one shape can be merged" if what == "shape" else "convert one with .to()"
            raise ValueError(f"{name} has {what} {a} in model 1 and {b} in model {number}; {remedy}")
    if not first.is_floating_point() and not torch.equal(first, other):
        raise ValueError(f"{name} ({first.dtype}) cannot be merged, and models 1 and {number} differ; "
                         "copy it from one of them")
