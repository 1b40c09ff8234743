"""Execute one notebook with papermill in a fresh kernel, watching its time and memory."""

from __future__ import annotations

import ast
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import papermill
import psutil
from IPython.core.inputtransformer2 import TransformerManager
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

if TYPE_CHECKING:
    from nbformat import NotebookNode
    from papermill.engines import NotebookExecutionManager

OFFLINE = Path(__file__).resolve().parent / "offline"


@dataclass(frozen=True)
class Execution:
    """An executed notebook.

    Attributes:
        notebook: with its outputs, as far as it came.
        seconds: how long it took, the start of the kernel included.
        peak_bytes: resident memory of the kernel and its child processes together, at its highest.
        peak_cell: id of the cell that ran then.
        error: None, or "cell 'name': ValueError: ...".
        traceback: the kernel's text of the error, or "".
    """

    notebook: NotebookNode
    seconds: float
    peak_bytes: int
    peak_cell: str
    error: str | None
    traceback: str


class CourseEngine(NBClientEngine):
    """The engine of papermill, telling when each cell starts."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: NotebookExecutionManager,
        kernel_name: str,
        *,
        seen: dict[str, Any],
        on_cell: Callable[[int, int, NotebookNode], None] | None = None,
        save_to: str | None = None,
        **kwargs: Any,
    ) -> NotebookNode | None:
        """Execute a notebook; papermill calls this.

        Args:
            nb_man: papermill's manager of the notebook.
            kernel_name: the kernel to start.
            seen: gets "notebook" and "cell", the id of the cell started last: papermill itself does not hand
                over a notebook that failed.
            on_cell: called with (index, number of cells, cell) when a cell starts.
            save_to: a path that gets the notebook as far as it is, each time a cell starts.
            **kwargs: papermill's own options.

        Returns:
            What papermill's engine returns.
        """
        seen["notebook"] = nb_man.nb
        start = nb_man.cell_start

        def cell_start(cell: NotebookNode, cell_index: int | None = None, **more: Any) -> None:
            seen["cell"] = cell.id
            if on_cell:
                on_cell(cell_index, len(nb_man.nb.cells), cell)
            started = start(cell, cell_index, **more)
            if save_to:  # after papermill has noted that the cell was begun
                nbformat.write(nb_man.nb, save_to)
            return started

        nb_man.cell_start = cell_start
        return super().execute_managed_notebook(nb_man, kernel_name, **kwargs)


papermill_engines.register("course", CourseEngine)


def execute(
    notebook: NotebookNode | Path,
    folder: Path,
    *,
    parameters: dict[str, Any] | None = None,
    on_cell: Callable[[int, int, NotebookNode], None] | None = None,
    timeout: int | None = None,
    offline: bool = False,
    keep_going: bool = False,
    save_to: str | None = None,
) -> Execution:
    """Execute a notebook. Does not raise when a cell does: see `Execution.error`.

    Args:
        notebook: the notebook itself or the path of its file.
        folder: the working directory.
        parameters: papermill parameters, put in a cell after the one tagged "parameters".
        on_cell: called with (index, number of cells, cell) when a cell starts.
        timeout: seconds a cell may take, None for no limit.
        offline: refuse every connection that leaves the machine.
        keep_going: run the cells after a failing one too; `errors` lists all that failed.
        save_to: a path that gets the notebook as far as it is whenever a cell starts.

    Returns:
        The notebook with its outputs, its time and memory, and its error if there was one.

    Raises:
        ValueError: a parameter would not reach the notebook's code.
        Exception: the notebook cannot be read, or no kernel starts.
    """
    if isinstance(notebook, Path):
        name, notebook = notebook.name, read(notebook)
    else:
        name = "the notebook"
    check_parameters(notebook, parameters or {}, name)
    seen, error, traceback = {}, None, ""
    started = time.monotonic()
    with PeakMemory(seen) as memory, _environment(offline):
        try:
            papermill.execute_notebook(
                notebook,
                None,
                parameters=parameters or {},
                engine_name="course",
                kernel_name="python3",
                language="python",  # not every program that saves notebooks notes it
                progress_bar=False,
                request_save_on_cell_execute=False,
                cwd=folder,
                start_timeout=120,
                execution_timeout=timeout,
                extra_arguments=["--log-level=CRITICAL"],  # the kernel's own remarks, not the lesson's
                on_cell=on_cell,
                seen=seen,
                save_to=save_to,
                allow_errors=keep_going,
            )
        except PapermillExecutionError as failed:
            error = f"{failed.ename}: {failed.evalue}"
            traceback = "\n".join(failed.traceback)
        except Exception as failed:  # a kernel that died, a cell that took too long
            if not seen:
                raise
            error = traceback = f"{type(failed).__name__}: {failed}"
    seconds = time.monotonic() - started
    node = seen["notebook"]
    node.cells = [c for c in node.cells if "papermill-error-cell-tag" not in c.metadata.get("tags", [])]
    if error:
        failed = errors(node)
        error = f"cell {next(iter(failed), seen.get('cell'))!r}: {error}"
    return Execution(node, seconds, memory.peak, memory.cell, error, traceback)


def read(path: Path) -> NotebookNode:
    """Read a notebook of any format, as the present one: its cells have ids.

    Args:
        path: of its file.

    Returns:
        The notebook.

    Raises:
        Exception: it cannot be read.
    """
    return nbformat.v4.upgrade(nbformat.read(path, as_version=4))


def check_parameters(notebook: NotebookNode, names: Iterable[str], where: str) -> None:
    """Refuse a notebook in which parameters would not act: papermill would only warn, and run it without.

    Parameters are put after the one cell tagged "parameters". They act when no cell sets them again after
    it, and none uses them before.

    Args:
        notebook: what would be executed; nothing of it is changed.
        names: of the parameters that are given.
        where: what the notebook is called in the error.

    Raises:
        ValueError: they would not act; names the cell.
    """
    given = set(names)
    if not given:
        return
    mend = "Mend it, or take a fresh copy of the notebook and put your answers into it."
    listed = ", ".join(sorted(given))
    tagged = [n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1 or notebook.cells[tagged[0]].cell_type != "code":
        found = {0: "no cell is", 1: "a text cell is"}.get(len(tagged), f"{len(tagged)} cells are")
        raise ValueError(f"{where}: {found} tagged 'parameters', so {listed} cannot be set from outside. The "
                         f"tag belongs to the one code cell that sets PROFILE, LM and DEVICE. {mend}")
    earlier = [n for n, cell in enumerate(notebook.cells)
               if "injected-parameters" in cell.metadata.get("tags", [])]  # papermill replaces this one
    place = (earlier or tagged)[0]
    for n, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or n in earlier:
            continue
        used, assigned = _names(cell.source)
        early, again = (given & used if n <= place else set()), (given & assigned if n > place else set())
        if early or again:
            does = f"{'uses' if early else 'sets'} {', '.join(sorted(early or again))}"
            when = "before the parameters are set" if early else "again, after the cell tagged 'parameters'"
            raise ValueError(f"{where}, cell {cell.get('id', n)!r} {does} {when}, so setting it from outside "
                             f"would not act. {mend}")


def _names(source: str) -> tuple[set[str], set[str]]:
    """Names that a cell uses and that it assigns when it runs; bodies of functions run later, if at all."""
    used, assigned = set(), set()
    try:
        left = [ast.parse(TransformerManager().transform_cell(source))]
    except SyntaxError:  # it will say so itself
        return used, assigned
    while left:
        node = left.pop()
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else assigned).add(node.id)
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            used.add(node.target.id)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            left += ast.iter_child_nodes(node)
    return used, assigned


def errors(notebook: NotebookNode) -> dict[str, str]:
    """The error of each cell that failed and may not, by the cell's id: "ValueError: ..."."""
    return {
        cell.id: f"{output.ename}: {output.evalue}"
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", [])
    }


