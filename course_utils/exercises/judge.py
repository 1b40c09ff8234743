"""Run an answer on an exercise's cases and find out what went wrong.

Everything that a learner's code may do (raise, loop for ever, return anything, change its arguments) ends in
a `Result` with a message, never in an exception.
"""

import contextlib
import copy
import dataclasses
import inspect
import io
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from course_utils.exercises.compare import (
    Difference,
    as_number,
    describe,
    difference,
    numbers_agree,
    shorten,
)

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
        id: name after the lesson's number and a point; the name of `reference` unless given.
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
        id: name after the lesson's number and a point.
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


def judge(exercise: Exercise | Prediction, answer, id: str) -> Result:
    """Judge `answer` and return a `Result`. Raises only when the exercise itself is wrong (RuntimeError)."""
    if isinstance(exercise, Prediction):
        return _judge_prediction(exercise, answer, id)
    if answer is None or answer is ...:
        return _not_attempted(id)
    if not callable(answer):
        came = f"{describe(answer)}\n  Give check() the function itself: its name, without brackets."
        return _failed(id, 0, "", Difference("a function", came), "")
    cases = exercise.cases()
    failures = {}
    outcomes = []
    references = [_run_reference(exercise, case, id) for case in cases]
    for n, (case, expected) in enumerate(zip(cases, references, strict=True)):
        came = _run(exercise, answer, case)
        unwritten = isinstance(came.error, NotImplementedError) and not came.error.args
        if unwritten and case.raises is None and not outcomes:
            return _not_attempted(id, len(cases))
        outcomes.append(came)
        if found := _outcome_difference(exercise, expected, came, case):
            failures[n] = found
        if isinstance(came.error, TimeLimit):
            break
    if not failures:
        return Result(PASSED, len(cases), f"{id}: passed ({_count(len(cases), 'case')})")
    first = min(failures)
    title = f" in case {first + 1} of {len(cases)}"
    title += f" ({cases[first].label})" if cases[first].label else ""
    call = _call_text(exercise, cases[first])
    advice = _likely_mistake(exercise, cases, references, outcomes)
    advice = f"Likely mistake: {advice}" if advice else f"Hint: {exercise.hint}" if exercise.hint else ""
    return _failed(id, len(cases), title, failures[first], advice, call)


def _not_attempted(id, cases=0):
    text = f"{id}: not attempted. Write your answer in the cell above, run it, then run this cell again."
    return Result(NOT_ATTEMPTED, cases, text)


def _failed(id, cases, title, found, advice, call=""):
    lines = [f"{id}: failed{title}"]
    lines += [f"  called as: {call}"] * bool(call)
    lines += [f"  expected:  {found.expected}", f"  came:      {found.came}"]
    lines += [f"  {advice}"] * bool(advice)
    return Result(FAILED, cases, "\n".join(lines))


def _count(n, noun):
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


# --- running one case -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Outcome:
    value: Any
    error: BaseException | None
    arguments: tuple  # (args, kwargs) after the call


class TimeLimit(BaseException):
    """Raised inside an answer that runs too long. No Exception: `except Exception` must not swallow it."""


def _run(exercise, function, case, quiet=False) -> _Outcome:
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
    return _Outcome(value, error, (args, kwargs))


def _run_reference(exercise, case, id) -> _Outcome:
    outcome = _run(exercise, exercise.reference, case, quiet=True)
    right = outcome.error is None if case.raises is None else isinstance(outcome.error, case.raises)
    if not right:
        raise RuntimeError(
            f"exercise {id} is broken, case {case.label!r}: its own reference gave {outcome.error!r} where "
            f"{case.raises or 'no exception'} was meant. Please report it."
        ) from outcome.error
    return outcome


