"""How an answer is judged.

A lesson ends each exercise with ``check("one_token.parameter_count", parameter_count)``. What is asked stands
in ``course_utils.exercises``: one module a lesson, named by the lesson's key, with a list ``EXERCISES``.
"""

import difflib
import importlib
import importlib.util
import os
from typing import Any

from course_utils.checking.judge import judge as _judge
from course_utils.checking.spec import (
    FAILED,
    NOT_ATTEMPTED,
    PASSED,
    Case,
    Exercise,
    Mistake,
    Prediction,
    Result,
)

__all__ = [
    "FAILED", "MODULES", "NOT_ATTEMPTED", "PASSED", "Case", "Exercise", "Mistake", "Prediction", "Result",
    "check", "find", "judge", "load",
]  # fmt: skip

# Lesson's key -> module with EXERCISES, for lessons whose exercises stand elsewhere than in `PACKAGE`.
MODULES: dict[str, str] = {}
PACKAGE = "course_utils.exercises"
# Set by an instructor: an answer that is the library's own function gets its points all the same.
LIBRARY_POINTS = "COURSE_LIBRARY_POINTS"


def check(id: str, answer: Any) -> None:
    """Check a learner's answer and show what came of it.

    Args:
        id: the lesson's key and a name, such as "one_token.parameter_count".
        answer: the learner's function or class, or the predicted number.

    Raises:
        ValueError: no exercise has this id.
        RuntimeError: the exercise itself is broken.
        AssertionError: nbgrader is running (the variable NBGRADER_EXECUTION), and the answer did not pass, or
            is the library's own function and the variable COURSE_LIBRARY_POINTS is not set.
    """
    result = judge(id, answer)
    _show(id, result)
    if os.environ.get("NBGRADER_EXECUTION"):
        if result.status != PASSED:
            raise AssertionError(result.message)
        if result.library and not os.environ.get(LIBRARY_POINTS):
            raise AssertionError(f"{result.message}: no points for that.")


def judge(id: str, answer: Any, seed: str = "") -> Result:
    """`check` without showing anything.

    Args:
        id: as in `check`.
        answer: as in `check`.
        seed: an instructor's: further cases, which no learner has seen. "" for none.

    Returns:
        What came of it.

    Raises:
        ValueError: no exercise has this id.
        RuntimeError: the exercise itself is broken.
    """
    return _judge(find(id), answer, id, seed)


def find(id: str) -> Exercise | Prediction:
    """The exercise with an id.

    Args:
        id: the lesson's key and a name, such as "one_token.parameter_count".

    Returns:
        The exercise or the prediction.

    Raises:
        ValueError: there is none.
    """
    lesson, _, name = str(id).partition(".")
    exercises = load(lesson)
    if name not in exercises:
        near = difflib.get_close_matches(name, exercises, n=3, cutoff=0.4) or sorted(exercises)
        raise ValueError(
            f"no exercise {id!r}. Near it: {', '.join(f'{lesson}.{other}' for other in near) or 'none'}."
        )
    return exercises[name]


def load(lesson: str) -> dict[str, Exercise | Prediction]:
    """All exercises of a lesson.

    Args:
        lesson: its key, such as "gptq".

    Returns:
        Name -> exercise or prediction.

    Raises:
        ValueError: the lesson has none, or two of one name.
    """
    module_name = MODULES.get(lesson, f"{PACKAGE}.{lesson}")
    if lesson not in MODULES and (not lesson.isidentifier() or importlib.util.find_spec(module_name) is None):
        raise ValueError(f"no exercises for lesson {lesson!r}: an id is like 'one_token.parameter_count'.")
    found = {}
    for exercise in importlib.import_module(module_name).EXERCISES:
        if exercise.name in found:
            raise ValueError(f"{module_name} has two exercises named {exercise.name!r}.")
        found[exercise.name] = exercise
    return found


def _show(id: str, result: Result) -> None:
    """Text for the learner; in a kernel, also the status as metadata, which `course run` counts."""
    try:
        from IPython import get_ipython

        kernel = get_ipython()
    except ImportError:
        kernel = None
    if kernel is None:
        print(result.message)
        return
    from IPython.display import display

    status = {"exercise": id, "status": result.status, "cases": result.cases, "library": result.library}
    display({"text/plain": result.message}, raw=True, metadata={"course": status})
