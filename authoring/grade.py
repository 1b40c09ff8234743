"""Grade submitted notebooks as nbgrader does, without its gradebook.

Each locked cell is put back as it was released, the notebook is executed as nbgrader executes it, and
nbgrader's own `determine_grade` gives the points.
"""

import copy
import csv
import dataclasses
import os
import re
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbgrader.utils import determine_grade
from nbgrader.utils import setenv as with_environment

from authoring import generate, sync
from authoring.execute import read
from authoring.project import Project
from authoring.run import LIBRARY, exercise_statuses
from course_utils.checking import LIBRARY_POINTS


@dataclasses.dataclass
class Grade:
    """Points of one submission.

    Attributes:
        submission: path of the notebook.
        lesson: key of its lesson, "" when that could not be found out.
        cells: grade id -> (points, maximum).
        notes: what was odd, one line each.
        error: why it was not graded, or "".
        notebook: as executed; None when it was not.
    """

    submission: Path
    lesson: str = ""
    cells: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    error: str = ""
    notebook: NotebookNode | None = None

    @property
    def points(self) -> float:
        """All points that the submission got."""
        return sum(points for points, _ in self.cells.values())

    @property
    def maximum(self) -> float:
        """All points that it could have got."""
        return sum(maximum for _, maximum in self.cells.values())


def grade(
    project: Project, submission: Path, *, timeout: int = 300, library_points: bool = False
) -> Grade:
    """Grade one submitted notebook. Never raises for what it holds: see `Grade.error`.

    Args:
        project: the course.
        submission: path of the notebook.
        timeout: seconds that each cell may take.
        library_points: whether an answer that is the library's own function gets its points.

    Returns:
        Its points.
    """
    result = Grade(Path(submission))
    try:
        notebook = read(Path(submission))
        result.lesson = lesson_of(notebook, submission)
        release = released(project, result.lesson)
    except Exception as error:
        result.error = f"not graded: {' '.join(str(error).split())[:200]}"
        return result
    result.notes = restore(notebook, release)
    notebook.metadata.kernelspec = copy.deepcopy(release.metadata.kernelspec)
    # nbgrader's variable makes a failed check raise; a cell that takes too long is interrupted, not fatal.
    client = NotebookClient(
        notebook,
        timeout=timeout,
        allow_errors=True,
        interrupt_on_timeout=True,
        kernel_name="python3",
        error_on_timeout=TIMED_OUT,
        resources={"metadata": {"path": str(project.root / "notebooks")}},
        extra_arguments=["--log-level=CRITICAL"],
    )
    try:
        # An empty value counts as not set.
        allowed = {LIBRARY_POINTS: "1" if library_points else ""}
        with with_environment(NBGRADER_EXECUTION="autograde", **allowed):
            client.execute()
    except Exception as error:  # the kernel died: what ran before counts, what did not run has no points
        result.notes.append(f"the kernel stopped: {' '.join(str(error).split())[:200]}")
    _score(notebook, result, library_points)
    result.notebook = notebook
    return result


TIMED_OUT = {
    "output_type": "error",
    "ename": "TimeoutError",
    "evalue": "the cell took too long",
    "traceback": [],
}


def lesson_of(notebook: NotebookNode, path: Path) -> str:
    """The lesson that a submission belongs to: as its metadata says, or its file name.

    Args:
        notebook: the submission.
        path: of its file.

    Returns:
        Key of the lesson; there need not be one of that key.
    """
    return notebook.metadata.get("course", {}).get("lesson") or re.sub(r"^\d\d_", "", Path(path).stem)


def released(project: Project, key: str) -> NotebookNode:
    """The learner's notebook of a lesson as generated now.

    Args:
        project: the course.
        key: of the lesson.

    Returns:
        The notebook without outputs.

    Raises:
        ValueError: unknown lesson.
        LessonError: its source is not as it must be.
    """
    lesson = generate.read_lesson(project, project.lesson(key))
    return generate.make_notebook(project, lesson, "notebooks", sync.read_costs(project))


