"""Progress of notebooks on the terminal: which lesson, which cell of how many."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

if TYPE_CHECKING:
    from nbformat import NotebookNode


class CellProgress:
    """One bar, for the notebook that runs, and lines above it.

    Args:
        progress: the bars of rich, already shown.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.path = self.task = None

    def cell(self, path: Path, index: int, total: int, cell: NotebookNode) -> None:
        """Show that a cell starts.

        Args:
            path: of its notebook.
            index: number of the cell in the notebook, from 0.
            total: how many cells the notebook has.
            cell: the cell.
        """
        if path != self.path:
            self.close()
            self.path, self.task = path, self.progress.add_task("", total=total)
        self.progress.update(self.task, completed=index, description=f"{path.stem}: {cell.id}")

    def say(self, line: str) -> None:
        """Print a line and take the bar away.

        Args:
            line: plain text.
        """
        self.close()
        self.progress.console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        """Take the bar away."""
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.path = self.task = None


def table_width() -> int | None:
    """Width for a table with paths in it, which a narrow pipe would fold.

    Returns:
        Columns; None for those of the terminal.
    """
    columns = os.environ.get("COLUMNS", "")
    return None if Console().is_terminal else max(140, int(columns) if columns.isdigit() else 0)


@contextlib.contextmanager
def cells() -> Iterator[CellProgress]:
    """Show progress during the block.

    Yields:
        What to tell which cell starts.
    """
    text = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(), transient=True) as progress:
        shown = CellProgress(progress)
        try:
            yield shown
        finally:
            shown.close()
