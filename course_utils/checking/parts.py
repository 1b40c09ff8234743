"""What an object is made of: its parts, a fresh copy of it, its state, and the memory that it shares."""

import copy
import itertools
import types
from collections.abc import Iterator, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

LONGEST = 1_000  # letters of a part's place: what stands deeper is not entered
MANY = 20_000  # parts of one object that are looked at: an answer may return anything
NO_PARTS = (Tensor, np.ndarray, np.generic, int, float, complex, str, bytes, Set, type, types.ModuleType,
            types.FunctionType, types.MethodType, types.BuiltinFunctionType, torch.dtype, torch.Generator)


def parts(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """An object and everything in it: items of containers, attributes of objects, parameters of modules.

    Args:
        value: the object. What stands in it twice is entered once, so that a list may hold itself.
        path: what the object is called.

    Yields:
        (where the part stands, such as "config.layers[0]", the part), outer before inner.
    """
    waiting, entered = [(path, value)], set()
    while waiting:
        path, value = waiting.pop()
        yield path, value
        if not isinstance(value, NO_PARTS) and id(value) not in entered and len(path) <= LONGEST:
            entered.add(id(value))
            waiting += reversed(list(_inside(path, value)))


def _inside(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"{path}[{key!r}]", item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"{path}[{n}]", item) for n, item in enumerate(value))
    else:
        yield from ((f"{path}.{name}", item) for name, item in _attributes(value).items())


def _attributes(value: Any) -> dict[str, Any]:
    """Public attributes of an object; of a module also its parameters, buffers and modules."""
    found = {name: item for name, item in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
    for name in getattr(type(value), "__slots__", ()):
        if not name.startswith("_") and hasattr(value, name):
            found[name] = getattr(value, name)
    if isinstance(value, torch.nn.Module):
        found |= value._parameters | value._buffers | value._modules
    return found


def copies(args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Fresh copies of the arguments of a case, which share with one another what the originals share.

    Unlike `copy.deepcopy` alone it also copies tensors that were computed from others: such a copy has
    ancestors of its own and keeps the gradient that arrives at it.

    Args:
        args: positional arguments.
        kwargs: named arguments.

    Returns:
        Both, copied.
    """
    memo = {}
    for _, part in parts((args, kwargs)):
        if isinstance(part, Tensor) and part.requires_grad and not part.is_leaf:
            memo[id(part)] = part.detach().clone().requires_grad_().clone()
            memo[id(part)].retain_grad()
        elif isinstance(part, torch.Generator):
            memo[id(part)] = part.clone_state()
    return copy.deepcopy((args, kwargs), memo)


def state(value: Any, path: str = "") -> dict[str, Any]:
    """All that can change in an object, as values that can be compared.

    Args:
        value: the object.
        path: what it is called.

    Returns:
        Where a part stands -> its value. Of tensors also requires_grad, gradient and hooks, of containers the
        length or the keys, of modules mode and hooks, of objects the names of the attributes.
    """
    found = {}
    for place, part in itertools.islice(parts(value, path), MANY):
        if isinstance(part, Tensor):
            found[place] = part
            found[f"{place}.requires_grad"] = part.requires_grad
            found[f"{place}.grad"] = part.grad if part.is_leaf else None
            found[f"{place}: hooks"] = len(part._backward_hooks or ())
        elif part is None or isinstance(part, np.ndarray | np.generic | int | float | complex | str | bytes):
            found[place] = part
        elif isinstance(part, Set):
            found[place] = set(part)
        elif isinstance(part, Mapping):
            found[place] = f"a {type(part).__name__} with the keys {sorted(map(repr, part))}"
        elif isinstance(part, list | tuple):
            found[place] = f"a {type(part).__name__} of length {len(part)}"
        elif isinstance(part, torch.nn.Module):
            found[place] = f"a {type(part).__name__} with {sorted(_attributes(part))}"
            hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks,
                     part._backward_pre_hooks)
            found[f"{place}: hooks"] = sum(map(len, hooks))
        else:
            found[place] = f"a {type(part).__name__} with {sorted(_attributes(part))}"
    return found


def shared(value: Any, arguments: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Which parts of a value are arguments of the call, or lie in an argument's memory.

    Args:
        value: what the call returned.
        arguments: name -> argument.

    Returns:
        Where the part stands -> (name of the argument, whether it is the same object and not only a view).
    """
    objects, areas = {}, []
    for name, argument in arguments.items():
        for place, part in itertools.islice(parts(argument, name), MANY):
            if _can_change(part):
                objects.setdefault(id(part), place)
            if area := _memory(part):
                areas.append((*area, place))
    found = {}
    for place, part in itertools.islice(parts(value), MANY):
        if id(part) in objects and _can_change(part):
            found[place] = objects[id(part)], True
        elif area := _memory(part):
            owner = next((name for low, high, name in areas if area[0] < high and low < area[1]), None)
            if owner is not None:
                found[place] = owner, False
    return found


def _can_change(part: Any) -> bool:
    return isinstance(part, Tensor | np.ndarray | list | dict | set | torch.nn.Module)


def _memory(part: Any) -> tuple[int, int] | None:
    """(first, last + 1) byte of the memory that a tensor or array lies in; None of anything else."""
    if isinstance(part, np.ndarray):
        return np.lib.array_utils.byte_bounds(part) if part.size else None
    if not isinstance(part, Tensor) or part.is_meta or part.layout != torch.strided:
        return None
    storage = part.untyped_storage()
    return (storage.data_ptr(), storage.data_ptr() + storage.nbytes()) if storage.nbytes() else None
