"""Compare what an answer did with what the reference did: value, gradients, arguments, memory."""

from collections.abc import Callable
from typing import Any

import torch

from course_utils.checking.compare import Difference, Types, differ, difference
from course_utils.checking.describe import at, describe, shorten
from course_utils.checking.limits import TimeLimit, time_limit
from course_utils.checking.parts import shared, state
from course_utils.checking.running import NOTHING, Outcome, arguments
from course_utils.checking.source import learners_line, left_over, own_frames, told
from course_utils.checking.spec import Case, Complaint, Exercise

RETURNED = ("result", "returned")  # keys by which an exercise's `call` names what the answer returned


def outcome_difference(
    exercise: Exercise, case: Case, expected: Outcome, came: Outcome, types: Types | None = None
) -> Difference | None:
    """First difference between two outcomes. Never raises, whatever an answer returned.

    Args:
        exercise: says how closely values must agree.
        case: what both were called with.
        expected: what the reference did.
        came: what the answer did.
        types: as in `compare.difference`; None: as the case or the exercise asks.

    Returns:
        The difference, or None.
    """
    if types is None:
        exact = exercise.exact_dtype if case.exact_dtype is None else case.exact_dtype
        types = "exact" if exact else "kind"
    try:
        with time_limit(exercise.seconds):
            return _difference(exercise, case, expected, came, types)
    except KeyboardInterrupt:
        raise  # the learner pressed stop
    except BaseException as error:  # an object that cannot be compared, whatever it is, is not the answer
        wanted, value = ((outcome.value if outcome.returned is NOTHING else outcome.returned)
                         for outcome in (expected, came))  # fmt: skip
        text = f"{describe(value)}, which cannot be compared ({type(error).__name__})"
        return Difference(describe(wanted), text)


def same_outcome(exercise: Exercise, case: Case, one: Outcome, other: Outcome) -> bool:
    """Whether two functions did the same: raised an error of one type, or returned and left the same.

    Args:
        exercise: says how closely values must agree.
        case: what both were called with.
        one: an outcome.
        other: another one.

    Returns:
        True when they did.
    """
    if one.error is not None or other.error is not None:
        return type(one.error) is type(other.error)
    case = Case(*case.args, **case.kwargs)  # without what it must raise
    return outcome_difference(exercise, case, one, other, "value") is None


def _difference(
    exercise: Exercise, case: Case, expected: Outcome, came: Outcome, types: Types
) -> Difference | None:
    if case.raises is not None and not isinstance(came.error, case.raises):
        names = case.raises if isinstance(case.raises, tuple) else (case.raises,)
        wanted = " or ".join(name.__name__ for name in names)
        return Difference(f"{wanted} raised", _describe_outcome(came, exercise.call))
    if case.raises is None and came.error is not None:
        return _error_difference(exercise, expected, came)
    options = {"rtol": exercise.rtol, "atol": exercise.atol, "types": types}
    found = None
    if case.raises is None:
        found = _values_difference(exercise, expected, came, options) or _gradient_difference(
            expected, came, options)
    found = found or _argument_difference(exercise, case, expected, came, options)
    return found or (_memory_difference(exercise, expected, came) if case.raises is None else None)


def _error_difference(exercise: Exercise, expected: Outcome, came: Outcome) -> Difference:
    """The answer raised. Or it returned something with which the exercise's `call` could not go on."""
    if isinstance(came.error, Complaint):
        return Difference(came.error.expected, came.error.came)
    if came.returned is not NOTHING and not told(came.error) and not own_frames(came.error, exercise.call):
        if expected.returned is NOTHING:  # of a class `call` makes its own objects
            return Difference(f"an object of a class {exercise.name}", describe(came.returned))
        return difference(expected.returned, came.returned) or differ(expected.returned, came.returned)
    wanted = expected.value if exercise.call is None else expected.returned
    wanted = "no exception" if wanted is NOTHING else describe(wanted)
    return Difference(wanted, _describe_outcome(came, exercise.call))


