"""`course sync` and `course sync --check` on a small course that really runs."""

import json
import os
import re
import subprocess
import sys

import nbformat
import pytest

from authoring import execute, generate, sync
from authoring.project import LessonError
from course_utils import records

LESSON, NOTEBOOK, SOLUTION = "lessons/90_sample.py", "notebooks/90_sample.ipynb", "solutions/90_sample.ipynb"


def edit(project, name, old, new):
    path = project.root / name
    text = path.read_text()
    assert old in text, f"{old!r} not in {name}"
    path.write_text(text.replace(old, new, 1))


def cells(project, name):
    return {cell.id: cell for cell in nbformat.read(project.root / name, as_version=4).cells}


@pytest.fixture
def no_execution(monkeypatch):
    monkeypatch.setattr(execute, "execute", lambda *a, **k: pytest.fail("nothing was to be executed"))


def test_everything_in_step_after_sync(synced, no_execution):
    assert sync.check(synced) == []
    assert sync.sync(synced, report=lambda line: None) == []


def test_another_tolerance_executes_nothing(synced, no_execution):
    edit(synced, LESSON, "tolerance=0.02", "tolerance=0.05")
    sync.sync(synced, report=lambda line: None)
    measured = cells(synced, SOLUTION)["measured"]
    assert measured.source.startswith("# compared within 5 %") and measured.outputs
    assert sync.check(synced) == []


def test_a_record_made_again_is_noticed_in_the_notebook_that_shows_it(synced):
    folder = synced.root / "recorded"
    records.save("sample", {"rows": []}, folder=folder)
    edit(synced, LESSON, "import ", f"from pathlib import Path; from course_utils import records\n"
         f"print(records.provenance_line(records.load('sample', Path({str(folder)!r}))))\nimport ")
    sync.sync(synced, report=lambda line: None)
    assert sync.check(synced) == []
    record = json.loads((folder / "sample.json").read_text())
    record["provenance"]["commit"] = "0123abc"
    (folder / "sample.json").write_text(json.dumps(record))
    found = sync.check(synced)
    assert len(found) == 2 and all("shows a record that was made again since" in line for line in found)
    sync.sync(synced, report=lambda line: None)
    assert sync.check(synced) == []


def test_outputs_are_kept_and_clean(synced):
    for name in (NOTEBOOK, SOLUTION):
        notebook = nbformat.read(synced.root / name, as_version=4)
        text = (synced.root / name).read_text()
        assert "papermill" not in notebook.metadata and '"stderr"' not in text and '"execution":' not in text
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        assert all("papermill" not in cell.metadata for cell in notebook.cells)
    assert cells(synced, SOLUTION)["measured"].outputs[0].text == "mean 1.250 over  2 values\n"
    assert "passed (3 cases)" in cells(synced, SOLUTION)["ex-halve-check"].outputs[0].data["text/plain"]
    assert "not attempted" in cells(synced, NOTEBOOK)["ex-halve-check"].outputs[0].data["text/plain"]


def test_minutes_and_memory_are_in_header_and_readme(synced):
    cost = json.loads((synced.root / "recorded/lesson_costs.json").read_text())["sample"]
    assert 0 < cost["minutes"] < 10 and 0.05 < cost["peak_gb"] < 5
    assert {"cpu", "cores", "torch", "date"} <= set(cost)
    for name in (NOTEBOOK, SOLUTION):
        assert f"about {cost['minutes']:.1f} minutes" in cells(synced, name)["title"].source
    readme = (synced.root / "README.md").read_text()
    row = (re.escape("| [90: A sample](notebooks/90_sample.ipynb) | ") + r"(\d+ h )?\d+ min"
           + re.escape(f" | {cost['minutes']:.1f} | - | {cost['peak_gb']:.1f} GB | - | You measure a sample"))
    assert re.search(row, readme)
    assert readme.startswith("# Sample course") and readme.endswith("After the table.\n")


