"""A course folder for nbgrader: what learners get as source, and settings with which its commands work."""

import shutil
from pathlib import Path

import nbformat
from nbformat.v4 import new_markdown_cell, new_notebook

from authoring.project import Project, key_of
from authoring.sync import replace_file
from course_utils.cache import cache_dir

HEADER = """**Before you hand in:** run all cells from top to bottom once, save, and keep the file's name. An
exercise that you leave out costs its own points only."""

CONFIG = '''"""Settings of nbgrader, written by `course assignment build`. Run nbgrader in this folder, in the
environment of the course."""

import os
import sys

c = get_config()  # noqa: F821 - nbgrader defines it
c.CourseDirectory.course_id = {course_id!r}
c.IncludeHeaderFooter.header = "header.ipynb"
# The source has the learner's own stubs already: "About N lines", prediction = None. nbgrader's are others.
c.ClearSolutions.enabled = False
# The whole lesson runs, in minutes; nbgrader's limit is 30 seconds a cell.
c.Execute.timeout = {timeout}
c.Execute.iopub_timeout = 60
c.Execute.startup_timeout = 300
# The notebooks run elsewhere, but need the model and the texts.
os.environ.setdefault("COURSE_CACHE", {cache!r})
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# nbgrader calls a program of this environment, alembic.
os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
'''
ANSWERS = '''
# Only the answers run, each in a bound process of its own, instead of the whole notebook (`course grade`).
from nbgrader.converters import Autograde  # noqa: E402
from nbgrader.preprocessors import Execute  # noqa: E402

from authoring.grading.nbgrader_step import GradeAnswers  # noqa: E402

c.Autograde.autograde_preprocessors = [
    GradeAnswers if step is Execute else step for step in Autograde().autograde_preprocessors]
c.GradeAnswers.root = {root!r}
c.GradeAnswers.seed = {seed!r}
c.GradeAnswers.partial = {partial!r}
'''


def build(
    project: Project, lessons: list[str], out: Path, *, answers_only: bool, seed: str = "",
    partial: bool = False, timeout: int = 900,
) -> list[Path]:  # fmt: skip
    """Write a course folder in which `nbgrader generate_assignment KEY` and what follows it work.

    Args:
        project: the course; its notebooks/ must be generated.
        lessons: keys or numbers. Each becomes an assignment of its key's name.
        out: the folder. Assignments that stand in it already stay.
        answers_only: whether `nbgrader autograde` runs the answers alone, as `course grade` does, or the
            whole notebook, as it does everywhere.
        seed: as of `Rules`; for `answers_only`.
        partial: as of `Rules`; for `answers_only`.
        timeout: seconds that a cell may take where the whole notebook runs.

    Returns:
        The files that were written.

    Raises:
        ValueError: there is no such lesson, or it is not generated; or a seed without `answers_only`.
    """
    if (seed or partial) and not answers_only:
        raise ValueError("nbgrader's own autograde knows no seed and no partial points: add --answers-only.")
    notebooks = project.notebooks("notebooks", lessons)
    course_id = project.settings.get("project", {}).get("name", "course")
    config = CONFIG.format(course_id=course_id, timeout=timeout, cache=str(cache_dir()))
    if answers_only:
        config += ANSWERS.format(root=str(project.root), seed=seed, partial=partial)
    header = new_notebook(cells=[new_markdown_cell(HEADER, id="before-you-hand-in")])
    written = {out / "nbgrader_config.py": config, out / "header.ipynb": nbformat.writes(header) + "\n"}
    for path, text in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text)
    for notebook in notebooks:
        target = out / "source" / key_of(notebook) / notebook.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(notebook, target)
        written[target] = ""
    return list(written)
