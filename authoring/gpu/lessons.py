"""Step 2: every lesson's solution on the GPU, each as a process of its own."""

import concurrent.futures
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

import nbformat

from authoring.gpu.plan import Settings
from authoring.gpu.results import Results, nvidia_smi
from authoring.project import Project, key_of
from authoring.sync import replace_file

TITLE = "Every lesson's solution"
MOST = 150  # seconds a lesson may take


def measure_into(settings: Settings, results: Results) -> None:
    """Add a row a lesson: minutes, memory in GB, exercises passed, and each cell that failed.

    Args:
        settings: of the run.
        results: gets the rows, "lesson" is the lesson's key.
    """
    results.note(jobs=settings.jobs, keep_going=settings.keep_going,
                 remark="timings side by side with other lessons" if settings.jobs > 1 else "one at a time")
    project = Project(Path(settings.root))
    profile = "cpu" if settings.small else "gpu"  # a rehearsal takes the small sizes
    files = project.notebooks("solutions", settings.lessons)
    results.forget(lesson=[key_of(file) for file in files])
    run_all(settings, files, "lessons", profile, results)


def run_all(settings: Settings, files: list[Path], folder: str, profile: str, results: Any) -> None:
    """Execute notebooks, `settings.jobs` at a time, until the step's time is up.

    Args:
        settings: of the run.
        files: the notebooks.
        folder: name of the folder in `settings.folder` that gets the executed ones.
        profile: "cpu" or "gpu".
        results: a `Results`, or what has `add` and `rows`: gets a row a lesson, in the order of the lessons.
    """
    end = time.monotonic() + settings.seconds - 5  # so that the last row is written before the step is killed
    target = settings.folder / folder
    target.mkdir(parents=True, exist_ok=True)
    all_files = Project(Path(settings.root)).notebooks("solutions")
    place = {key_of(file): number for number, file in enumerate(all_files)}
    lock = threading.Lock()

    def one(file: Path) -> None:
        row = _bounded(settings, file, target / file.name, profile, end - time.monotonic())
        with lock:
            results.add(**row)
            results.rows.sort(key=lambda row: place.get(row["lesson"], len(place)))

    with concurrent.futures.ThreadPoolExecutor(settings.jobs) as pool:
        list(pool.map(one, files))


def _bounded(settings: Settings, file: Path, target: Path, profile: str, left: float) -> dict[str, Any]:
    """The row of a lesson that ran in a process of its own, or was not begun, or was killed."""
    from authoring.gpu.run import call, last_line

    started = {"lesson": key_of(file), "profile": profile}
    if left < 10:
        return started | {"error": "not begun: no time left"}
    for old in (target, target.with_suffix(".json")):
        old.unlink(missing_ok=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = str(max(1, cores // settings.jobs))
    command = [sys.executable, "-m", "authoring.gpu", "lesson", settings.to_json(), str(file), profile]
    command.append(str(target))
    log = target.with_suffix(".log")
    began = time.monotonic()
    limit = min(left, MOST if not settings.small else 600)
    with GpuMemory() as memory:
        code = call(command, log, limit, settings.root, {"OMP_NUM_THREADS": threads})
    said = target.with_suffix(".json")
    if said.exists():
        row = started | json.loads(said.read_text(encoding="utf-8"))
    else:
        why = f"stopped after {limit:.0f} s" if code is None else last_line(log) or f"exit code {code}"
        row = started | {"minutes": (time.monotonic() - began) / 60, "error": f"{why}{_where(target)}"}
    if settings.jobs == 1 and memory.peak:
        row["GPU memory in use (GB)"] = memory.peak / 1e9
    return row


def _where(target: Path) -> str:
    """In which cell the notebook was, from what was saved of it."""
    try:
        notebook = nbformat.read(target, as_version=4)
    except Exception:  # nothing saved, or half of it
        return ""
    begun = [cell.id for cell in notebook.cells if cell.metadata.get("papermill", {}).get("start_time")]
    return f", in or after cell {begun[-1]!r}" if begun else ""


def run_one(settings: Settings, file: str, profile: str, to: str) -> None:
    """In the lesson's own process: execute, keep the notebook, and write the row beside it.

    Args:
        settings: of the run.
        file: path of the notebook.
        profile: "cpu" or "gpu".
        to: path of the executed notebook; the row gets the same name with the ending .json.
    """
    from authoring.execute import errors, execute
    from authoring.run import exercise_statuses

    target = Path(to)
    parameters = {"PROFILE": profile, "DEVICE": settings.device}
    path = Path(file)
    done = execute(path, path.parent, parameters=parameters, keep_going=settings.keep_going,
                   save_to=str(target))
    replace_file(target, nbformat.writes(done.notebook))
    statuses = exercise_statuses(done.notebook)
    failed = [f"{cell}: {' '.join(text.split())[:200]}" for cell, text in errors(done.notebook).items()]
    row = {"minutes": done.seconds / 60, "memory (GB)": done.peak_bytes / 1e9,
           "exercises passed": sum(status == "passed" for status in statuses.values()),
           "exercises": len(statuses), "failing cells": failed}
    if done.error and not failed:
        row["error"] = done.error
    replace_file(target.with_suffix(".json"), json.dumps(row))


class GpuMemory:
    """Most memory in use on the whole GPU inside the block, as nvidia-smi says.

    Attributes:
        peak: bytes; 0 without a GPU.
        interval: seconds from one look to the next.
    """

    interval = 0.5

    def __enter__(self) -> Self:
        self.peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self.interval):
            used = nvidia_smi("memory.used")  # MiB
            if not used or not used[0].isdigit():
                return
            self.peak = max(self.peak, int(used[0]) * 2**20)
