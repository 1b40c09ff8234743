"""Run lessons end to end with papermill and say what each took and which exercises passed."""

import dataclasses
import os
from pathlib import Path

import nbformat
from rich.console import Console
from rich.table import Table

from authoring.project import Project
from authoring.sync import replace_file


@dataclasses.dataclass(frozen=True)
class Row:
    """One lesson's run. Seconds, bytes; `passed` of `exercises` checks passed; `error` is "" if none."""

    lesson: str
    seconds: float
    peak_bytes: int
    passed: int
    exercises: int
    path: Path
    error: str


def run_lessons(
    project: Project, numbers=(), *, kind="solutions", parameters=None, offline=False, on_cell=None, done=None
) -> list[Row]:
    """Execute notebooks of `kind` ("solutions" or "notebooks") into runs/<kind>/.

    Args:
        parameters: papermill parameters such as {"DEVICE": "cuda"}.
        offline: let no connection leave the machine.
        on_cell: called with (path, index, number of cells, cell) when a cell starts.
        done: called with the `Row` of each notebook when it has run.

    A failing notebook is a row with its error; the others still run. Raises ValueError when there is none.
    """
    rows = []
    for file in project.notebooks(kind, numbers):
        rows.append(_run_one(project, file, kind, parameters, offline, on_cell))
        if done:
            done(rows[-1])
    return rows


def _run_one(project, file, kind, parameters, offline, on_cell):
    from authoring.execute import execute

    target = project.root / "runs" / kind / file.name
    tell = (lambda *cell: on_cell(file, *cell)) if on_cell else None
    try:
        done = execute(file, file.parent, parameters=parameters, offline=offline, on_cell=tell)
    except Exception as error:  # an unreadable notebook, a kernel that does not start
        return Row(file.stem, 0.0, 0, 0, 0, project.relative(file), f"{type(error).__name__}: {error}")
    replace_file(target, nbformat.writes(done.notebook))
    statuses = exercise_statuses(done.notebook)
    passed = sum(status == "passed" for status in statuses.values())
    shown = project.relative(target)
    return Row(file.stem, done.seconds, done.peak_bytes, passed, len(statuses), shown, done.error or "")


def exercise_statuses(notebook) -> dict[str, str]:
    """Status by exercise id, as the checks left it in the metadata of their outputs."""
    found = {}
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            mark = output.get("metadata", {}).get("course", {})
            if "exercise" in mark:
                found[mark["exercise"]] = mark["status"]
    return found


def table(rows: list[Row]) -> Table:
    shown = Table("lesson", "minutes", "peak memory", "exercises passed", "executed notebook")
    for row in rows:
        where = f"[red]{_escape(row.error)}[/red]\n{row.path}" if row.error else str(row.path)
        shown.add_row(
            row.lesson,
            f"{row.seconds / 60:.1f}",
            f"{row.peak_bytes / 1e9:.2f} GB",
            f"{row.passed}/{row.exercises}",
            where,
        )
    if len(rows) > 1:
        shown.add_section()
        passed, exercises = sum(r.passed for r in rows), sum(r.exercises for r in rows)
        peak = max(r.peak_bytes for r in rows)
        minutes = sum(r.seconds for r in rows) / 60
        shown.add_row("all", f"{minutes:.1f}", f"{peak / 1e9:.2f} GB", f"{passed}/{exercises}", "")
    return shown


def _escape(text):
    from rich.markup import escape

    return escape(" ".join(text.split())[:300])


def main(project: Project, numbers, **options) -> int:
    """`run_lessons` with progress and a table on the terminal; exit code 1 when a lesson failed."""
    from authoring.progress import cells

    with cells() as progress:
        rows = run_lessons(
            project,
            numbers,
            on_cell=progress.cell,
            done=lambda row: progress.say(
                f"{row.lesson}: {'failed' if row.error else 'done'} after {row.seconds / 60:.1f} minutes"
            ),
            **options,
        )
    # A narrow pipe would fold the paths.
    width = None if Console().is_terminal else max(140, int(os.environ.get("COLUMNS", 0)))
    Console(width=width).print(table(rows))
    return int(any(row.error for row in rows))