def test_recorded_minutes_on_one_core_are_in_the_readme(synced):
    rows = [{"lesson": "sample", "minutes": 3.14}]
    records.save("bench_one_core", {"rows": rows}, synced.root / "recorded")
    assert any("README.md: the lesson table" in line for line in sync.check(synced))
    sync.sync(synced, report=lambda line: None)
    minutes = json.loads((synced.root / "recorded/lesson_costs.json").read_text())["sample"]["minutes"]
    assert f" | {minutes:.1f} | 3.1 | " in (synced.root / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "old", "new", "finding"),
    [
        (SOLUTION, "value * factor", "value / factor", f"{SOLUTION}, cell 'ex-halve': its source"),
        (NOTEBOOK, "That was all.", "That was not all.", f"{NOTEBOOK}, cell 'recap': its source"),
        (NOTEBOOK, "times.\\n", "times. \\n", "cell 'ex-halve': its source"),
        (NOTEBOOK, '"points": 2', '"points": 20', "cell 'ex-halve-check': its metadata"),
        (NOTEBOOK, '"tolerance": 0.02', '"tolerance": 0.2', "cell 'measured': its metadata"),
        (NOTEBOOK, '"id": "timed"', '"id": "timid"', "cell 'timed': missing"),
        (SOLUTION, "mean 1.250", "mean 1.251", "cell 'measured': outputs changed by hand"),
        (SOLUTION, '"execution_count": 3', '"execution_count": 4', "formatting was changed by hand"),
        (SOLUTION, '"name": "python3"', '"name": "python4"', "formatting was changed by hand"),
        (SOLUTION, '\n "nbformat": 4', '\n  "nbformat": 4', "formatting was changed by hand"),
        (SOLUTION, "{", "", "is no valid notebook"),
        (LESSON, "mean {sum", "the mean {sum", "cell 'measured': its source"),
        (LESSON, "That was all.", "That was nearly all.", "cell 'recap': its source"),
        (LESSON, 'name="recap"', 'name="summary"', "cell 'summary': missing"),
        (LESSON, "points=3", "points=4", "cell 'ex-double-check': its metadata"),
        ("sample_library.py", "0.5**times", "2**-times", "cell 'ex-halve': its source"),
        ("sample_library.py", "Halve each", "Halves each", "notebooks/90_sample.ipynb, cell 'ex-halve'"),
        ("recorded/lesson_costs.json", '"minutes": ', '"minutes": 9', "cell 'title': its source"),
        ("README.md", "| [90: A sample]", "| [90: The sample]", "README.md: the lesson table"),
        ("pyproject.toml", "v1.2", "v1.3", "cell 'title': its source"),
    ],
)
def test_whatever_is_out_of_step_is_named(synced, name, old, new, finding):
    edit(synced, name, old, new)
    problems = sync.check(synced)
    assert any(finding in problem for problem in problems), problems


def test_moved_added_duplicated_and_removed_cells_are_named(synced):
    def change(how):
        path = synced.root / NOTEBOOK
        kept = path.read_text()
        notebook = nbformat.read(path, as_version=4)
        how(notebook.cells)
        path.write_text(json.dumps(notebook) + "\n")  # nbformat.writes would mend what is wrong with it
        (problem,) = sync.check(synced)
        path.write_text(kept)
        return problem

    assert "not in the lesson's order" in change(lambda cells: cells.insert(5, cells.pop(-1)))
    extra = nbformat.v4.new_markdown_cell("mine", id="mine")
    assert "cell 'mine': not in the lesson" in change(lambda cells: cells.append(extra))
    assert "cell 'recap': missing" in change(lambda cells: cells.pop())
    assert "cell 'recap': twice" in change(lambda cells: cells.append(cells[-1]))


def test_missing_orphaned_and_unexecuted_notebooks_are_named(synced):
    (synced.root / "notebooks/91_gone.ipynb").write_text("{}")
    (synced.root / SOLUTION).unlink()
    problems = sync.check(synced)
    assert any(p.startswith("solutions/90_sample.ipynb: missing") for p in problems)
    assert any(p.startswith("notebooks/91_gone.ipynb: no lesson") for p in problems)
    sync.sync(synced, run=False, report=lambda line: None)
    assert "solutions/90_sample.ipynb: never executed. Run `course sync`." in sync.check(synced)


def test_prose_changes_keep_the_outputs(synced, no_execution):
    edit(synced, LESSON, "That was all.", "That was that.")
    written = sync.sync(synced, report=lambda line: None)
    assert {path.name for path in written} == {"90_sample.ipynb"} and len(written) == 2
    assert sync.check(synced) == []
    assert cells(synced, SOLUTION)["measured"].outputs[0].text == "mean 1.250 over  2 values\n"


@pytest.mark.slow
def test_code_changes_make_the_outputs_stale(synced):
    edit(synced, LESSON, "mean {", "average {")
    sync.sync(synced, run=False, report=lambda line: None)
    assert cells(synced, SOLUTION)["measured"].outputs == []
    assert any("never executed" in problem for problem in sync.check(synced))
    sync.sync(synced, report=lambda line: None)
    assert cells(synced, SOLUTION)["measured"].outputs[0].text == "average 1.250 over  2 values\n"
    assert sync.check(synced) == []


