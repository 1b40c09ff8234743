"""Judge an answer: run it on the exercise's cases, twice, compare, and find the likely mistake.

Everything that a learner's code may do ends in a `Result` with a message, never in an exception.
"""

import contextlib
from collections.abc import Callable
from typing import Any

from course_utils.checking.cases import private_cases
from course_utils.checking.compare import Difference
from course_utils.checking.describe import describe, shorten
from course_utils.checking.limits import Stopped, TimeLimit
from course_utils.checking.mistakes import likely_mistake
from course_utils.checking.outcomes import outcome_difference
from course_utils.checking.predictions import judge_prediction
from course_utils.checking.running import Outcome, run, run_reference, settled
from course_utils.checking.source import codes, is_stub
from course_utils.checking.spec import FAILED, NOT_ATTEMPTED, PASSED, Case, Exercise, Prediction, Result

AGAIN = (
    "the second call with the same arguments gives something else. Does your code keep something between "
    "calls: a global, a default argument, an attribute of the class, a hook?"
)
OVERWRITTEN = "a later call changed what this one had returned: return new memory each time."


def judge(exercise: Exercise | Prediction, answer: Any, id: str, seed: str = "") -> Result:
    """Judge an answer to an exercise.

    Args:
        exercise: what was asked.
        answer: the learner's function or class, or the predicted number.
        id: what the exercise is called in the message.
        seed: an instructor's: cases that it draws are judged, too. "" draws none.

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
    with settled():
        cases = exercise.cases()
        references = [run_reference(exercise, case, id) for case in cases]
        for case in private_cases(exercise, seed, id) if seed else ():
            with contextlib.suppress(RuntimeError):  # with other numbers it may not be a case any more
                references.append(run_reference(exercise, case, id))
                cases.append(case)
    outcomes, failures = [], {}
    for n, (case, expected) in enumerate(zip(cases, references, strict=True)):
        came = run(exercise, answer, case)
        if case.raises is None and not outcomes and is_stub(came.error, exercise.call):
            return _not_attempted(id, len(cases))
        outcomes.append(came)
        if found := outcome_difference(exercise, case, expected, came):
            failures[n] = found
        if isinstance(came.error, TimeLimit):
            break
    if failures:
        first = min(failures)
        advice = likely_mistake(exercise, cases, references, outcomes, first)
        advice = f"Likely mistake: {advice}" if advice else f"Hint: {exercise.hint}" * bool(exercise.hint)
        right = len(outcomes) - len(failures)
        if cases[first].private:
            return _failed_in_private(id, len(cases), advice, right)
        call = _call_text(exercise, cases[first])
        return _failed(id, len(cases), _title(cases, first), failures[first], advice, call, right)
    return _second_use(exercise, answer, id, cases, references, outcomes)


def _second_use(
    exercise: Exercise, answer: Callable, id: str, cases: list[Case], references: list[Outcome],
    outcomes: list[Outcome],
) -> Result:  # fmt: skip
    """What comes of an answer that was right once: call it again, in reverse order.

    The second time is watched: does the answer call the library's function?
    """
    watch, library = codes(exercise.reference), False
    for n in reversed(range(len(cases))):
        again = run(exercise, answer, cases[n], quiet=True, watch=watch)
        library = library or again.library
        advice = AGAIN
        found = None
        if not isinstance(again.error, TimeLimit) or isinstance(again.error, Stopped):  # watching takes time
            found = outcome_difference(exercise, cases[n], references[n], again)
        for m in range(len(cases)) if not found else ():
            if found := outcome_difference(exercise, cases[m], references[m], outcomes[m]):
                n, advice = m, OVERWRITTEN
                break
        if found and cases[n].private:
            return _failed_in_private(id, len(cases), f"Likely mistake: {advice}")
        if found and any(case.private for case in cases):  # it has seen them and may tell what is in them
            found = Difference(found.expected, "something else (not shown: it may tell other cases)")
        if found:
            title = f"{_title(cases, n)}, called again" if advice == AGAIN else _title(cases, n)
            call = _call_text(exercise, cases[n])
            return _failed(id, len(cases), title, found, f"Likely mistake: {advice}", call)
    count = "1 case" if len(cases) == 1 else f"{len(cases)} cases"
    how = ", with the library's own function" if library else ""
    return Result(PASSED, len(cases), f"{id}: passed{how} ({count})", library, len(cases))


def _not_attempted(id: str, cases: int = 0) -> Result:
    text = f"{id}: not attempted. Write your answer in the cell above, run it, then run this cell again."
    return Result(NOT_ATTEMPTED, cases, text)


def _failed_in_private(id: str, cases: int, advice: str, right: int = 0) -> Result:
    """The message for a case that learners have not seen: it does not show the values."""
    text = f"{id}: failed in a case that is not in the notebook; those of the notebook pass"
    return Result(FAILED, cases, "\n  ".join([text] + [advice] * bool(advice)), right=right)


def _failed(
    id: str, cases: int, title: str, found: Difference, advice: str, call: str = "", right: int = 0
) -> Result:
    lines = [f"{id}: failed{title}"]
    lines += [f"  called as: {call}"] * bool(call)
    lines += [f"  expected:  {found.expected}", f"  came:      {found.came}"]
    lines += [f"  {advice}"] * bool(advice)
    return Result(FAILED, cases, "\n".join(lines), right=right)


def _title(cases: list[Case], n: int) -> str:
    label = f" ({cases[n].label})" if cases[n].label else ""
    return f" in case {n + 1} of {len(cases)}{label}"


def _call_text(exercise: Exercise, case: Case) -> str:
    args = [_short(value) for value in case.args]
    args += [f"{key}={_short(value)}" for key, value in case.kwargs.items()]
    return f"{exercise.name}({', '.join(args)})"


def _short(value: Any) -> str:
    if isinstance(value, int | float | str | bool | None):
        return shorten(repr(value), 60)
    return f"<{shorten(describe(value), 80)}>"
