"""A learner's copies: made once, never overwritten, brought up to date with what they wrote kept."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from authoring import start_page, work
from authoring.project import Project
from course_utils import progress

ROOT = Path(__file__).resolve().parents[2]
GRADED = {"nbgrader": {"solution": True, "grade_id": "ex"}}
STUB = "def f(x):\n    raise NotImplementedError"


def lesson(text="old text", stub=STUB, code="print(1)"):
    return new_notebook(cells=[
        new_markdown_cell("# Lesson 04: A lesson", id="title"), new_markdown_cell(text, id="text"),
        new_code_cell(stub, id="ex", metadata=GRADED),
        new_code_cell('check("a.f", f)', id="ex-check"), new_code_cell(code, id="code")])


def sources(notebook):
    return [cell.source for cell in notebook.cells]


def test_what_the_learner_wrote_is_kept_and_the_text_is_new():
    base, own, new = lesson(), lesson(), lesson("new text", STUB.replace("(x)", "(x, y)"), "print(2)")
    own.cells[2].source = "def f(x):\n    return x"
    own.cells.insert(3, new_code_cell("f(3)  # mine", id="mine"))
    merged, beside = work.merge(new, own, base)
    nbformat.validate(merged)
    assert sources(merged) == [new.cells[0].source, "new text", "def f(x):\n    return x", "f(3)  # mine",
                               'check("a.f", f)', "print(2)"]
    assert beside == []


def without_id(cell):
    cell.pop("id")


def as_colab(cell):
    cell.metadata["id"] = cell.pop("id")


@pytest.mark.parametrize("change", [without_id, as_colab])
def test_a_notebook_that_another_program_saved_is_merged_as_well(change):
    own, new = lesson(), lesson("new text")
    own.cells[2].source = "def f(x):\n    return x"
    for cell in own.cells:
        change(cell)
    merged, beside = work.merge(new, own, lesson())
    nbformat.validate(merged)
    assert (sources(merged), beside) == ([*sources(new)[:2], own.cells[2].source, *sources(new)[3:]], [])


def test_an_exercise_that_was_not_begun_gets_the_new_stub():
    merged, _ = work.merge(lesson(stub="def f(x, y):\n    raise NotImplementedError"), lesson(), lesson())
    assert merged.cells[2].source.startswith("def f(x, y)")


def test_outputs_stay_where_the_cell_is_the_same():
    own = lesson()
    own.cells[4].outputs = [new_output("stream", text="1\n")]
    assert work.merge(lesson("new text"), own, lesson())[0].cells[4].outputs == own.cells[4].outputs
    assert work.merge(lesson(code="print(2)"), own, lesson())[0].cells[4].outputs == []


def test_a_cell_that_both_changed_stands_there_twice():
    own = lesson(code="print('mine')")
    own.cells[4].metadata = {"editable": False}
    merged, beside = work.merge(lesson(code="print(2)"), own, lesson())
    nbformat.validate(merged)
    assert beside == ["code"] and sources(merged)[-2:] == ["print(2)", "print('mine')"]
    assert merged.cells[-1].metadata == {} and merged.cells[-1].id != "code"


def test_without_knowing_what_was_copied_the_answers_are_kept_too():
    own = lesson()
    own.cells[2].source = "def f(x):\n    return x"
    assert sources(work.merge(lesson("new text"), own, None)[0])[1:3] == ["new text", own.cells[2].source]


@pytest.fixture
def course(tmp_path):
    """A course whose lessons are generated: pyproject.toml, lessons/ and notebooks/ of ours."""
    root = tmp_path / "course"
    for name in ("lessons", "notebooks"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("drafts", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    return Project(root)


def test_copies_are_made_once_and_never_overwritten(course, tmp_path):
    folder = tmp_path / "work"
    made = work.copy_missing(course, folder)
    assert [path.name for path in made] == [path.name for path in course.notebooks("notebooks")]
    made[0].write_text("what the learner wrote")
    assert work.copy_missing(course, folder) == [] and made[0].read_text() == "what the learner wrote"
    assert work.outdated(course, folder) == []


def test_update_brings_a_newer_lesson_under_its_new_number(course, tmp_path):
    folder = tmp_path / "work"
    work.copy_missing(course, folder)
    given = course.notebooks("notebooks")[-1]
    own = nbformat.read(folder / given.name, as_version=4)
    exercise = next(cell for cell in own.cells if cell.metadata.get("nbgrader", {}).get("solution"))
    exercise.source = "answer = 'mine'"
    nbformat.write(own, folder / given.name)
    new = nbformat.read(given, as_version=4)
    new.cells[1].source += "  # newer"
    given.unlink()
    (course.root / "lessons" / f"{given.stem}.py").rename(course.root / "lessons" / f"98_{given.stem[3:]}.py")
    nbformat.write(new, given.with_name(f"98_{given.stem[3:]}.ipynb"))
    assert work.outdated(course, folder) == [f"98_{given.stem[3:]}"]
    lines = list(work.update(course, folder))
    assert len(lines) == 1 and not (folder / given.name).exists()
    now = nbformat.read(folder / f"98_{given.stem[3:]}.ipynb", as_version=4)
    assert now.cells[1].source.endswith("# newer") and any(c.source == "answer = 'mine'" for c in now.cells)
    (kept,) = (folder / work.BEFORE).rglob("*.ipynb")
    assert nbformat.read(kept, as_version=4) == own
    assert list(work.update(course, folder)) == [] and work.outdated(course, folder) == []


def checked(status, library=False):
    mark = {"course": {"exercise": "a.f", "status": status, "cases": 1, "library": library}}
    return [new_output("display_data", data={"text/plain": status}, metadata=mark)]


@pytest.mark.parametrize("status, library, row", [
    (None, False, "| 0 | 0 | 0 | 1 |"), ("not attempted", False, "| 0 | 0 | 0 | 1 |"),
    ("failed", False, "| 0 | 0 | 1 | 0 |"), ("passed", False, "| 1 | 0 | 0 | 0 |"),
    ("passed", True, "| 0 | 1 | 0 | 0 |")])
def test_progress_is_read_from_what_the_learner_saved(tmp_path, status, library, row):
    notebook = lesson("## The place")
    if status:
        notebook.cells[3].outputs = checked(status, library)
    nbformat.write(notebook, tmp_path / "04_a.ipynb")
    (tmp_path / "05_b.ipynb").write_text(json.dumps({"cells": 3}))  # no notebook
    shutil.copy(tmp_path / "04_a.ipynb", tmp_path / "04_a-Copy1.ipynb")
    table = progress.markdown(tmp_path)
    assert f"| [Lesson 04: A lesson](04_a.ipynb) {row}" in table and "Copy1" not in table
    assert ("All have passed." in table) == (status == "passed")
    assert ("(04_a.ipynb#The-place)" in table) == (status != "passed")


def test_the_start_page_opens_with_the_learners_progress(course, tmp_path):
    folder = tmp_path / "work"
    work.copy_missing(course, folder)
    page = nbformat.read(folder / start_page.NAME, as_version=4)
    (cell,) = [cell for cell in page.cells if cell.id == start_page.PROGRESS]
    first = course.lessons()[0].stem
    assert f"]({first}.ipynb)" in cell.outputs[0].data["text/markdown"]
    page.cells.append(new_markdown_cell("a note of mine", id="note"))
    nbformat.write(page, folder / start_page.NAME)
    work.copy_missing(course, folder)
    assert nbformat.read(folder / start_page.NAME, as_version=4).cells[-1].source == "a note of mine"


REST = '"metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
DAMAGED = ["", "\0\x01", "null", "[" * 100_000, '{"cells": [', f'{{"cells": 5, {REST}',
           f'{{"cells": [{{"cell_type": "code"}}], {REST}']


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_copy_is_named_and_nothing_is_changed(tmp_path, content):
    root, folder = tmp_path / "course", tmp_path / "work"
    (root / "notebooks").mkdir(parents=True)
    for name in ("04_a.ipynb", "05_b.ipynb", start_page.NAME):
        nbformat.write(lesson(), root / "notebooks" / name)
    project = Project(root)
    work.copy_missing(project, folder)
    for name in ("04_a.ipynb", "05_b.ipynb"):
        nbformat.write(lesson("new text"), root / "notebooks" / name)
    (folder / "05_b.ipynb").write_text(content)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert work.copy_missing(project, folder) == []  # the start page is made, without the damaged one
    with pytest.raises(ValueError, match=r"05_b\.ipynb is damaged.*move it") as error:
        list(work.update(project, folder))
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (folder / "05_b.ipynb").write_bytes((folder / "04_a.ipynb").read_bytes())
    (folder / work.GIVEN / "b.ipynb").write_text(content)  # only a note, which is not needed
    assert len(list(work.update(project, folder))) == 2
    (folder / start_page.NAME).write_text(content)
    with pytest.raises(ValueError, match=r"index\.ipynb is damaged.*move it"):
        work.copy_missing(project, folder)
    assert (folder / start_page.NAME).read_text() == content