@pytest.mark.slow
def test_a_failing_cell_names_lesson_and_cell_and_writes_nothing(synced):
    before = (synced.root / SOLUTION).read_bytes()
    edit(synced, LESSON, "{time.time()}", "{1 / 0}")
    with pytest.raises(LessonError) as caught:
        sync.sync(synced, report=lambda line: None)
    text = str(caught.value)
    assert "lessons/90_sample.py: solutions: cell 'timed': ZeroDivisionError: division by zero" in text
    assert "Traceback" in text
    assert (synced.root / SOLUTION).read_bytes() == before
    assert not list(synced.root.glob("**/*.tmp"))


def test_a_notebook_that_is_too_large_is_refused(synced, monkeypatch):
    notebook = nbformat.read(synced.root / SOLUTION, as_version=4)
    notebook.cells[-1].source = "x" * generate.SIZE_LIMIT
    with pytest.raises(LessonError, match="90_sample.ipynb, cell 'recap': 1.5. MB, over the limit of 1.5 MB"):
        sync.write_notebook(synced, synced.root / SOLUTION, notebook)
    assert sync.check(synced) == []  # the old file still stands
    monkeypatch.setattr(generate, "SIZE_LIMIT", 5000)
    assert all("over the limit" in problem for problem in sync.check(synced))


def test_outputs_are_normalised():
    def stream(text, name="stdout"):
        return {"output_type": "stream", "name": name, "text": text}

    def result(count):
        data = {"text/plain": "1"}
        return {"output_type": "execute_result", "data": data, "metadata": {}, "execution_count": count}

    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "abc"}, "text/plain": "HBox()"}
    outputs = sync.normalise(
        [
            stream("a\n"),
            stream("warning\n", "stderr"),
            stream("b\n"),
            {"output_type": "display_data", "data": widget, "metadata": {}},
            result(70),
        ],
        7,
    )
    assert outputs == [stream("a\nb\n"), result(7)]


def course(project, *arguments):
    command = [sys.executable, "-m", "authoring.cli", "--root", str(project.root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})


@pytest.mark.slow
def test_the_command_line(synced):
    good = course(synced, "sync", "--check")
    assert good.returncode == 0 and "in step" in good.stdout
    edit(synced, NOTEBOOK, "That was all.", "That was mine.")
    bad = course(synced, "sync", "90", "--check")
    assert bad.returncode == 1 and "notebooks/90_sample.ipynb, cell 'recap'" in bad.stdout
    unknown = course(synced, "sync", "17")
    assert unknown.returncode == 1 and unknown.stderr == "error: no lesson '17': there are 90_sample.\n"


def test_help_does_not_load_torch():
    script = "import sys, authoring.cli; sys.exit('torch' in sys.modules or 'nbformat' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_the_readme_shows_the_picture_of_the_cell_that_pyproject_names(synced):
    cell = next(id for id, c in cells(synced, SOLUTION).items()
                if any("image/png" in o.get("data", {}) for o in c.get("outputs", [])))
    edit(synced, "README.md", "<!-- lessons:begin -->",
         "<!-- picture:begin -->\n<!-- picture:end -->\n<!-- lessons:begin -->")
    edit(synced, "pyproject.toml", "[tool.course]", f'[tool.course]\npicture = "sample#{cell}"')
    project = type(synced)(synced.root)  # settings are read once
    assert any("picture" in problem for problem in sync.check(project))
    sync.sync(project, run=False, report=lambda line: None)
    png, alt = sync.picture(project)
    assert project.picture_file.read_bytes() == png and png.startswith(b"\x89PNG")
    assert f"![{alt}](docs/picture.png)" in (synced.root / "README.md").read_text()
    assert sync.check(project) == []


def move(project, number):
    os.rename(project.root / LESSON, project.root / f"lessons/{number}_sample.py")
    return type(project)(project.root)  # settings and lessons are read anew


def test_a_lesson_that_moves_keeps_everything_and_executes_nothing(synced, no_execution):
    """The number is only the place: no other edit, no other output, every link right again."""
    edit(synced, "README.md", "After the table.", "After [the table](notebooks/90_sample.ipynb).")
    outputs = {cell.id: cell.get("outputs") for cell in cells(synced, SOLUTION).values()}
    project = move(synced, "12")
    assert sync.check(project) != []
    said = []
    sync.sync(project, report=said.append)
    assert sync.check(project) == []
    assert "moved solutions/90_sample.ipynb to 12_sample.ipynb" in said
    for kind in ("notebooks", "solutions"):
        assert [path.name for path in (project.root / kind).glob("*.ipynb")] == ["12_sample.ipynb"]
    moved = cells(project, "solutions/12_sample.ipynb")
    assert {id: cell.get("outputs") for id, cell in moved.items()} == outputs
    assert moved["title"].source.startswith("# Lesson 12: A sample")
    assert "solutions/12_sample.ipynb" in moved["title"].source and "90_sample" not in moved["title"].source
    readme = (project.root / "README.md").read_text()
    assert "[12: A sample](notebooks/12_sample.ipynb)" in readme
    assert "After [the table](notebooks/12_sample.ipynb)." in readme


