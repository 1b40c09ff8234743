"""Run a function on one case, whatever it does: raise, print, loop for ever, change its arguments."""

import contextlib
import copy
import dataclasses
import io
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from course_utils.checking.spec import Case, Exercise


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a call came to: a value or an error.

    Attributes:
        value: what was returned; None when it raised.
        error: what was raised, or None.
        arguments: (args, kwargs) after the call.
    """

    value: Any
    error: BaseException | None
    arguments: tuple


class TimeLimit(BaseException):
    """Raised inside an answer that runs too long. No Exception: `except Exception` must not swallow it."""


def run(exercise: Exercise, function: Callable, case: Case, quiet: bool = False) -> Outcome:
    """Call a function on copies of a case's arguments. Whatever it does becomes an outcome.

    Args:
        exercise: says how the function is called, and for how long at most.
        function: the reference, a learner's answer or a planted mistake.
        case: the arguments.
        quiet: True drops what the function prints and its warnings.

    Returns:
        What the call came to.

    Raises:
        KeyboardInterrupt: the learner pressed stop. Nothing else is raised.
    """
    args, kwargs = copy.deepcopy((case.args, case.kwargs))
    call = exercise.call or (lambda function, *args, **kwargs: function(*args, **kwargs))
    value = error = None
    with _seeded(), _output(quiet):
        try:
            with _time_limit(exercise.seconds):
                value = call(function, *args, **kwargs)
        except KeyboardInterrupt:
            raise  # the learner pressed stop
        except BaseException as caught:  # whatever else an answer raises, SystemExit too, is a result
            error = caught
    return Outcome(value, error, (args, kwargs))


def run_reference(exercise: Exercise, case: Case, id: str) -> Outcome:
    """Call the exercise's own reference on a case.

    Args:
        exercise: the exercise.
        case: the arguments, and whether they must raise.
        id: what the exercise is called in the message of an error.

    Returns:
        What the call came to.

    Raises:
        RuntimeError: the reference does not do what the case says.
    """
    outcome = run(exercise, exercise.reference, case, quiet=True)
    right = outcome.error is None if case.raises is None else isinstance(outcome.error, case.raises)
    if not right:
        raise RuntimeError(
            f"exercise {id} is broken, case {case.label!r}: its own reference gave {outcome.error!r} where "
            f"{case.raises or 'no exception'} was meant. Please report it."
        ) from outcome.error
    return outcome


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """The same random numbers for every call, and the learner's own sequences left as they were."""
    state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)


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


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeLimit` in the block after `seconds`, where the platform has interval timers."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeLimit(f"stopped after {seconds:g} seconds: does a loop never end?")

    before = signal.signal(signal.SIGALRM, stop)
    started = time.monotonic()
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if remaining:  # a timer of somebody else, such as a test's
            signal.setitimer(
                signal.ITIMER_REAL, max(remaining - (time.monotonic() - started), 0.001), interval
            )
