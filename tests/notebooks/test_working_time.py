"""The estimate of a learner's time: counted by hand on a small notebook, and shown where people look."""

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from authoring import start_page, sync, working_time
from authoring.project import Project
from course_utils.errors import CourseError


def solution(source):
    return new_code_cell(source, metadata={"nbgrader": {"solution": True}})


def notebook():
    return new_notebook(cells=[
        new_markdown_cell("word " * 398 + "[two words](https://a.example/many-many)"),  # 400 words: 2 minutes
        new_code_cell("x = 1\n\n" * 30),  # 30 lines: 2 minutes
        solution("def f():\n    # About 2 lines.\n    raise NotImplementedError"),  # 6 minutes
        new_code_cell("check('k.f', f)\n" * 90, metadata={"nbgrader": {"solution": False}}),
        solution("# In MB.\nprediction = None"),  # 3 minutes
    ])


def test_an_estimate_counted_by_hand():
    made = notebook()
    assert working_time.minutes(made) == 15  # 2 + 2 + 6 + 3 = 13
    made.cells.append(solution("class A:\n    def f(self):\n        # About 1 line.\n        pass"))
    assert working_time.minutes(made) == 20  # 16
    for cell in made.cells:  # as a file has it
        cell["source"] = cell["source"].splitlines(keepends=True)
    assert working_time.minutes(made) == 20
    assert working_time.minutes(new_notebook()) == 0


@pytest.mark.parametrize("total, said", [(0, "0 min"), (55, "55 min"), (60, "1 h"), (125, "2 h 5 min")])
def test_minutes_as_people_say_them(total, said):
    assert working_time.readable(total) == said


def test_every_table_of_lessons_has_it(unsynced):
    lessons = sync.generate.read_lesson(unsynced, unsynced.lessons()[0])
    assert " | - | " in sync.lesson_table(unsynced, [lessons], {})  # nothing generated yet
    project = Project()
    page = "\n".join(cell.source for cell in start_page.make(project, *_lessons(project)).cells)
    readme = (project.root / "README.md").read_text(encoding="utf-8")
    for path in project.lessons():
        took = working_time.of(project, path)
        for text in (page, readme):
            (row,) = [line for line in text.splitlines() if f"{path.stem}.ipynb) | " in line]
            assert f" | {took} | " in row
    assert working_time.sentence(project) in readme and working_time.sentence(project) in page


def _lessons(project):
    return [sync.generate.read_title(project, path) for path in project.lessons()], sync.read_costs(project)


@pytest.mark.parametrize("content", [
    "", "null", "[" * 100_000, "{}", '{"cells": [{}]}', '{"cells": 5}', "\0"], ids=range(7))
def test_a_damaged_notebook_or_record_of_minutes_is_named(tmp_path, content):
    for name in ("lessons/04_a.py", "notebooks/04_a.ipynb", "recorded/lesson_costs.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
    project = Project(tmp_path)
    with pytest.raises(CourseError, match=r"04_a\.ipynb is damaged \(.*course sync --no-run") as error:
        working_time.sentence(project)
    assert "\n" not in str(error.value)
    if content[:1] != "{":
        with pytest.raises(CourseError, match=r"lesson_costs\.json is damaged \(.*git checkout"):
            sync.read_costs(project)