def second_lesson(project, number="91", key="other"):
    text = (project.root / LESSON).read_text().replace("# # A sample", "# # Another")
    text = text.replace("sample.bytes", f"{key}.bytes").replace('MODULES["sample"]', f'MODULES["{key}"]')
    (project.root / f"lessons/{number}_{key}.py").write_text(text)


PARTS = '[tool.course]\nparts = [{{title = "First", lessons = [{}]}}, {{title = "Then", lessons = [{}]}}]'


def parts(project, first, then):
    edit(project, "pyproject.toml", "[tool.course]", PARTS.format(first, then))
    return type(project)(project.root)


def test_links_and_parts_follow_the_lessons(unsynced):
    second_lesson(unsynced)
    edit(unsynced, LESSON, "A third paragraph.", "Before {lesson:other}. {Lesson:other} is next.")
    project = parts(unsynced, '"sample"', '"other"')
    sync.sync(project, run=False, report=lambda line: None)
    title = cells(project, NOTEBOOK)["title"].source
    assert "Before [lesson 91](91_other.ipynb). [Lesson 91](91_other.ipynb) is next." in title
    assert "Part 1 of 2, First: lesson 1 of 1. After it: [Another](91_other.ipynb)." in title
    other = cells(project, "notebooks/91_other.ipynb")["title"].source
    assert "Part 2 of 2, Then: lesson 1 of 1. Before it: [A sample](90_sample.ipynb)." in other
    readme = (project.root / "README.md").read_text()
    first, sample, then = map(readme.index, ("| **Part 1: First** |", "90: A sample", "**Part 2: Then**"))
    assert first < sample < then


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        ('"sample", "gone"', '"other"', "part 'First' names 'gone', and there is no such lesson"),
        ('"sample"', "", "lesson 'other' must be in one part, is in 0"),
        ('"sample", "other"', '"other"', "lesson 'other' must be in one part, is in 2"),
        ('"other"', '"sample"', "lesson 'other' stands behind lessons of a later part"),
    ],
)
def test_parts_that_do_not_fit_the_lessons_are_refused(unsynced, first, then, message):
    second_lesson(unsynced)
    project = parts(unsynced, first, then)
    with pytest.raises(LessonError, match=message):
        sync.sync(project, run=False, report=lambda line: None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("A third paragraph.", "As in lesson 07.", "cell 'title': 'lesson 07' names a lesson by its number"),
        ("A third paragraph.", "As in Lessons\n# 02 to 05.", "cell 'title': 'Lessons 02' names a lesson"),
        ('print(f"now', 'print(f"lesson 7, now', "cell 'timed': 'lesson 7' names .* works in prose only"),
        ("A third paragraph.", "See {lesson:smaple}.", "cell 'title': no lesson 'smaple'; near it: sample"),
    ],
)
def test_a_number_in_prose_and_an_unknown_lesson_are_refused(synced, old, new, message):
    edit(synced, LESSON, old, new)
    (problem,) = sync.check(synced, ["sample"])
    assert re.search(message, problem), problem


def test_numbers_in_the_library_and_on_pages_are_named(synced):
    (synced.root / "course_utils").mkdir()
    (synced.root / "course_utils/new.py").write_text('"""One.\n\nAs in lesson 04."""\n')
    edit(synced, "README.md", "After the table.", "After lesson\n05.")
    problems = sync.check(synced)
    assert any(p.startswith("course_utils/new.py, line 3: 'lesson 04' names a lesson") for p in problems)
    assert any(p.startswith("README.md, line ") and "'lesson 05'" in p for p in problems)


def test_two_lessons_of_one_key_are_refused(synced):
    second_lesson(synced, "92", "sample")
    with pytest.raises(LessonError, match="two lessons are called 'sample'"):
        sync.check(synced)


def test_docstrings_and_comments_execute_nothing(synced, no_execution):
    edit(synced, "sample_library.py", "Halve each", "Halves each")
    edit(synced, "sample_library.py", "# Shifting would", "# Moving bits would")
    sync.sync(synced, report=lambda line: None)
    assert "Halves each" in cells(synced, NOTEBOOK)["ex-halve"].source
    assert cells(synced, SOLUTION)["measured"].outputs and sync.check(synced) == []
