"""What an exercise is: its reference, its cases, and the mistakes that learners make."""

import dataclasses
from collections.abc import Callable
from typing import Any

PASSED, FAILED, NOT_ATTEMPTED = "passed", "failed", "not attempted"


class Case:
    """One call of the exercise's function: ``Case(*args, label="tied embeddings", **kwargs)``.

    Args:
        *args: positional arguments of the call.
        label: what is special about this case, shown when it fails.
        raises: exception type that the function must raise on these arguments, or None.
        **kwargs: named arguments of the call.
    """

    def __init__(
        self, *args: Any, label: str = "", raises: type[BaseException] | None = None, **kwargs: Any
    ) -> None:
        self.args, self.kwargs, self.label, self.raises = args, kwargs, label, raises


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A mistake that learners make.

    Attributes:
        message: shown when an answer behaves as `function` does.
        function: makes the mistake; takes the arguments of the reference.
    """

    message: str
    function: Callable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exercise:
    """A function to write, judged against `reference` on `cases`.

    Attributes:
        reference: the right function (or class).
        cases: zero-argument callable that builds the list of `Case`; seed whatever is random in it.
        mistakes: what learners are likely to do wrong, see `Mistake`.
        rtol: relative tolerance for floats; integers are compared exactly.
        atol: absolute tolerance for floats.
        exact_dtype: True when the dtype itself is part of the answer (packed words), not only its kind.
        hint: shown when no mistake matches.
        call: ``call(thing, *args, **kwargs)`` does the work where `reference` is not simply called (a class).
        id: name after the lesson's key and a point; the name of `reference` unless given.
        seconds: time limit of one case, in seconds.
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
        """What the exercise is called in its lesson."""
        return self.id or self.reference.__name__


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """A number to predict before it is measured.

    Attributes:
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
        """What the prediction is called in its lesson."""
        return self.id


@dataclasses.dataclass(frozen=True)
class Result:
    """What `judge` found.

    Attributes:
        status: "passed", "failed" or "not attempted".
        cases: how many the exercise has; 1 for a prediction, 0 when there was no function to run.
        message: text for the learner.
    """

    status: str
    cases: int
    message: str
