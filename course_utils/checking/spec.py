"""What an exercise is: its reference, its cases, and the mistakes that learners make."""

import copy
import dataclasses
import random
import types
from collections.abc import Callable, Iterator
from typing import Any

PASSED, FAILED, NOT_ATTEMPTED = "passed", "failed", "not attempted"


class Case:
    """One call of the exercise's function: ``Case(*args, label="tied embeddings", **kwargs)``.

    Arguments may be anything that can be copied: tensors of every dtype, parameters, tensors computed from
    others, modules, configs, a torch.Generator; a Python generator is read once and handed out afresh to
    every call. Give an exercise two cases of the same shapes with other numbers: only they find an answer
    that keeps something by shape.

    Args:
        *args: positional arguments of the call.
        label: what is special about this case, shown when it fails.
        raises: exception type (or a tuple of them) that the function must raise on these arguments, or None.
            A subclass will do. What the reference leaves unchanged must be unchanged then, too.
        exact_dtype: as in `Exercise`, for this case alone; None leaves it to the exercise.
        gradients: as in `Exercise`, for this case alone; None leaves it to the exercise.
        **kwargs: named arguments of the call.
    """

    def __init__(
        self, *args: Any, label: str = "", raises: type[BaseException] | tuple | None = None,
        exact_dtype: bool | None = None, gradients: bool | None = None, **kwargs: Any
    ) -> None:  # fmt: skip
        self.args = tuple(_repeatable(value) for value in args)
        self.kwargs = {name: _repeatable(value) for name, value in kwargs.items()}
        self.label, self.raises = label, raises
        self.exact_dtype, self.gradients = exact_dtype, gradients
        self.private = False  # True of an instructor's own case: its values are not shown


class Stream:
    """Values that a case hands out one by one: its copy is a generator.

    Args:
        values: what the generator yields.
    """

    def __init__(self, values: list) -> None:
        self.values = values

    def __deepcopy__(self, memo: dict) -> Iterator[Any]:
        values = copy.deepcopy(self.values, memo)
        return (value for value in values)


def _repeatable(value: Any) -> Any:
    return Stream(list(value)) if isinstance(value, types.GeneratorType) else value


class Complaint(Exception):
    """Raised by an exercise's `call` when it sees itself what is wrong.

    Args:
        expected: what was expected, in words that the learner knows.
        came: what came.
    """

    def __init__(self, expected: str, came: str) -> None:
        super().__init__(came)
        self.expected, self.came = expected, came


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

    An answer is called twice with each case's arguments, the second time in reverse order. Each time it must
    return what the reference returns, leave the arguments as the reference leaves them (also when it must
    raise), and return new memory where the reference does: no argument, and no view of one. Where the
    reference returns an argument itself, the answer must, too.

    Attributes:
        reference: the right function (or class).
        cases: zero-argument callable that builds the list of `Case`; seed whatever is random in it.
        mistakes: what learners are likely to do wrong, see `Mistake`.
        rtol: relative tolerance for floats; integers are compared exactly. Results of float32 have seven
            digits, so less than 1e-6 rejects right answers.
        atol: absolute tolerance for floats.
        exact_dtype: True when the task promises the type: then the very dtype of tensors and the very type
            of numbers (int, float) are compared. False: only their kind. See `compare.difference`.
        gradients: True when gradients are part of the answer: a random gradient is sent back from what was
            returned, and that of each argument with requires_grad and of each module's parameters compared.
        hint: shown when no mistake matches.
        call: ``call(thing, *args, **kwargs)`` does the work where `reference` is not simply called (a class).
            A dict that it returns is no part of the answer: its keys say in plain words what was looked at
            ("gradient of x"), and "result" or "returned" is what the answer returned.
        id: name after the lesson's key and a point; the name of `reference` unless given.
        seconds: time limit of one case, in seconds.
        draw: from a random number generator to further cases, of other sizes and values, for an instructor
            who grades with a seed. Without it they are those of `cases` with other random numbers, which
            changes nothing in cases that hold none.
    """

    reference: Callable
    cases: Callable[[], list[Case]]
    mistakes: list[Mistake] = dataclasses.field(default_factory=list)
    rtol: float = 1e-5
    atol: float = 1e-8
    exact_dtype: bool = False
    gradients: bool = False
    hint: str = ""
    call: Callable | None = None
    id: str = ""
    seconds: float = 60.0
    draw: Callable[[random.Random], list[Case]] | None = None

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
        rtol: relative tolerance around the answer; the learner's cell states it.
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
        library: True when the answer that passed is the library's own function, or calls it.
        right: in how many cases the answer was right, both times that it was called.
    """

    status: str
    cases: int
    message: str
    library: bool = False
    right: int = 0
