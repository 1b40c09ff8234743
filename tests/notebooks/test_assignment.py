"""`course assignment build`: nbgrader's commands on a solved, a half solved and an untouched submission."""

import copy
import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbgrader.api import Gradebook

from authoring import sync
from authoring.grading.assignment import build
from authoring.project import Project
from tests.notebooks.conftest import SAMPLE

ROOT = Path(__file__).parents[2]
HALF = ("predict-bytes", "ex-double")


@pytest.fixture
def course(tmp_path):
    root = tmp_path / "course"
    shutil.copytree(SAMPLE, root, ignore=shutil.ignore_patterns("__pycache__"))
    sync.sync(Project(root), run=False, report=lambda line: None)
    return Project(root)


def nbgrader(course, folder, *arguments):
    modules = os.pathsep.join([str(ROOT), str(course.root), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, "-m", "nbgrader", *arguments], cwd=folder, text=True,
                          capture_output=True, env=os.environ | {"PYTHONPATH": modules})
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow  # nbgrader starts seven times
@pytest.mark.parametrize("answers_only", [True, False], ids=["answers", "notebook"])
def test_nbgrader_takes_the_folder_as_it_is(course, tmp_path, answers_only):
    folder = tmp_path / "class"
    build(course, ["sample"], folder, answers_only=answers_only)
    nbgrader(course, folder, "generate_assignment", "sample")
    path = folder / "release/sample/90_sample.ipynb"
    release = nbformat.read(path, as_version=4)
    given = {cell.id: cell.source for cell in nbformat.read(
        course.notebook("notebooks", course.lesson("sample")), as_version=4).cells}
    assert "Before you hand in" in release.cells[0].source
    assert {cell.id: cell.source for cell in release.cells[1:]} == given  # with "About 2 lines."
    solved = {cell.id: cell.source for cell in nbformat.read(
        course.notebook("solutions", course.lesson("sample")), as_version=4).cells}
    for student, wanted in (("alice", solved), ("bob", HALF), ("carol", ())):
        handed_in = copy.deepcopy(release)
        for cell in handed_in.cells:
            mark = cell.metadata.get("nbgrader", {})
            if mark.get("solution") and cell.id in wanted:
                cell.source = solved[cell.id]
        target = folder / "submitted" / student / "sample" / path.name
        target.parent.mkdir(parents=True)
        nbformat.write(handed_in, target)
    nbgrader(course, folder, "autograde", "sample")
    with Gradebook(f"sqlite:///{folder}/gradebook.db") as gradebook:
        scores = {s.student.id: (s.score, s.max_score) for s in gradebook.assignment_submissions("sample")}
    assert scores == {"alice": (7, 7), "bob": (4, 7), "carol": (0, 7)}
    nbgrader(course, folder, "generate_feedback", "sample")
    page = (folder / "feedback/bob/sample/90_sample.html").read_text()
    assert "not attempted" in page and "sample.double: passed" in page
    nbgrader(course, folder, "export")
    with open(folder / "grades.csv") as file:
        assert {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)} == {
            "alice": 7, "bob": 4, "carol": 0}


def test_what_nbgrader_cannot_do_is_refused_before_anything_is_written(course, tmp_path):
    with pytest.raises(ValueError, match="--answers-only"):
        build(course, ["sample"], tmp_path / "class", answers_only=False, seed="x")
    with pytest.raises(ValueError, match="no lesson 'nothing'"):
        build(course, ["nothing"], tmp_path / "class", answers_only=True)
    assert not (tmp_path / "class").exists()
