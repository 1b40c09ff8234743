"""Honest work gets the same marks in self-study, by `course grade` and in nbgrader: all, half, or none."""

import os

import nbformat
import pytest
from nbgrader.preprocessors import Execute
from nbgrader.utils import determine_grade, is_grade

from authoring import grade
from authoring.grading.submissions import Submission
from authoring.grading.trees import needed
from authoring.project import key_of
from authoring.run import exercise_statuses
from course_utils.checking import PASSED
from tests.notebooks.test_lessons import COMMIT, LESSONS, PROJECT, in_turn, read

pytestmark = pytest.mark.slow  # it starts a kernel and the grader
TURN = LESSONS if os.environ.get("COURSE_EVERY_LESSON") else in_turn(LESSONS, COMMIT, 1)


@pytest.fixture(scope="module")
def grader():
    with grade.Grader(PROJECT) as found:
        yield found


def handed_in(lesson, tasks):
    """The learner's notebook with the answers to some tasks."""
    notebook, solved = (read(kind, lesson) for kind in ("notebooks", "solutions"))
    answers = {cell.id: cell.source for cell in solved.cells}
    for cell in notebook.cells:
        if cell.id in {task.cell for task in tasks}:
            cell.source = answers[cell.id]
    return notebook


def in_class(notebook, tasks, monkeypatch):
    """The notebook's answers and checks executed in a kernel, as nbgrader does it.

    Of the lesson's other cells run imports and definitions alone: the rest measures, for a minute or two.
    """
    kept = {name for task in tasks for name in (task.cell, f"{task.cell}-check")}
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.id not in kept:
            cell.source = "\n".join(needed(cell.source))
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source]
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    step = Execute(timeout=300)
    return step.preprocess(notebook, {"metadata": {"path": str(PROJECT.root / "notebooks")}})[0]


def marks(grader, lesson, tasks, notebook, monkeypatch):
    """Points of each task: (by `course grade`, by the statuses that the notebook shows, by nbgrader)."""
    text = nbformat.writes(notebook)
    graded = grader.grade(Submission(PROJECT.root / f"{lesson}.ipynb", text), key_of(lesson))
    assert (graded.error, graded.notes) == ("", [])
    print(*(answer.message for answer in graded.answers.values()), sep="\n")  # seen where the test fails
    executed = in_class(notebook, tasks, monkeypatch)
    shown = exercise_statuses(executed)
    checks = {cell.id: determine_grade(cell)[0] for cell in executed.cells if is_grade(cell)}
    return ({task.cell: graded.answers[task.cell].points for task in tasks},
            {task.cell: task.points * (shown[task.id] == PASSED) for task in tasks},
            {task.cell: checks[f"{task.cell}-check"] for task in tasks})


@pytest.mark.parametrize("lesson", TURN)
def test_honest_work_gets_the_same_marks_three_ways(grader, lesson, monkeypatch):
    tasks = grader.assignment(key_of(lesson)).tasks
    for chosen in (tasks, tasks[::2], []):
        wanted = {task.cell: task.points * (task in chosen) for task in tasks}
        by_course, by_notebook, by_nbgrader = marks(grader, lesson, tasks, handed_in(lesson, chosen),
                                                    monkeypatch)
        assert by_course == by_notebook == by_nbgrader == wanted
