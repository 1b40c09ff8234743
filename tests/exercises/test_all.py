"""Every exercise of every lesson must reject its planted wrong answers and accept right ones.

tests/exercises/test_KEY.py holds WRONG = {"name": [(answer, "regex of the reason"), ...]} and
RIGHT = {"name": [answer, ...]} for each exercise and prediction of the lesson KEY.
"""

import importlib
import importlib.util
import pkgutil

import pytest

from course_utils import checking, exercises
from tests.exercises.common import assert_accepts, assert_rejects

LESSONS = sorted(module.name for module in pkgutil.iter_modules(exercises.__path__))


def planted(lesson):
    """(WRONG, RIGHT) of a lesson's test module; two empty dicts when it has none yet."""
    name = f"tests.exercises.test_{lesson}"
    if importlib.util.find_spec(name) is None:
        return {}, {}
    module = importlib.import_module(name)
    return module.WRONG, module.RIGHT


def pairs(which):
    """(id, answer or (answer, regex)) of all lessons, for parametrisation."""
    return [
        pytest.param(f"{lesson}.{name}", answer, id=f"{lesson}.{name}-{n}")
        for lesson in LESSONS
        for name, answers in planted(lesson)[which].items()
        for n, answer in enumerate(answers)
    ]


@pytest.mark.parametrize("lesson", LESSONS)
def test_every_exercise_has_enough_planted_answers(lesson):
    wrong, right = planted(lesson)
    names = set(checking.load(lesson))
    assert set(wrong) == names, "WRONG must have every exercise of the lesson, and no other"
    assert set(right) == names, "RIGHT must have every exercise of the lesson, and no other"
    for name in names:
        assert len(wrong[name]) >= 3, f"{name}: at least three wrong answers"
        assert len(right[name]) >= 2, f"{name}: at least two right answers"


@pytest.mark.parametrize("lesson", LESSONS)
def test_every_exercise_has_a_hint_and_likely_mistakes(lesson):
    for name, exercise in checking.load(lesson).items():
        assert exercise.mistakes, f"{name}: no mistake that learners are likely to make"
        assert exercise.hint, f"{name}: no hint for when no mistake matches"


@pytest.mark.parametrize("lesson", LESSONS)
def test_reasons_are_not_empty(lesson):
    for name, answers in planted(lesson)[0].items():
        for _, reason in answers:
            assert reason.strip(".* "), f"{name}: a reason that matches anything"


@pytest.mark.parametrize(("id", "answer"), pairs(0))
def test_wrong_answer_is_rejected_for_the_reason(id, answer):
    wrong, reason = answer
    assert_rejects(id, wrong, reason)


@pytest.mark.parametrize(("id", "answer"), pairs(1))
def test_right_answer_is_accepted(id, answer):
    assert_accepts(id, answer)