def restore(notebook: NotebookNode, release: NotebookNode) -> list[str]:
    """Put the locked cells of the released notebook back into a submission, in place.

    Cells with a grade id that the release does not know lose their nbgrader metadata.

    Args:
        notebook: the submission.
        release: the notebook as released.

    Returns:
        What had been changed, one line each.
    """
    notes = []
    official = {_id(cell): cell for cell in release.cells if _id(cell)}
    kept, seen = [], set()
    code = {name for name, cell in official.items() if cell.cell_type == "code"}
    for cell in notebook.cells:
        name = _id(cell)
        if name is None or name not in official:
            if name is not None:
                notes.append(f"unknown cell {name}: does not count")
                del cell.metadata["nbgrader"]
            kept.append(cell)
            continue
        if name in seen:
            notes.append(f"duplicated cell {name}: the first one counts")
            del cell.metadata["nbgrader"]
            if not official[name].metadata.nbgrader.locked:
                kept.append(cell)
            continue
        seen.add(name)
        if official[name].metadata.nbgrader.locked:
            if cell.source != official[name].source or cell.cell_type != official[name].cell_type:
                notes.append(f"changed check {name}: put back")
            cell = copy.deepcopy(official[name])
        else:
            if name in code and cell.cell_type != "code":  # as nbgrader's OverwriteCells does
                notes.append(f"answer {name} had been turned into {cell.cell_type}: turned back into code")
                cell = nbformat.v4.new_code_cell(cell.source, metadata=cell.metadata, id=cell.get("id", name))
            cell.metadata["nbgrader"] = copy.deepcopy(official[name].metadata.nbgrader)
        kept.append(cell)
    for position, name in enumerate(official):
        if name not in seen:
            kind = "check" if official[name].metadata.nbgrader.locked else "answer"
            notes.append(f"missing {kind} {name}" + (": put back" if kind == "check" else ""))
            if kind == "check":
                kept.insert(_place(kept, list(official)[:position]), copy.deepcopy(official[name]))
    notebook.cells = kept
    return notes


def _id(cell: NotebookNode) -> str | None:
    """Grade id of a cell that nbgrader knows, else None."""
    mark = cell.metadata.get("nbgrader", {})
    return mark.get("grade_id") if mark.get("grade") or mark.get("solution") or mark.get("locked") else None


def _place(cells: list[NotebookNode], before: Collection[str]) -> int:
    """Index after the last cell whose grade id is in `before`; the end when there is none."""
    places = [n for n, cell in enumerate(cells) if _id(cell) in before]
    return places[-1] + 1 if places else len(cells)


def _score(notebook: NotebookNode, result: Grade, library_points: bool) -> None:
    """Add the points of an executed submission to its grade."""
    for cell in notebook.cells:
        if not cell.metadata.get("nbgrader", {}).get("grade"):
            continue
        name = cell.metadata.nbgrader.grade_id
        points, maximum = determine_grade(cell)
        ran = cell.execution_count is not None
        # A check that ran without an error has shown "passed": anything else means that it was bypassed.
        statuses = exercise_statuses(_only(cell)).values()
        passed = "passed" in statuses or (library_points and LIBRARY in statuses)
        if LIBRARY in statuses:
            given = "its points all the same" if passed else "no points"
            result.notes.append(f"check {name} passed with the library's own function: {given}")
        elif points and ran and not passed:
            result.notes.append(f"check {name} did not run as released: no points")
        result.cells[name] = (points if points and ran and passed else 0.0, maximum)


def _only(cell: NotebookNode) -> NotebookNode:
    return nbformat.v4.new_notebook(cells=[cell])


