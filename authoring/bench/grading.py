"""Thirty submissions of one lesson, a third each solved, half solved and untouched: what does grading take?

The whole notebook, as nbgrader runs it, is timed on one solved submission: each of the others takes as long.
"""

import contextlib
import copy
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import nbformat

from authoring import grade
from authoring.execute import execute
from authoring.grading.submissions import Submission, collect
from authoring.project import Project

TITLE = "Grading 30 submissions of lesson gptq: whole notebooks or answers alone"
RATIO_OF = "seconds each"
LESSON, STUDENTS = "gptq", 30


def bench() -> list[dict]:
    """One row for each way."""
    project = Project()
    with tempfile.TemporaryDirectory() as folder:
        submissions = hand_in(project, Path(folder))
        (solved,) = project.notebooks("solutions", [LESSON])
        start = time.perf_counter()
        execute(solved, solved.parent)
        rows = [_row("the whole notebook", 1, time.perf_counter() - start)]
        ways = {"answers alone, one at a time": None} | ({"answers alone, dask on this machine": ""}
                                                        if find_spec("distributed") else {})
        for way, dask in ways.items():
            start = time.perf_counter()
            with contextlib.closing(grade.grade_all(project, submissions, lesson=LESSON, dask=dask)) as work:
                points = sorted(graded.points for graded in work)
            rows.append(_row(way, len(submissions), time.perf_counter() - start)
                        | {"points of the best": points[-1], "points of the last": points[0]})
    return rows


def _row(way: str, count: int, seconds: float) -> dict:
    return {"way": way, "submissions": count, "seconds": seconds, "seconds each": seconds / count,
            "points of the best": None, "points of the last": None}


def hand_in(project: Project, folder: Path) -> list[Submission]:
    """Write synthetic submissions: every third one solved, half solved, untouched.

    Args:
        project: the course.
        folder: for them.

    Returns:
        The submissions.
    """
    stubs, answers = (nbformat.read(project.notebooks(kind, [LESSON])[0], as_version=4)
                      for kind in ("notebooks", "solutions"))
    solved = {cell.id: cell.source for cell in answers.cells}
    exercises = [cell.id for cell in stubs.cells if cell.metadata.get("nbgrader", {}).get("solution")]
    for n in range(STUDENTS):
        chosen = (exercises, exercises[::2], [])[n % 3]
        notebook = copy.deepcopy(stubs)
        for cell in notebook.cells:
            if cell.id in chosen:
                cell.source = f"# by student {n}\n{solved[cell.id]}"
        path = folder / f"student {n:02d}" / f"{project.lesson(LESSON).stem}.ipynb"
        path.parent.mkdir()
        nbformat.write(notebook, path)
    return collect([folder])
