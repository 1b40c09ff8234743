"""What the cases of several lessons are made of: random tensors, gradients, and what a `call` looks at."""

import contextlib
import contextvars
import copy
import random
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from course_utils.checking.compare import difference
from course_utils.checking.spec import Case, Complaint, Exercise

_drawing: contextvars.ContextVar[int] = contextvars.ContextVar("drawing", default=0)


def seeded(seed: int) -> int:
    """The seed of what is random in a case: ``torch.manual_seed(seeded(0))``.

    Args:
        seed: of the cases that learners see.

    Returns:
        It; while an instructor's cases are drawn, another one that depends on both.
    """
    return seed + _drawing.get()


@contextlib.contextmanager
def _drawn_from(start: int) -> Iterator[None]:
    token = _drawing.set(start)
    try:
        yield
    finally:
        _drawing.reset(token)


def private_cases(exercise: Exercise, seed: str, id: str) -> list[Case]:
    """Further cases of an exercise, which no learner has seen.

    Args:
        exercise: see its `draw`.
        seed: the instructor's; the same one gives the same cases.
        id: of the exercise.

    Returns:
        The cases.
    """
    numbers = random.Random(f"{seed} {id}")
    if exercise.draw is not None:
        found = exercise.draw(numbers)
    else:
        with _drawn_from(numbers.getrandbits(40)):
            found = exercise.cases()
    for case in found:
        case.private = True
    return found


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Numbers of a standard normal distribution, the same ones on every call.

    Args:
        shape: the sizes of the tensor.
        seed: another seed gives other numbers.

    Returns:
        float32 tensor of that shape.
    """
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seeded(seed)))


def gradients(result: Any, above: Tensor | None = None, **inputs: Tensor) -> dict[str, Any]:
    """What an answer computed, and the gradients that reach its inputs: for the `call` of an `Exercise`.

    Args:
        result: what the answer returned. Anything but a tensor is passed on without gradients.
        above: gradient that arrives at `result`, of its shape; ones where it is left out or has another one.
        inputs: leaf tensors by name, each with requires_grad, that the answer was called with.

    Returns:
        "result", detached, and "gradient of NAME" for each input: zeros where no gradient arrived.
    """
    if not isinstance(result, Tensor):
        return {"result": result}
    if result.requires_grad:
        fits = above is not None and above.shape == result.shape
        result.backward(above if fits else torch.ones_like(result))
    found = {
        f"gradient of {name}": torch.zeros_like(value) if value.grad is None else value.grad
        for name, value in inputs.items()
    }
    return {"result": result.detach(), **found}


def read_twice(read: Callable[[], Any], name: str) -> Any:
    """Read something of an object twice: for the `call` of an `Exercise` that drives a class.

    Args:
        read: ``lambda: statistic.matrix``.
        name: what the learner calls it, such as "matrix".

    Returns:
        A copy of what the first reading gave.

    Raises:
        Complaint: the second reading gave something else.
    """
    first = read()
    if isinstance(first, MethodType):  # a missing @property: the comparison says so
        return first
    kept = copy.deepcopy(first.detach() if isinstance(first, Tensor) else first)
    if difference(kept, read(), rtol=0, atol=0, types="exact"):
        raise Complaint(f"the same {name} each time it is read", f"another {name} the second time")
    return kept


def error_of(function: Callable, *args: Any, raises: type[Exception] = ValueError) -> str:
    """What a call raises, for a `call` that goes on to look at the object afterwards.

    Args:
        function: what is called, such as a method of the learner's object.
        *args: its arguments.
        raises: the exception that is expected; a subclass counts as it.

    Returns:
        "ValueError raised", or that nothing was.
    """
    try:
        function(*args)
    except raises:
        return f"{raises.__name__} raised"
    return "nothing raised"