def write_csv(grades: list[Grade], path: Path) -> None:
    """Write one line for each graded cell of each submission.

    Args:
        grades: what `grade` returned.
        path: of the file; it is overwritten.
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["submission", "lesson", "cell", "points", "maximum", "notes"])
        for graded in grades:
            notes = "; ".join([graded.error] * bool(graded.error) + graded.notes)
            for name, (points, maximum) in graded.cells.items() or [("", ("", ""))]:
                writer.writerow([_shown(graded.submission), graded.lesson, name, points, maximum, notes])


def page_names(submissions: Sequence[Path], released: Collection[str] = ()) -> list[str]:
    """A name for each submission's page, the shortest that tells it from the others.

    It is the file's name without ending. Where files are called alike, the names of as many folders as are
    needed stand before it: "alice_L" of alice/L.ipynb. So does one where the file still has the name that it
    was handed out under, or the pages of two calls would have one name. Names that a file system takes for
    one, since it does not tell capitals or ways to write an accent apart, count as equal.

    Args:
        submissions: paths of different files.
        released: names, without ending, that notebooks are handed out under.

    Returns:
        The names in the same order, all different.
    """
    parts = [Path(os.path.abspath(path)).with_suffix("").parts[1:] for path in submissions]
    depth = [2 if each[-1] in released and len(each) > 1 else 1 for each in parts]

    def names() -> list[str]:
        return ["_".join(each[-deep:])[-MOST_LETTERS:] for each, deep in zip(parts, depth, strict=True)]

    def alike() -> list[int]:
        keys = [unicodedata.normalize("NFC", name).casefold() for name in names()]
        return [n for n, key in enumerate(keys) if keys.count(key) > 1]

    while longer := [n for n in alike() if depth[n] < len(parts[n])]:
        for n in longer:
            depth[n] += 1
    clash, found = alike(), names()  # a_b/L and a/b_L, or names that are too long
    return [f"{name}_{n + 1}" if n in clash else name for n, name in enumerate(found)]


MOST_LETTERS = 60  # of a page's name: with 4 bytes a letter it is below the 255 bytes of file systems


def _shown(path: Path) -> str:
    """A path as text: bytes that are no letters, in names from another system, become question marks."""
    return os.fsencode(path).decode("utf-8", "replace")


def write_feedback(grades: list[Grade], folder: Path, released: Collection[str] = ()) -> None:
    """Write an HTML page for each submission that was executed: its points, then the notebook.

    Args:
        grades: what `grade` returned.
        folder: where the pages go; made if it does not exist.
        released: as in `page_names`.
    """
    from nbconvert import HTMLExporter

    folder.mkdir(parents=True, exist_ok=True)
    names = page_names([graded.submission for graded in grades], released)
    for graded, name in zip(grades, names, strict=True):
        if graded.notebook is None:
            continue
        lines = [f"# {graded.points:g} of {graded.maximum:g} points", ""]
        lines += [f"`{_shown(graded.submission)}`", ""]
        lines += [f"- {cell}: {got:g} of {most:g}" for cell, (got, most) in graded.cells.items()]
        lines += [f"- note: {note}" for note in graded.notes]
        page = copy.deepcopy(graded.notebook)
        page.cells.insert(0, nbformat.v4.new_markdown_cell("\n".join(lines), id="grade"))
        html, _ = HTMLExporter().from_notebook_node(page)
        sync.replace_file(folder / f"{name}.html", html)


def once(submissions: Sequence[Path]) -> list[Path]:
    """The submissions without those that are named a second time; says which.

    Args:
        submissions: paths, possibly written differently.

    Returns:
        The first of each, in order. Two names for one file, by a link, are two submissions.
    """
    found = {}
    for path in submissions:
        if found.setdefault(os.path.abspath(path), path) is not path:
            print(f"{path} is named twice: graded once.")
    return list(found.values())


def main(
    project: Project,
    submissions: list[Path],
    *,
    csv_path: Path | None = None,
    feedback: Path | None = None,
    timeout: int = 300,
    library_points: bool = False,
) -> int:
    """Grade, print a table, write what was asked for.

    Args:
        project: the course.
        submissions: paths of notebooks.
        csv_path: file for the points, see `write_csv`; None for none.
        feedback: folder for pages, see `write_feedback`; None for none.
        timeout: seconds that each cell may take.
        library_points: as in `grade`.

    Returns:
        The exit code: 1 when a submission could not be graded.
    """
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from authoring.progress import table_width

    submissions = once(submissions)
    grades = [
        grade(project, submission, timeout=timeout, library_points=library_points)
        for submission in track(submissions, description="grading", transient=True)
    ]
    shown = Table("submission", "lesson", "points", "notes")
    for graded in grades:
        points = "-" if graded.error else f"{graded.points:g}/{graded.maximum:g}"
        notes = "\n".join([graded.error] * bool(graded.error) + graded.notes)
        shown.add_row(_shown(graded.submission), graded.lesson, points, notes)
    Console(width=table_width(), markup=False).print(shown)
    if csv_path:
        write_csv(grades, csv_path)
    if feedback:
        write_feedback(grades, feedback, [lesson.stem for lesson in project.lessons()])
    return int(any(graded.error for graded in grades))
