"""Run a function on one case, whatever it does: raise, print, loop for ever, change its arguments."""

import contextlib
import dataclasses
import inspect
import io
import itertools
import random
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch

from course_utils.checking.limits import time_limit
from course_utils.checking.parts import MANY, copies, parts
from course_utils.checking.spec import Case, Exercise

NOTHING = object()
MOST_ELEMENTS = 2**27  # of all tensors that gradients are sent back from, one that stands in many places too
RUNS = itertools.count(1)
current_run = 0  # another process that holds the answer begins each run with the same random numbers


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a call came to: a value or an error.

    Attributes:
        value: what was returned; None when it raised.
        error: what was raised, or None.
        arguments: name -> argument after the call.
        returned: what the answer itself gave to the exercise's `call`; `NOTHING` without one.
        gradients: place -> gradient that arrived there; empty unless the case asks for gradients.
        library: whether one of the watched functions ran.
    """

    value: Any
    error: BaseException | None
    arguments: dict[str, Any]
    returned: Any = NOTHING
    gradients: dict[str, Any] = dataclasses.field(default_factory=dict)
    library: bool = False


def run(
    exercise: Exercise, function: Callable, case: Case, quiet: bool = False,
    watch: frozenset[CodeType] = frozenset(),
) -> Outcome:  # fmt: skip
    """Call a function on copies of a case's arguments. Whatever it does becomes an outcome.

    Args:
        exercise: says how the function is called, and for how long at most.
        function: the reference, a learner's answer or a planted mistake.
        case: the arguments.
        quiet: True drops what the function prints and its warnings.
        watch: functions' code; the outcome says whether any of it ran.

    Returns:
        What the call came to.

    Raises:
        KeyboardInterrupt: the learner pressed stop. Nothing else is raised.
    """
    args, kwargs = copies(case.args, case.kwargs)
    named = arguments(exercise, args, kwargs)
    returned, ran, found = [], [], {}
    wants = exercise.gradients if case.gradients is None else case.gradients
    value = error = None
    with settled(), _output(quiet):
        try:
            with time_limit(exercise.seconds), _watched(watch, ran):
                if exercise.call is None:
                    value = function(*args, **kwargs)
                else:
                    value = exercise.call(_recorded(function, returned), *args, **kwargs)
                found = _gradients(value, named) if wants else {}
        except KeyboardInterrupt:
            raise  # the learner pressed stop
        except BaseException as caught:  # whatever else an answer raises, SystemExit too, is a result
            error = caught
    return Outcome(value, error, named, returned[-1] if returned else NOTHING, found, bool(ran))


def run_reference(exercise: Exercise, case: Case, id: str) -> Outcome:
    """Call the exercise's own reference on a case.

    Args:
        exercise: the exercise.
        case: the arguments, and whether they must raise.
        id: what the exercise is called in the message of an error.

    Returns:
        What the call came to.

    Raises:
        RuntimeError: the reference does not do what the case says, or its arguments cannot be copied.
    """
    try:
        outcome = run(exercise, exercise.reference, case, quiet=True)
    except Exception as error:
        text = f"exercise {id} is broken, case {case.label!r}: its arguments cannot be copied ({error})."
        raise RuntimeError(f"{text} Please report it.") from error
    right = outcome.error is None if case.raises is None else isinstance(outcome.error, case.raises)
    if not right:
        raise RuntimeError(
            f"exercise {id} is broken, case {case.label!r}: its own reference gave {outcome.error!r} where "
            f"{case.raises or 'no exception'} was meant. Please report it."
        ) from outcome.error
    return outcome


def arguments(exercise: Exercise, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call by the names that the learner knows.

    Args:
        exercise: its reference, or its `call`, has the names.
        args: positional arguments.
        kwargs: named arguments.

    Returns:
        Name -> argument.
    """
    try:
        if exercise.call is None:
            bound = inspect.signature(exercise.reference).bind(*args, **kwargs)
        else:
            bound = inspect.signature(exercise.call).bind(None, *args, **kwargs)
            bound.arguments.pop(next(iter(bound.arguments)))
        return dict(bound.arguments)
    except (TypeError, ValueError, StopIteration):
        return {f"number {n}": value for n, value in enumerate(args, start=1)} | kwargs


def _recorded(function: Callable, returned: list) -> Callable:
    """The function, noting what it returns. A class stays as it is."""
    if isinstance(function, type):
        return function

    def recorded(*args: Any, **kwargs: Any) -> Any:
        returned.append(function(*args, **kwargs))
        return returned[-1]

    return recorded


def _gradients(value: Any, named: dict[str, Any]) -> dict[str, Any]:
    """Send the same random gradient back from every part of a value, and read what arrives."""
    ends = {place: part for place, part in itertools.islice(parts(value), MANY)
            if isinstance(part, torch.Tensor) and part.requires_grad}  # fmt: skip
    if sum(end.numel() for end in ends.values()) > MOST_ELEMENTS:
        raise ValueError(f"the result has more than {MOST_ELEMENTS:,} elements with a gradient")
    above = []
    for place, end in ends.items():
        random = torch.Generator().manual_seed(zlib.crc32(place.encode()))
        above.append(torch.randn(end.shape, generator=random).to(end))
    if ends:
        torch.autograd.backward(list(ends.values()), above)
    return {
        place: part.grad
        for name, argument in named.items()
        for place, part in parts(argument, name)
        if isinstance(part, torch.Tensor) and part.requires_grad
    }


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """The same random numbers and settings of torch for every call, and the learner's left as they were.

    Yields:
        Nothing.
    """
    global current_run
    current_run = next(RUNS)
    state, numpy_state = random.getstate(), np.random.get_state()
    dtype = torch.get_default_dtype()
    with (torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.inference_mode(False),
          torch.enable_grad()):  # fmt: skip
        torch.set_default_dtype(torch.float32)
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            random.setstate(state)
            np.random.set_state(numpy_state)


@contextlib.contextmanager
def _watched(codes: frozenset[CodeType], ran: list[CodeType]) -> Iterator[None]:
    """Note in `ran` which of the functions with this code are called in the block."""
    if not codes:
        yield
        return

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code in codes:
            ran.append(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(before)


@contextlib.contextmanager
def _output(quiet: bool) -> Iterator[None]:
    """Keep the answer's prints, drop those of our own functions.

    Warnings go to stdout: nbgrader gives no points to a cell that writes to stderr.
    """
    sink = io.StringIO() if quiet else sys.stdout
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stderr(sink))
        if quiet:
            stack.enter_context(contextlib.redirect_stdout(sink))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        yield
