"""Run lessons end to end with papermill and say what each took and which exercises passed."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from rich.console import Console
from rich.table import Table

from authoring import places
from authoring.cluster import spread
from authoring.project import Project, is_foreign
from authoring.sync import replace_file
from course_utils.progress import LIBRARY
from course_utils.progress import statuses as exercise_statuses


@dataclasses.dataclass(frozen=True)
class Row:
    """One lesson's run.

    Attributes:
        lesson: name of the notebook's file without its ending.
        seconds: how long it took.
        peak_bytes: highest resident memory of the kernel and its child processes together.
        passed: how many exercises passed, with an answer of one's own.
        exercises: how many there are.
        path: of the executed notebook, or of the one that could not be executed.
        error: "" if there was none.
        library: how many exercises passed with the library's own function for an answer.
    """

    lesson: str
    seconds: float
    peak_bytes: int
    passed: int
    exercises: int
    path: Path
    error: str
    library: int = 0

    @property
    def counts(self) -> str:
        """Exercises passed, such as "5/7" or "5/7, 2 with the library's function"."""
        return _counts(self.passed, self.exercises, self.library)


def _counts(passed: int, exercises: int, library: int) -> str:
    return f"{passed}/{exercises}" + f", {library} with the library's function" * bool(library)


def run_lessons(
    project: Project,
    numbers: Sequence[str] = (),
    *,
    kind: str = "solutions",
    parameters: dict[str, Any] | None = None,
    offline: bool = False,
    out: Path | None = None,
    own: Path | None = None,
    on_cell: Callable[[Path, int, int, NotebookNode], None] | None = None,
    done: Callable[[Row], None] | None = None,
    dask: str | None = None,
) -> list[Row]:
    """Execute notebooks. One that fails does not keep the others from running.

    Args:
        project: the course.
        numbers: which lessons, as in `Project.lessons`; also paths of copies outside of the course.
        kind: "solutions" or "notebooks".
        parameters: papermill parameters such as {"DEVICE": "cuda"}.
        offline: let no connection leave the machine.
        out: folder for the executed notebooks, which go into its folder <kind>; chosen as
            `places.runs_folder` does when left out.
        own: the learner's folder: a copy there is run in the place of the course's notebook.
        on_cell: called with (path, index, number of cells, cell) when a cell starts; not with `dask`.
        done: called with the `Row` of each notebook when it has run.
        dask: address of a scheduler whose workers run the notebooks, see `authoring.cluster`. They need the
            same folders. None runs one after the other here, which alone gives times that can be compared.

    Returns:
        A row for each notebook; that of one that failed has its error.

    Raises:
        ValueError: there is no notebook, no such lesson, the folder cannot be written, or a parameter
            would not reach a notebook's code.
    """
    from authoring.execute import check_parameters, read

    rows = []
    files = _files(project, kind, numbers)
    if own:
        theirs = {project.root / kind / path.name: path for path in own.glob("*.ipynb")}
        files = [theirs.get(file, file) for file in files]
    for file in files if parameters else ():
        with contextlib.suppress(OSError, nbformat.reader.NotJSONError, nbformat.ValidationError):
            check_parameters(read(file), parameters, str(project.relative(file)))
    folder = places.writable_folder(places.runs_folder(project, out) / kind, "name another with --out")
    tasks = [(project, file, folder / file.name, parameters, offline) for file in files]
    for n, row in enumerate(_run_one(*task, on_cell) for task in tasks) if dask is None else spread(
            _run_one, tasks, dask):
        if isinstance(row, BaseException):
            row = Row(files[n].stem, 0.0, 0, 0, 0, project.relative(files[n]), f"{type(row).__name__}: {row}")
        rows.append(row)
        if done:
            done(row)
    return sorted(rows, key=lambda row: [file.stem for file in files].index(row.lesson))


def _files(project: Project, kind: str, numbers: Sequence[str]) -> list[Path]:
    """The notebooks that were asked for: copies outside of the course by path, then the course's own."""
    known = project.notebooks(kind)
    copies = [places.absolute(number) for number in numbers if is_foreign(number, known)]
    others = [number for number in numbers if not is_foreign(number, known)]
    files = [*dict.fromkeys(copies), *(project.notebooks(kind, others) if others or not copies else [])]
    names = [file.name for file in files]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two notebooks are called {twice.pop()}, and so would be their results: run one "
                         "at a time, each with its own --out.")
    return files


def _run_one(
    project: Project,
    file: Path,
    target: Path,
    parameters: dict[str, Any] | None,
    offline: bool,
    on_cell: Callable[[Path, int, int, NotebookNode], None] | None = None,
) -> Row:
    from authoring.execute import execute

    tell = (lambda *cell: on_cell(file, *cell)) if on_cell else None
    try:
        done = execute(file, file.parent, parameters=parameters, offline=offline, on_cell=tell)
    except Exception as error:  # an unreadable notebook, a kernel that does not start
        return Row(file.stem, 0.0, 0, 0, 0, project.relative(file), f"{type(error).__name__}: {error}")
    error = done.error or ""
    try:
        replace_file(target, nbformat.writes(done.notebook))
    except OSError as problem:  # the lesson ran, and the disk is full by now
        error = error or f"{target} could not be written: {problem.strerror}"
    statuses = exercise_statuses(done.notebook)
    counted = Counter(statuses.values())
    return Row(file.stem, done.seconds, done.peak_bytes, counted["passed"], len(statuses),
               project.relative(target), error, counted[LIBRARY])  # fmt: skip


def table(rows: list[Row]) -> Table:
    """What each lesson took and which exercises passed, for the terminal.

    Args:
        rows: what `run_lessons` returned.

    Returns:
        A table with a line for each lesson; the last is their sum, and of memory the highest.
    """
    shown = Table("lesson", "minutes", "peak memory", "exercises passed", "executed notebook")
    for row in rows:
        where = f"[red]{_escape(row.error)}[/red]\n{row.path}" if row.error else str(row.path)
        shown.add_row(
            row.lesson,
            f"{row.seconds / 60:.1f}",
            f"{row.peak_bytes / 1e9:.2f} GB",
            row.counts,
            where,
        )
    if len(rows) > 1:
        shown.add_section()
        numbers = ((row.passed, row.exercises, row.library) for row in rows)
        counts = _counts(*map(sum, zip(*numbers, strict=True)))
        peak = max(r.peak_bytes for r in rows)
        minutes = sum(r.seconds for r in rows) / 60
        shown.add_row("all", f"{minutes:.1f}", f"{peak / 1e9:.2f} GB", counts, "")
    return shown


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(" ".join(text.split())[:300])


def main(project: Project, numbers: Sequence[str], **options: Any) -> int:
    """Run lessons with progress and a table on the terminal.

    Args:
        project: the course.
        numbers: which lessons, as in `Project.lessons`.
        **options: of `run_lessons`.

    Returns:
        The exit code: 1 when a lesson failed.

    Raises:
        ValueError: there is no notebook, or no such lesson.
    """
    from authoring.progress import cells, table_width

    options["out"] = places.runs_folder(project, options.get("out"))
    print(f"Executed notebooks go into {options['out']}", flush=True)
    with cells() as progress:
        rows = run_lessons(
            project,
            numbers,
            on_cell=progress.cell,
            done=lambda row: progress.say(
                f"{row.lesson}: {'failed' if row.error else 'done'} after {row.seconds / 60:.1f} minutes, "
                f"exercises passed: {row.counts}"
            ),
            **options,
        )
    Console(width=table_width()).print(table(rows))
    return int(any(row.error for row in rows))
