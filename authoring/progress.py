"""Progress of notebooks on the terminal: which lesson, which cell of how many."""

import contextlib

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)


class CellProgress:
    """Shows one bar, for the notebook that runs, and prints lines above it."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self.path = self.task = None

    def cell(self, path, index, total, cell):
        """Cell number `index` of `total` of the notebook at `path` starts."""
        if path != self.path:
            self.close()
            self.path, self.task = path, self.progress.add_task("", total=total)
        self.progress.update(self.task, completed=index, description=f"{path.stem}: {cell.id}")

    def say(self, line):
        self.close()
        self.progress.console.print(line, markup=False, highlight=False)

    def close(self):
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.path = self.task = None


@contextlib.contextmanager
def cells():
    """A `CellProgress` for the block."""
    text = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(), transient=True) as progress:
        shown = CellProgress(progress)
        try:
            yield shown
        finally:
            shown.close()
