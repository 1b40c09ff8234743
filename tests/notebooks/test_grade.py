"""`course grade` on right, wrong and tampered submissions, and the same notebooks in nbgrader itself."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell
from nbgrader.api import Gradebook

from authoring import grade

pytestmark = pytest.mark.slow  # every submission is executed
STUB = "    # About 2 lines.\n    raise NotImplementedError"
HALVED = "    return [value / 2**times for value in values]"


@pytest.fixture
def submit(synced, tmp_path):
    """Write a submission: the learner's (or the solved) notebook, changed by a function of its cells."""

    def write(change=None, kind="notebooks", name="alice"):
        notebook = nbformat.read(synced.root / kind / "90_sample.ipynb", as_version=4)
        if change:
            change(notebook, {cell.id: cell for cell in notebook.cells})
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(notebook, path)
        return path

    return write


def points(graded):
    return {name.removesuffix("-check"): got for name, (got, _) in graded.cells.items()}


def answer(cells, halve=HALVED, double="    return 2 * x"):
    cells["ex-halve"].source = cells["ex-halve"].source.replace(STUB, halve)
    stub = "    # About 1 line.\n    raise NotImplementedError"
    cells["ex-double"].source = cells["ex-double"].source.replace(stub, double)


def test_right_answers_get_all_points_and_stubs_none(synced, submit):
    graded = grade.grade(synced, submit(kind="solutions"))
    assert (graded.points, graded.maximum, graded.notes, graded.error) == (7, 7, [], "")
    graded = grade.grade(synced, submit())
    assert (graded.points, graded.maximum, graded.notes) == (0, 7, [])


def test_each_answer_counts_by_itself(synced, submit):
    def change(notebook, cells):
        answer(cells, halve="    return [value / 2 for value in values]")
        cells["predict-bytes"].source = "prediction = 4000"

    graded = grade.grade(synced, submit(change))
    assert points(graded) == {"predict-bytes": 1, "ex-halve": 0, "ex-counter": 0, "ex-double": 3}
    assert graded.notes == []
    check = next(cell for cell in graded.notebook.cells if cell.id == "ex-halve-check")
    assert "halving once, whatever `times` says" in check.outputs[-1].evalue


def test_tampered_cells_are_put_back_and_reported(synced, submit):
    def change(notebook, cells):
        answer(cells, halve="    return values")
        cells["ex-halve-check"].source = "pass  # trust me"
        cells["ex-double-check"].metadata.nbgrader["points"] = 300
        notebook.cells.remove(cells["predict-bytes-check"])
        notebook.cells.append(cells["ex-double-check"].copy())
        notebook.cells.append(
            new_code_cell("", id="invented", metadata={"nbgrader": {
                "grade": True, "solution": False, "locked": True, "schema_version": 3,
                "grade_id": "bonus", "points": 50, "task": False,
            }})  # fmt: skip
        )
        notebook.cells.remove(cells["ex-counter"])

    graded = grade.grade(synced, submit(change))
    assert points(graded) == {"predict-bytes": 0, "ex-halve": 0, "ex-counter": 0, "ex-double": 3}
    assert graded.maximum == 7
    assert sorted(graded.notes) == [
        "changed check ex-halve-check: put back",
        "duplicated cell ex-double-check: the first one counts",
        "missing answer ex-counter",
        "missing check predict-bytes-check: put back",
        "unknown cell bonus: does not count",
    ]


@pytest.mark.parametrize("kind", ["markdown", "raw"])
def test_an_answer_cell_of_another_type_is_made_a_code_cell_again_as_nbgrader_does(synced, submit, kind):
    def change(notebook, cells):
        answer(cells)
        for name in ("ex-halve", "predict-bytes"):
            cells[name].cell_type = kind
            for field in ("outputs", "execution_count"):
                cells[name].pop(field, None)
        cells["predict-bytes"].source = "prediction = 4000"

    graded = grade.grade(synced, submit(change))
    assert points(graded) == {"predict-bytes": 1, "ex-halve": 2, "ex-counter": 0, "ex-double": 3}
    assert sorted(graded.notes) == [
        f"answer {name} had been turned into {kind}: turned back into code"
        for name in ("ex-halve", "predict-bytes")
    ]


def test_a_file_named_as_it_was_handed_out_needs_its_folder_to_say_whose_it_is():
    alone = grade.page_names([Path("/class/Zoë Å/90_sample.ipynb")], {"90_sample"})
    assert alone == ["Zoë Å_90_sample"]


@pytest.mark.parametrize(
    "trick",
    [
        "import course_utils.exercises\ncourse_utils.checking.check = lambda *a: None",
        "from course_utils import checking\nexercises.PASSED = checking.FAILED = 'failed'",
        "import os\nos.environ.pop('NBGRADER_EXECUTION')",
        "check = print",
    ],
)
def test_a_check_that_is_switched_off_gives_no_points(synced, submit, trick):
    def change(notebook, cells):
        answer(cells, halve="    return values", double="    return x")
        cells["timed"].source = ""
        notebook.cells.insert(5, new_code_cell(trick, id="trick"))

    graded = grade.grade(synced, submit(change))
    assert graded.points == 0, graded.cells


