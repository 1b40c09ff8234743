"""An instructor's seed draws cases that no learner has seen, for every exercise of every lesson."""

import pkgutil

import numpy as np
import pytest
import torch

from course_utils import checking, exercises
from course_utils.checking.cases import private_cases
from course_utils.checking.parts import parts
from course_utils.checking.running import run_reference, settled
from course_utils.checking.spec import Exercise

LESSONS = sorted(module.name for module in pkgutil.iter_modules(exercises.__path__))


def content(case):
    """The values of a case, as something that can be compared."""
    found = []
    for place, part in parts((case.args, case.kwargs)):
        if isinstance(part, torch.Tensor | np.ndarray):
            found.append((place, part.tolist()))
        elif isinstance(part, int | float | str | None):
            found.append((place, part))
    return repr(found)


def drawn(exercise, seed):
    with settled():
        return private_cases(exercise, seed, f"x.{exercise.name}")


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_seed_draws_cases_of_other_values(lesson):
    for name, exercise in checking.load(lesson).items():
        if not isinstance(exercise, Exercise):
            continue
        with settled():
            public = {content(case) for case in exercise.cases()}
        cases = drawn(exercise, "one")
        new = [case for case in cases if content(case) not in public]
        assert len(new) >= 2, f"{name} needs a `draw`"
        assert all(case.private for case in cases)
        assert [content(case) for case in drawn(exercise, "one")] == [content(case) for case in cases]
        assert [content(case) for case in drawn(exercise, "two")] != [content(case) for case in cases]
        for case in new:
            run_reference(exercise, case, name)  # the reference does what the case says


def test_cases_of_learners_stay_as_they_are_after_others_were_drawn():
    exercise = checking.find("gptq.column_update")
    with settled():
        before = [content(case) for case in exercise.cases()]
        drawn(exercise, "one")
        assert [content(case) for case in exercise.cases()] == before


def test_an_answer_that_knows_the_public_cases_fails_only_with_a_seed_and_sees_no_values():
    def layer_map(teacher, student):
        known = {(6, 3): [1, 3, 5], (6, 2): [2, 5], (12, 4): [2, 5, 8, 11], (5, 2): [1, 4],
                 (7, 7): list(range(7)), (8, 1): [7], (1, 1): [0],
                 (24, 7): [2, 5, 9, 12, 16, 19, 23]}
        if student < 1 or student > teacher:
            raise ValueError
        return known.get((teacher, student), [])

    assert checking.judge("distillation.layer_map", layer_map).status == "passed"
    found = checking.judge("distillation.layer_map", layer_map, seed="one")
    assert found.status == "failed" and "expected" not in found.message and "came" not in found.message
    assert "not in the notebook" in found.message and 0 < found.right < found.cases