@contextlib.contextmanager
def _seeded():
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
def _output(quiet):
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
def _time_limit(seconds):
    """Raise `TimeLimit` in the block after `seconds`, where the platform has interval timers."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_):
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


# --- comparing outcomes -----------------------------------------------------------------------------------


def _outcome_difference(exercise, expected: _Outcome, came: _Outcome, case) -> Difference | None:
    if case.raises is not None:
        if isinstance(came.error, case.raises):
            return None
        return Difference(f"{case.raises.__name__} raised", _describe_outcome(came))
    if came.error is not None:
        return Difference(describe(expected.value), _describe_outcome(came))
    found = _values_difference(exercise, expected.value, came.value)
    return found or _argument_difference(exercise, expected, came)


def _values_difference(exercise, expected, came):
    try:
        return difference(
            expected, came, rtol=exercise.rtol, atol=exercise.atol, exact_dtype=exercise.exact_dtype
        )
    except Exception as error:  # an object that cannot be compared, whatever it is, is not the answer
        return Difference(describe(expected), f"{describe(came)}, which cannot be compared ({error})")


def _argument_difference(exercise, expected, came):
    """The argument that the answer changed in place although the reference does not, or changes otherwise."""
    try:
        bound = inspect.signature(exercise.reference).bind(*expected.arguments[0], **expected.arguments[1])
        names = list(bound.arguments)
    except (TypeError, ValueError):
        names = []
    pairs = list(zip(expected.arguments[0], came.arguments[0], strict=True))
    pairs += [(value, came.arguments[1][key]) for key, value in expected.arguments[1].items()]
    for n, (right, changed) in enumerate(pairs):
        name = f"`{names[n]}`" if n < len(names) and exercise.call is None else f"number {n + 1}"
        if _changed(exercise, right, changed):
            return Difference(
                f"argument {name} as {describe(right)}, in the state the reference leaves it in",
                "another content: your function changes it in place (work on a copy)",
            )
    return None


def _changed(exercise, right, came) -> bool:
    if isinstance(right, torch.nn.Module):
        return _changed(exercise, right.state_dict(), came.state_dict())
    if isinstance(right, torch.Tensor | np.ndarray):
        return _values_difference(exercise, right, came) is not None
    if isinstance(right, dict):
        return right.keys() != came.keys() or any(_changed(exercise, right[k], came[k]) for k in right)
    if isinstance(right, list | tuple):
        return len(right) != len(came) or any(map(lambda a, b: _changed(exercise, a, b), right, came))
    if isinstance(right, bool | int | float | str):
        return _values_difference(exercise, right, came) is not None
    return False  # anything else cannot be compared for certain


def _describe_outcome(outcome):
    if outcome.error is None:
        return describe(outcome.value)
    if isinstance(outcome.error, TimeLimit):
        return str(outcome.error)
    text = f"{type(outcome.error).__name__} raised"
    try:
        message = shorten(str(outcome.error), 200)
        line = _learners_line(outcome.error)
    except Exception:  # an exception whose own text fails
        message, line = "", ""
    text += f": {message}" if message else ""
    return text + (f"\n             in the line: {line}" if line else "")


def _learners_line(error) -> str:
    """The line of the learner's code that raised: the innermost one outside of installed packages."""
    frames = traceback.extract_tb(error.__traceback__, limit=20)[1:]
    own = [f for f in frames if "site-packages" not in f.filename and f.filename != __file__]
    return shorten(own[-1].line or "") if own else ""


def _call_text(exercise, case):
    args = [_short(value) for value in case.args]
    args += [f"{key}={_short(value)}" for key, value in case.kwargs.items()]
    return f"{exercise.name}({', '.join(args)})"


def _short(value):
    if isinstance(value, int | float | str | bool | None):
        return shorten(repr(value), 60)
    return f"<{shorten(describe(value), 80)}>"


def _likely_mistake(exercise, cases, references, outcomes):
    """Message of the planted mistake that answers as the learner does wherever it differs from the reference.

    Cases that must raise count only for mistakes that nothing else shows: a planted function need not repeat
    the reference's checks of its arguments.
    """
    best = None
    for mistake in exercise.mistakes:
        agrees, telling = {}, {True: [], False: []}
        for n, (case, reference, came) in enumerate(zip(cases, references, outcomes, strict=False)):
            planted = _run(exercise, mistake.function, case, quiet=True)
            agrees[n] = _same_outcome(exercise, planted, came)
            if _outcome_difference(exercise, reference, planted, case):
                telling[case.raises is not None].append(n)
        shows = telling[False] or telling[True]
        if shows and all(agrees.values()):
            return mistake.message
        if shows and all(agrees[n] for n in shows):
            best = best or mistake.message
    return best