def test_the_librarys_own_function_gets_points_only_when_the_instructor_says_so(synced, submit):
    def change(notebook, cells):
        answer(cells, double="    return x + x")
        cells["ex-halve"].source = "halve = sample_library.halve"
        cells["ex-counter"].source = "class Counter(sample_library.Counter):\n    pass"

    graded = grade.grade(synced, submit(change))
    assert points(graded) == {"predict-bytes": 0, "ex-halve": 0, "ex-counter": 0, "ex-double": 3}
    assert "check ex-halve-check passed with the library's own function: no points" in graded.notes
    graded = grade.grade(synced, submit(change), library_points=True)
    assert points(graded) == {"predict-bytes": 0, "ex-halve": 2, "ex-counter": 1, "ex-double": 3}

    def pays_himself(notebook, cells):
        change(notebook, cells)
        trick = "import os\nos.environ['COURSE_LIBRARY_POINTS'] = '1'"
        notebook.cells.insert(5, new_code_cell(trick, id="trick"))

    assert grade.grade(synced, submit(pays_himself)).points == 3


def test_a_cell_that_never_ends_and_a_kernel_that_dies_cost_only_what_did_not_run(synced, submit):
    def endless(notebook, cells):
        answer(cells)
        notebook.cells.insert(5, new_code_cell("while True: pass", id="endless"))

    graded = grade.grade(synced, submit(endless), timeout=30)
    assert points(graded) == {"predict-bytes": 0, "ex-halve": 2, "ex-counter": 0, "ex-double": 3}

    def deadly(notebook, cells):
        answer(cells)
        place = notebook.cells.index(cells["ex-counter"])
        notebook.cells.insert(place, new_code_cell("import os; os._exit(1)", id="deadly"))

    graded = grade.grade(synced, submit(deadly))
    assert points(graded) == {"predict-bytes": 0, "ex-halve": 2, "ex-counter": 0, "ex-double": 0}
    assert "the kernel stopped" in graded.notes[0]


def test_warnings_of_an_answer_cost_nothing(synced, submit):
    def change(notebook, cells):
        warn = "    import warnings\n    warnings.warn('slow')\n"
        answer(cells, halve=warn + HALVED)

    assert points(grade.grade(synced, submit(change)))["ex-halve"] == 2


def test_the_command_line_writes_table_csv_and_feedback(synced, submit, tmp_path):
    alice, bob = submit(kind="solutions"), submit(name="bob")
    (tmp_path / "carol.ipynb").write_text("not a notebook")
    command = [sys.executable, "-m", "authoring.cli", "--root", str(synced.root), "grade"]
    command += [str(alice), str(bob), str(tmp_path / "carol.ipynb")]
    command += ["--csv", "points.csv", "--feedback", "feedback"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"COLUMNS": "300"}
    )
    assert done.returncode == 1  # carol's could not be graded
    assert "7/7" in done.stdout and "0/7" in done.stdout and "not graded" in done.stdout
    with open(tmp_path / "points.csv") as file:
        rows = list(csv.DictReader(file))
    assert sum(float(row["points"]) for row in rows if "alice" in row["submission"]) == 7
    assert "carol" in rows[-1]["submission"] and "not graded" in rows[-1]["notes"]
    page = (tmp_path / "feedback/alice.html").read_text()
    assert "7 of 7 points" in page and "passed (3 cases)" in page


def test_nbgrader_itself_releases_and_grades_the_solutions(synced, tmp_path):
    course = tmp_path / "nbgrader"
    source = course / "source/lesson/90_sample.ipynb"
    source.parent.mkdir(parents=True)
    shutil.copy(synced.root / "solutions/90_sample.ipynb", source)
    (course / "nbgrader_config.py").write_text("c = get_config()\nc.CourseDirectory.course_id = 'sample'\n")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # nbgrader calls alembic
    environment = os.environ | {"PYTHONPATH": str(synced.root), "PATH": path}

    def nbgrader(*arguments):
        command = [sys.executable, "-m", "nbgrader", *arguments]
        done = subprocess.run(command, cwd=course, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr

    nbgrader("generate_assignment", "lesson", "--create")
    release = nbformat.read(course / "release/lesson/90_sample.ipynb", as_version=4)
    assert not any("SOLUTION" in cell.source for cell in release.cells)
    for student, kind in (("alice", "solutions"), ("bob", "notebooks")):
        submitted = course / "submitted" / student / "lesson/90_sample.ipynb"
        submitted.parent.mkdir(parents=True)
        solved = nbformat.read(synced.root / kind / "90_sample.ipynb", as_version=4)
        answers = {cell.id: cell.source for cell in solved.cells}
        for cell in (copy := nbformat.from_dict(release)).cells:
            if cell.metadata.get("nbgrader", {}).get("solution"):
                cell.source = answers[cell.id]
        nbformat.write(copy, submitted)
    nbgrader("autograde", "lesson", "--create")
    with Gradebook(f"sqlite:///{course}/gradebook.db") as gradebook:
        scores = {s.student.id: (s.score, s.max_score) for s in gradebook.assignment_submissions("lesson")}
    assert scores == {"alice": (7, 7), "bob": (0, 7)}


def test_nbgrader_s_validator_runs_the_learner_s_notebook(synced):
    from nbgrader.validator import Validator

    def found(kind):
        return Validator().validate(str(synced.root / kind / "90_sample.ipynb"))

    assert found("solutions") == {}
    failed = found("notebooks")["failed"]
    assert len(failed) == 4 and "AssertionError" in failed[0]["error"]
    path = synced.root / "notebooks/90_sample.ipynb"
    path.write_text(path.read_text().replace('check(\\"sample.halve\\", halve)', 'print(\\"passed\\")'))
    (changed,) = found("notebooks")["changed"]
    assert 'print("passed")' in changed["source"]