def _values_difference(
    exercise: Exercise, expected: Outcome, came: Outcome, options: dict[str, Any]
) -> Difference | None:
    if exercise.call is None or not isinstance(expected.value, dict) or not isinstance(came.value, dict):
        return difference(expected.value, came.value, **options)
    for key, value in expected.value.items():
        if key in came.value:
            path = "" if key in RETURNED else str(key)
            if found := difference(value, came.value[key], path=path, **options):
                return found
    missing = [key for key in expected.value if key not in came.value]
    return Difference(f"also {missing[0]}", "nothing of the kind") if missing else None


def _gradient_difference(expected: Outcome, came: Outcome, options: dict[str, Any]) -> Difference | None:
    for place, wanted in expected.gradients.items():
        gradient = came.gradients.get(place)
        if wanted is None:
            wanted = None if gradient is None else torch.zeros_like(gradient)
        elif gradient is None and wanted.any():
            return Difference(f"a gradient for `{place}`", "none arrives there (was something detached?)")
        elif gradient is None:
            gradient = torch.zeros_like(wanted)
        if found := difference(wanted, gradient, path=f"the gradient of `{place}`", **options):
            return found
    return None


def _argument_difference(
    exercise: Exercise, case: Case, expected: Outcome, came: Outcome, options: dict[str, Any]
) -> Difference | None:
    """The argument that the answer changed in place although the reference does not, or changes otherwise."""
    before = arguments(exercise, case.args, case.kwargs)
    exactly = {"rtol": 0, "atol": 0, "types": "exact"}
    for name, argument in expected.arguments.items():
        right, left = state(argument, name), state(came.arguments.get(name), name)
        if expected.gradients:  # compared already
            right = {place: value for place, value in right.items() if not place.endswith(".grad")}
        kept = _first(state(before[name], name), right, exactly) is None
        how = exactly if kept else options | {"types": "kind"}
        place, found = _first(right, left, how) or ("", None)
        if found is None:
            continue
        inside = place.removeprefix(name).lstrip(":. ")
        what = f"argument `{name}`" + (f", at {inside}," if inside else "")
        if kept:
            when = "before it raises (check first)" if case.raises else "in place (work on a copy)"
            return Difference(
                f"{what} unchanged: {found.expected}",
                f"another content, {found.came}: your function changes it {when}",
            )
        return Difference(f"{what} afterwards: {found.expected}", found.came)
    return None


def _first(
    right: dict[str, Any], came: dict[str, Any], options: dict[str, Any]
) -> tuple[str, Difference] | None:
    for place, value in right.items():
        if place not in came:
            return place, Difference(describe(value), "it is gone")
        if found := difference(value, came[place], **options):
            return place, found
    return None


def _memory_difference(exercise: Exercise, expected: Outcome, came: Outcome) -> Difference | None:
    """Something returned that shares memory with an argument where it should not, or the other way round."""
    right, found = shared(expected.value, expected.arguments), shared(came.value, came.arguments)
    names = {f"[{key!r}]": "" if key in RETURNED else str(key)
             for key in (expected.value if exercise.call and isinstance(expected.value, dict) else ())}
    for place, (owner, same) in found.items():
        if place not in right:
            what = f"argument `{owner}` itself" if same else f"a view of argument `{owner}`"
            start = at(names.get(place, place))
            return Difference(
                f"{start}new memory, which shares nothing with the arguments",
                f"{start}{what}: who changes the one changes the other (make a copy, such as .clone())",
            )
    for place, (owner, same) in right.items():
        if same and not found.get(place, ("", False))[1]:
            start = at(names.get(place, place))
            return Difference(f"{start}argument `{owner}` itself, not a copy", f"{start}another object")
    return None


def _describe_outcome(outcome: Outcome, call: Callable | None) -> str:
    error = outcome.error
    if error is None:
        value = outcome.value if outcome.returned is NOTHING else outcome.returned
        return "no exception, but " + describe(value)
    if isinstance(error, TimeLimit):
        return str(error)
    if text := left_over(error, call):
        return text
    text = f"{type(error).__name__} raised"
    try:
        message, line = shorten(str(error), 200), learners_line(error, call)
    except Exception:  # an exception whose own text fails
        message, line = "", ""
    text += f": {message}" if message else ""
    return text + (f"\n             in the line: {line}" if line else "")
