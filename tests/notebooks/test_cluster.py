"""Grading and running on dask's workers: a real scheduler, two workers on loopback, one killed on the way."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from authoring import grade, sync
from authoring.grading.submissions import collect
from authoring.project import Project
from authoring.run import run_lessons
from tests.notebooks.conftest import SAMPLE

pytest.importorskip("distributed")
pytestmark = pytest.mark.slow  # five processes that load PyTorch
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    root = tmp_path_factory.mktemp("cluster") / "course"
    shutil.copytree(SAMPLE, root, ignore=shutil.ignore_patterns("__pycache__"))
    sync.sync(Project(root), run=False, report=lambda line: None)
    return Project(root)


@pytest.fixture
def cluster(course, tmp_path):
    """(address of a scheduler, the processes of its two workers)."""
    path = os.pathsep.join([str(ROOT), str(course.root), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def dask(*arguments):
        return subprocess.Popen([sys.executable, "-m", "dask", *arguments], env=environment, cwd=tmp_path,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    said = tmp_path / "scheduler.json"
    processes = [dask("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
                      "--scheduler-file", str(said))]
    try:
        for _ in range(600):
            if said.exists() and said.read_text().endswith("}"):
                break
            time.sleep(0.1)
        address = json.loads(said.read_text())["address"]
        workers = [dask("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard",
                        "--host", "127.0.0.1") for _ in range(2)]
        processes += workers
        yield address, workers
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def test_a_worker_that_is_killed_loses_and_doubles_no_submission(course, cluster, tmp_path):
    address, workers = cluster
    for n in range(8):
        kind = "solutions" if n % 2 else "notebooks"
        notebook = nbformat.read(course.root / kind / "90_sample.ipynb", as_version=4)
        folder = tmp_path / f"handed in/student {n}"
        folder.mkdir(parents=True)
        nbformat.write(notebook, folder / "90_sample.ipynb")
    submissions = collect([tmp_path / "handed in"])
    results = tmp_path / "results"
    results.mkdir()
    found = []
    for graded in grade.grade_all(course, submissions, lesson="sample", results=results, dask=address):
        if not found:
            workers[0].kill()
        found.append(graded)
    assert sorted((graded.student, graded.points) for graded in found) == [
        (f"student {n}", 7 * (n % 2)) for n in range(8)]
    assert not any(graded.error for graded in found)
    kept = {path.name: path.stat().st_mtime_ns for path in results.iterdir()}
    assert len(kept) == 8
    again = list(grade.grade_all(course, submissions, lesson="sample", results=results, dask=address))
    assert {path.name: path.stat().st_mtime_ns for path in results.iterdir()} == kept
    assert sorted(graded.points for graded in again) == [0] * 4 + [7] * 4


def test_lessons_run_on_workers(course, cluster, tmp_path):
    address, _ = cluster
    (row,) = run_lessons(course, out=tmp_path / "out", dask=address)
    assert (row.error, row.passed, row.exercises) == ("", 4, 4) and row.path.exists()


def test_an_address_without_a_scheduler_is_an_error_of_one_line(course, tmp_path):
    from authoring.cluster import spread

    with pytest.raises(ValueError, match="no dask scheduler answers at tcp://127.0.0.1:9"):
        list(spread(abs, [(1,)], "tcp://127.0.0.1:9"))
