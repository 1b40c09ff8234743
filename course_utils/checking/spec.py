"""What an exercise is: its reference, its cases, and the mistakes that learners make."""

import dataclasses
from collections.abc import Callable
from typing import Any

PASSED, FAILED, NOT_ATTEMPTED = "passed", "failed", "not attempted"


class Case:
    """One call of the exercise's function: ``Case(*args, label="tied embeddings", **kwargs)``.

    Args:
        label: what is special about this case, shown when it fails.
        raises: exception type that the function must raise on these arguments, or None.
    """

    def __init__(self, *args, label: str = "", raises: type[BaseException] | None = None, **kwargs):
        self.args, self.kwargs, self.label, self.raises = args, kwargs, label, raises


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A mistake learners make: `message` is shown when an answer behaves as `function` does."""

    message: str
    function: Callable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exercise:
    """A function to write, judged against `reference` on `cases`.

    Args:
        reference: the right function (or class).
        cases: zero-argument callable that builds the list of `Case`; seed whatever is random in it.
        mistakes: what learners are likely to do wrong, see `Mistake`.
        rtol, atol: tolerance for floats; integers are compared exactly.
        exact_dtype: True when the dtype itself is part of the answer (packed words), not only its kind.
        hint: shown when no mistake matches.
        call: ``call(thing, *args, **kwargs)`` does the work where `reference` is not simply called (a class).
        id: name after the lesson's key and a point; the name of `reference` unless given.
        seconds: time limit of one case.
    """

    reference: Callable
    cases: Callable[[], list[Case]]
    mistakes: list[Mistake] = dataclasses.field(default_factory=list)
    rtol: float = 1e-5
    atol: float = 1e-8
    exact_dtype: bool = False
    hint: str = ""
    call: Callable | None = None
    id: str = ""
    seconds: float = 60.0

    @property
    def name(self) -> str:
        return self.id or self.reference.__name__


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """A number to predict before it is measured.

    Args:
        id: name after the lesson's key and a point.
        answer: the number (or a short text to choose), or a zero-argument callable that returns it.
        rtol: relative tolerance around the answer.
        unit: unit of the answer, shown with it.
        mistakes: pairs (value or zero-argument callable, message).
        hint: shown when no mistake matches.
    """

    id: str
    answer: Any
    rtol: float = 0.05
    unit: str = ""
    mistakes: list[tuple[Any, str]] = dataclasses.field(default_factory=list)
    hint: str = ""

    @property
    def name(self) -> str:
        return self.id


@dataclasses.dataclass(frozen=True)
class Result:
    """What `judge` found: `status` is "passed", "failed" or "not attempted"; `cases` counts the cases."""

    status: str
    cases: int
    message: str