class PeakMemory:
    """Highest resident memory, in bytes, of the child processes that start in the block: of the kernel here.

    A forked process that runs no program of its own, or none yet, is left out: what it shows is its parent's
    memory.

    Args:
        seen: `seen["cell"]` names the cell that runs.

    Attributes:
        peak: the highest so far, in bytes.
        cell: the cell during which it was reached.
    """

    interval = 0.1  # seconds

    def __init__(self, seen: dict[str, Any]) -> None:
        self.peak, self.cell, self._seen = 0, "", seen

    def __enter__(self) -> PeakMemory:
        self._others = {process.pid for process in psutil.Process().children(recursive=True)}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self.interval):
            total = highest = 0
            for process in psutil.Process().children(recursive=True):
                if process.pid in self._others:
                    continue
                with contextlib.suppress(psutil.Error, OSError, ValueError):
                    if not _runs_a_program(process):
                        continue
                    total += process.memory_info().rss
                    highest = max(highest, _high_water(process.pid))
            if max(total, highest) > self.peak:
                self.peak, self.cell = max(total, highest), self._seen.get("cell", "")


def _runs_a_program(process: psutil.Process) -> bool:
    """False between fork and exec, when a process still has its parent's command line, or none."""
    command, parent = process.cmdline(), process.parent()
    return bool(command) and (parent is None or command != parent.cmdline())


def _high_water(pid: int) -> int:
    """What Linux noted as the highest resident memory of a process, which catches spikes between samples."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return 0
    for line in status.read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


@contextlib.contextmanager
def _environment(offline: bool) -> Iterator[None]:
    """Variables that the kernel inherits, put back after the block."""
    before = dict(os.environ)
    if offline:
        paths = [str(OFFLINE), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