def _same_outcome(exercise, planted, came):
    if planted.error is not None or came.error is not None:
        return type(planted.error) is type(came.error)
    found = _values_difference(exercise, planted.value, came.value)
    return found is None and _argument_difference(exercise, planted, came) is None


# --- predictions ------------------------------------------------------------------------------------------


def _judge_prediction(prediction, value, id):
    if value is None or value is ...:
        text = f"{id}: not attempted. Write your prediction in the cell above: a guess costs nothing."
        return Result(NOT_ATTEMPTED, 1, text)
    right = prediction.answer() if callable(prediction.answer) else prediction.answer
    if isinstance(right, str):
        return _judge_choice(prediction, right, value, id)
    wanted, number = as_number(right), _as_number(value)
    if isinstance(number, int) and abs(number) > 1e300:  # too large for a float
        number = float("inf") if number > 0 else -float("inf")
    unit = f" {prediction.unit}" if prediction.unit else ""
    if number is None or isinstance(number, complex) or number != number:
        asked = f"a number in {prediction.unit}" if prediction.unit else "a number"
        return _failed(id, 1, "", Difference(asked, describe(value)), "")
    if numbers_agree(wanted, number, prediction.rtol, 0.0):
        text = f"{id}: passed. You said {_figure(number)}{unit}, it is {_figure(wanted)}{unit}."
        return Result(PASSED, 1, text)
    lines = [
        f"{id}: failed. {_figure(number)}{unit} is {_how_far(wanted, number)} "
        f"(accepted: within {prediction.rtol:.0%} of the answer)."
    ]
    advice = _prediction_advice(prediction, wanted, number)
    return Result(FAILED, 1, "\n  ".join(lines + [advice] * bool(advice)))


def _as_number(value):
    try:
        return as_number(value)
    except Exception:  # an object that cannot even be asked for its type is no number
        return None


def _judge_choice(prediction, right, value, id):
    value = value if type(value) is str else describe(value)
    if value.strip().lower() == right.strip().lower():
        return Result(PASSED, 1, f"{id}: passed. It is {right!r}.")
    advice = prediction.hint and f"Hint: {prediction.hint}"
    for planted, message in prediction.mistakes:
        planted = planted() if callable(planted) else planted
        if value.strip().lower() == str(planted).strip().lower():
            advice = f"Likely mistake: {message}"
    lines = [f"{id}: failed. {value!r} is not the answer."] + [advice] * bool(advice)
    return Result(FAILED, 1, "\n  ".join(lines))


def _prediction_advice(prediction, wanted, number):
    for planted, message in prediction.mistakes:
        planted = as_number(planted() if callable(planted) else planted)
        if planted is not None and numbers_agree(planted, number, prediction.rtol, 0.0):
            return f"Likely mistake: {message}"
    for factor in (1e3, 1e6, 1e9, 1e12, 8.0, 100.0):  # kilo, mega, giga, tera; bits and bytes; percent
        for scaled in (wanted * factor, wanted / factor):
            if numbers_agree(scaled, number, min(prediction.rtol, 0.02), 0.0):
                unit = f" (it is asked in {prediction.unit})" if prediction.unit else ""
                return f"Likely mistake: the unit{unit}; the digits are right."
    return f"Hint: {prediction.hint}" if prediction.hint else ""


def _how_far(wanted, number):
    """Too high or too low, and roughly by how much: enough to think again, not enough to copy."""
    side = "too high" if number > wanted else "too low"
    if not wanted * number > 0:  # of unlike sign, or zero, or zero against infinity
        return side
    ratio = max(number / wanted, wanted / number)
    for bound in (2, 10, 100):
        if ratio < bound:
            return f"{side}, by less than a factor of {bound}"
    return f"{side}, by more than a factor of 100"


def _figure(number):
    if isinstance(number, int) or float(number).is_integer() and abs(number) < 1e15:
        return f"{int(number):,}"
    return f"{number:.4g}"
