"""The check of every exercise rejects each small change of the reference that matters.

A failure prints the survivors as entries for tests/mutants/KEY.toml. Add a case to
course_utils/exercises/KEY.py, or the entry with a reason why the change is as right as the reference.
`course mutants KEY` does the same as this test.
"""

import pytest

from authoring import mutants
from authoring.project import Project, key_of

PROJECT = Project()


@pytest.mark.parametrize("key", [key_of(path) for path in PROJECT.lessons()])
def test_every_survivor_is_explained(key):
    found = [mutants.report(PROJECT, answer) for answer in mutants.select(PROJECT, [key])]
    assert all(report.mutants for report in found), "an exercise without a mutant"
    problems = [text for report in found for text in mutants.problems(report)]
    assert not problems, "\n\n".join(problems)
