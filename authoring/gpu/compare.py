"""Step 3: executed notebooks against the stored outputs, cell by cell, by nbval's rules and our tolerances.

Nothing is executed twice where the lesson does the same work under both profiles: its run of step 2 is
compared. A lesson that takes larger sizes under PROFILE=gpu is run once more with PROFILE=cpu, because a
perplexity on other tokens is another number. Names of devices ("cuda:0", "cpu") count as equal.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from authoring.gpu import lessons
from authoring.gpu.plan import Settings
from authoring.gpu.results import Results
from authoring.project import Project, key_of

TITLE = "Executed notebooks against the stored outputs"


def measure_into(settings: Settings, results: Results) -> None:
    """Add a row a lesson: cells compared, and the cells that leave their tolerance, with what differs.

    Args:
        settings: of the run.
        results: gets the rows, "lesson" is the lesson's key.
    """
    from authoring.verify import differences

    end = time.monotonic() + settings.seconds
    files = Project(Path(settings.root)).notebooks("solutions", settings.lessons)
    results.forget(lesson=[key_of(file) for file in files])
    own_sizes = [file for file in files
                 if has_gpu_sizes(nbformat.read(file, as_version=4)) and not settings.small]
    results.note(run_again_with_cpu_sizes=[key_of(file) for file in own_sizes])
    for file in files:
        if file not in own_sizes:
            _compare(settings, file, "lessons", results, differences)
    for first in range(0, len(own_sizes), settings.jobs):
        some = own_sizes[first : first + settings.jobs]
        left = Settings(**vars(settings) | {"seconds": end - time.monotonic()})
        lessons.run_all(left, some, "lessons-cpu-sizes", "cpu", _Rows())
        for file in some:
            _compare(settings, file, "lessons-cpu-sizes", results, differences)


class _Rows:
    """Rows that nobody keeps: the notebooks are what counts."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, **row: Any) -> None:
        """Keep a row here.

        Args:
            **row: its entries.
        """
        self.rows.append(row)


def _compare(settings: Settings, file: Path, folder: str, results: Results,
             differences: Callable[[NotebookNode, NotebookNode], dict]) -> None:
    key, path = key_of(file), settings.folder / folder / file.name
    if not path.exists():
        results.add(lesson=key, error="was not executed")
        return
    try:
        found = differences(nbformat.read(file, as_version=4), nbformat.read(path, as_version=4))
    except Exception as error:  # half a notebook
        results.add(lesson=key, error=f"{type(error).__name__}: {error}")
        return
    differing = {name: why for name, why in found.items() if why}
    results.add(lesson=key, **{"cells compared": len(found), "cells that differ": len(differing),
                               "which": differing})


def has_gpu_sizes(notebook: NotebookNode) -> bool:
    """Whether a lesson takes other sizes under PROFILE=gpu.

    Args:
        notebook: the lesson's.

    Returns:
        True when a code cell besides the parameters names PROFILE.
    """
    return any("PROFILE" in cell.source for cell in notebook.cells
               if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []))
