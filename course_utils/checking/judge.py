"""Judge an answer: run it on the exercise's cases, compare, and find the likely mistake.

Everything that a learner's code may do ends in a `Result` with a message, never in an exception.
"""

import inspect
import traceback
from typing import Any

import numpy as np
import torch

from course_utils.checking import running
from course_utils.checking.compare import Difference, describe, difference, shorten
from course_utils.checking.predictions import judge_prediction
from course_utils.checking.running import Outcome, TimeLimit, run, run_reference
from course_utils.checking.spec import FAILED, NOT_ATTEMPTED, PASSED, Case, Exercise, Prediction, Result


def judge(exercise: Exercise | Prediction, answer: Any, id: str) -> Result:
    """Judge an answer to an exercise.

    Args:
        exercise: what was asked.
        answer: the learner's function or class, or the predicted number.
        id: what the exercise is called in the message.

    Returns:
        What came of it.

    Raises:
        RuntimeError: the exercise itself is broken: its reference does not do what a case says.
    """
    if isinstance(exercise, Prediction):
        return judge_prediction(exercise, answer, id)
    if answer is None or answer is ...:
        return _not_attempted(id)
    if not callable(answer):
        came = f"{describe(answer)}\n  Give check() the function itself: its name, without brackets."
        return _failed(id, 0, "", Difference("a function", came), "")
    cases = exercise.cases()
    failures = {}
    outcomes = []
    references = [run_reference(exercise, case, id) for case in cases]
    for n, (case, expected) in enumerate(zip(cases, references, strict=True)):
        came = run(exercise, answer, case)
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


def _not_attempted(id: str, cases: int = 0) -> Result:
    text = f"{id}: not attempted. Write your answer in the cell above, run it, then run this cell again."
    return Result(NOT_ATTEMPTED, cases, text)


def _failed(id: str, cases: int, title: str, found: Difference, advice: str, call: str = "") -> Result:
    lines = [f"{id}: failed{title}"]
    lines += [f"  called as: {call}"] * bool(call)
    lines += [f"  expected:  {found.expected}", f"  came:      {found.came}"]
    lines += [f"  {advice}"] * bool(advice)
    return Result(FAILED, cases, "\n".join(lines))


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _outcome_difference(
    exercise: Exercise, expected: Outcome, came: Outcome, case: Case
) -> Difference | None:
    if case.raises is not None:
        if isinstance(came.error, case.raises):
            return None
        return Difference(f"{case.raises.__name__} raised", _describe_outcome(came))
    if came.error is not None:
        return Difference(describe(expected.value), _describe_outcome(came))
    found = _values_difference(exercise, expected.value, came.value)
    return found or _argument_difference(exercise, expected, came)


def _values_difference(exercise: Exercise, expected: Any, came: Any) -> Difference | None:
    try:
        return difference(
            expected, came, rtol=exercise.rtol, atol=exercise.atol, exact_dtype=exercise.exact_dtype
        )
    except Exception as error:  # an object that cannot be compared, whatever it is, is not the answer
        return Difference(describe(expected), f"{describe(came)}, which cannot be compared ({error})")


def _argument_difference(exercise: Exercise, expected: Outcome, came: Outcome) -> Difference | None:
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


def _changed(exercise: Exercise, right: Any, came: Any) -> bool:
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


def _describe_outcome(outcome: Outcome) -> str:
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


def _learners_line(error: BaseException) -> str:
    """The line of the learner's code that raised: the innermost one outside of installed packages."""
    frames = traceback.extract_tb(error.__traceback__, limit=20)[1:]
    own = [f for f in frames if "site-packages" not in f.filename and f.filename != running.__file__]
    return shorten(own[-1].line or "") if own else ""


def _call_text(exercise: Exercise, case: Case) -> str:
    args = [_short(value) for value in case.args]
    args += [f"{key}={_short(value)}" for key, value in case.kwargs.items()]
    return f"{exercise.name}({', '.join(args)})"


def _short(value: Any) -> str:
    if isinstance(value, int | float | str | bool | None):
        return shorten(repr(value), 60)
    return f"<{shorten(describe(value), 80)}>"


def _likely_mistake(
    exercise: Exercise, cases: list[Case], references: list[Outcome], outcomes: list[Outcome]
) -> str | None:
    """Message of the planted mistake that answers as the learner does wherever it differs from the reference.

    Cases that must raise count only for mistakes that nothing else shows: a planted function need not repeat
    the reference's checks of its arguments.
    """
    best = None
    for mistake in exercise.mistakes:
        agrees, telling = {}, {True: [], False: []}
        for n, (case, reference, came) in enumerate(zip(cases, references, outcomes, strict=False)):
            planted = run(exercise, mistake.function, case, quiet=True)
            agrees[n] = _same_outcome(exercise, planted, came)
            if _outcome_difference(exercise, reference, planted, case):
                telling[case.raises is not None].append(n)
        shows = telling[False] or telling[True]
        if shows and all(agrees.values()):
            return mistake.message
        if shows and all(agrees[n] for n in shows):
            best = best or mistake.message
    return best


def _same_outcome(exercise: Exercise, planted: Outcome, came: Outcome) -> bool:
    if planted.error is not None or came.error is not None:
        return type(planted.error) is type(came.error)
    found = _values_difference(exercise, planted.value, came.value)
    return found is None and _argument_difference(exercise, planted, came) is None
