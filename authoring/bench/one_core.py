"""Every lesson's solution on one core, as a small container gives it: minutes and memory.

Takes half an hour, and goes on where it was interrupted: see `resume`. Other programs may use other cores.
"""

import os

from authoring import bench as benches
from authoring.execute import execute
from authoring.project import Project, key_of
from course_utils.errors import CourseError

TITLE = "Every lesson on one core"
NAME = "bench_one_core"


def bench() -> list[dict]:
    """One row for each lesson.

    Raises:
        CourseError: this system cannot keep a process on one core.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise CourseError("needs Linux: this system cannot keep a process on one core")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})  # kernels inherit it
    try:
        runs = {(key,): {"lesson": key} for key in map(key_of, Project().lessons())}
        return benches.resume(NAME, TITLE, runs, measure)
    finally:
        os.sched_setaffinity(0, before)


def measure(lesson: str) -> dict:
    """Execute the lesson's solution.

    Args:
        lesson: its key.

    Returns:
        {"minutes": from the kernel's start to its end, "peak_gb": highest resident memory of the kernel and
        its children}.

    Raises:
        CourseError: a cell failed.
    """
    (solved,) = Project().notebooks("solutions", [lesson])
    done = execute(solved, solved.parent)
    if done.error:
        raise CourseError(f"{solved.name} failed: {done.error}")
    return {"minutes": round(done.seconds / 60, 2), "peak_gb": round(done.peak_bytes / 1e9, 2)}
