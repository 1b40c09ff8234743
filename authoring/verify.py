"""nbval plug-in: compare a notebook's numbers with the tolerance that each cell states.

    pytest --nbval -p authoring.verify solutions/

A cell with metadata ``{"course": {"tolerance": 0.02, "atol": 0.001}}`` passes when each printed number is
within ``atol + tolerance * |reference|`` of the kept one and everything around the numbers is the same,
whitespace aside. All other cells are compared by nbval as they are, byte by byte.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nbformat import NotebookNode
from nbformat.notebooknode import from_dict
from nbval.plugin import IPyNbCell

from authoring.project import Project
from authoring.sync import normalise, passing

# A number not glued to a word before it: 26.5, -1e-3, 134,515,008, 3.2x; not the 8 of INT8.
NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?")


def within(reference: str, text: str, tolerance: float, atol: float = 0.0) -> bool:
    """Whether two texts are the same but for numbers that are close and runs of whitespace.

    Args:
        reference: the kept text.
        text: the new one.
        tolerance: relative to the kept number.
        atol: absolute tolerance.

    Returns:
        True when they are.
    """
    if _words(reference) != _words(text):
        return False
    pairs = zip(_numbers(reference), _numbers(text), strict=True)
    return all(abs(new - old) <= atol + tolerance * abs(old) for old, new in pairs)


def _words(text: str) -> str:
    return " ".join(NUMBER.sub(" # ", text).split())


def _numbers(text: str) -> list[float]:
    return [float(found.replace(",", "").replace("−", "-")) for found in NUMBER.findall(text)]


@pytest.hookimpl
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the cells of notebooks be compared with their tolerance.

    Args:
        items: all that pytest will run.
    """
    for item in items:
        if isinstance(item, IPyNbCell):
            item.compare_outputs = _tolerant(item)


@pytest.hookimpl
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a cell that was never executed: it has nothing to be compared with.

    Args:
        item: what pytest runs next.
    """
    if isinstance(item, IPyNbCell) and item.options["check"] and item.cell.execution_count is None:
        pytest.fail(f"cell {item.cell.get('id')!r} was never executed, so nothing is compared", pytrace=False)


def _tolerant(item: IPyNbCell) -> Callable[..., bool]:
    """The comparison of nbval, after numbers within the cell's tolerance were replaced by the kept ones."""
    compare = item.compare_outputs
    course = item.cell.metadata.get("course", {})

    def compare_outputs(
        test: list[dict[str, Any]], reference: list[dict[str, Any]], skip_compare: Sequence[str] | None = None
    ) -> bool:
        test = [from_dict(o) for o in test if not passing(o)]
        reference = [o for o in reference if not passing(o)]
        if "tolerance" in course or "atol" in course:
            for new, old in zip_longest(test, reference):
                if new and old:
                    _soften(old, new, course.get("tolerance", 0.0), course.get("atol", 0.0))
        return compare(test, reference, skip_compare)

    return compare_outputs


# What a device is called says where a number was made, not what it is.
DEVICE = re.compile(r"\b(?:cuda(?::\d+)?|mps(?::\d+)?|cpu)\b")
# Fields that nbval leaves out of its comparison, pictures besides: another machine draws other pixels.
SKIPPED = ("metadata", "traceback", "text/latex", "prompt_number", "output_type", "name", "execution_count",
           "application/vnd.jupyter.widget-view+json", "image/png", "image/jpeg")  # fmt: skip


def differences(reference: NotebookNode, executed: NotebookNode) -> dict[str, str]:
    """Compare two runs of a notebook cell by cell, as nbval and the cells' tolerances do. Executes nothing.

    Args:
        reference: the notebook with its kept outputs.
        executed: the same notebook, run elsewhere; cells are found by their ids. Names of devices count as
            equal.

    Returns:
        What differs, by the id of each cell compared: "" where nothing does. Cells that nbval ignores
        (timings) and cells without kept outputs and new ones are left out.
    """
    new = {cell.id: cell for cell in executed.cells if cell.cell_type == "code"}
    found = {}
    for cell in reference.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type != "code" or {"nbval-ignore-output", "nbval-skip", "parameters"} & set(tags):
            continue
        other = new.get(cell.id)
        if other is None or other.get("execution_count") is None:
            found[cell.id] = "was not executed"
        elif cell.outputs or other.outputs:
            found[cell.id] = _difference(cell, other)
    return found


def _difference(cell: NotebookNode, other: NotebookNode) -> str:
    comparison = _Comparison(cell)
    # A warning between two prints leaves two pieces of standard output: normalise joins them.
    outputs = [[_without_device(o) for o in normalise(each.outputs, 1)] for each in (other, cell)]
    return "" if _tolerant(comparison)(*outputs) else comparison.why or "differs"


def _without_device(output: Any) -> Any:
    """A copy whose texts name no device."""
    if isinstance(output, dict):
        return from_dict({key: _without_device(value) for key, value in output.items()})
    if isinstance(output, list):
        return [_without_device(value) for value in output]
    return DEVICE.sub("device", output) if isinstance(output, str) else output


class _Comparison:
    """What nbval's comparison asks of a collected cell, without pytest."""

    colors = SimpleNamespace(FAIL="", ENDC="", OKBLUE="")
    parent = SimpleNamespace(skip_compare=SKIPPED)

    def __init__(self, cell: NotebookNode) -> None:
        self.cell, self.why, self.comparison_traceback = cell, "", []

    def compare_outputs(self, test: Any, reference: Any, skip_compare: Any = None) -> bool:
        """Compare as nbval does, and keep why two outputs differ."""
        same = IPyNbCell.compare_outputs(self, test, reference, skip_compare)
        if not same and not self.why:
            self.why = " ".join(self.comparison_traceback)[:300]
        return same

    def sanitize(self, text: str) -> str:
        """Nothing is replaced before the comparison."""
        return text

    def format_output_compare(self, key: str, left: Any, right: Any) -> None:
        """Keep the first line that differs; nbval calls this at the first difference."""
        lines = zip_longest(str(left).splitlines(), str(right).splitlines(), fillvalue="")
        old, new = next(((a, b) for a, b in lines if a != b), ("", ""))
        self.why = f"kept {old.strip()[:150]!r}, now {new.strip()[:150]!r}"


def _soften(old: NotebookNode, new: NotebookNode, tolerance: float, atol: float) -> None:
    """Where `new` agrees with `old` within the tolerance, make it equal."""
    for place_old, place_new in ((old, new), (old.get("data", {}), new.get("data", {}))):
        for key in place_old.keys() & place_new.keys():
            texts = place_old[key], place_new[key]
            if key != "output_type" and all(isinstance(t, str) for t in texts):
                if within(*texts, tolerance, atol):
                    place_new[key] = place_old[key]


def verify(project: Project, numbers: Sequence[str] = (), parameters: dict[str, Any] | None = None,
           threads: int | None = None) -> int:
    """Execute solutions and compare their outputs with the kept ones.

    Args:
        project: the course.
        numbers: which lessons, as in `Project.lessons`.
        parameters: replace those of the notebooks' parameters cell, such as {"DEVICE": "cuda"}.
        threads: how many the kernels compute with; None leaves it to them. Sums are added up in another order
            then, so a figure that moves shows that it is thin.

    Returns:
        The exit code of pytest.

    Raises:
        ValueError: there is no notebook, or no such lesson.
    """
    files = project.notebooks("solutions", numbers)
    with contextlib.ExitStack() as stack:
        if parameters:
            files = [stack.enter_context(_with_parameters(file, parameters)) for file in files]
        command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-p", "authoring.verify"]
        command += ["-p", "no:cacheprovider", "--rootdir", str(project.root), "-q", *map(str, files)]
        counts = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL") if threads}
        return subprocess.run(command, cwd=project.root, env=os.environ | counts).returncode


@contextlib.contextmanager
def _with_parameters(file: Path, parameters: dict[str, Any]) -> Iterator[Path]:
    """A copy, for the block, whose parameters cell ends in these assignments: beside `file`, if possible."""
    import nbformat

    from authoring.execute import check_parameters, read

    notebook = read(file)
    check_parameters(notebook, parameters, file.name)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
    with contextlib.ExitStack() as stack:
        folder = file.parent
        if not os.access(folder, os.W_OK):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        aside = folder / f".verify-{file.name}"
        stack.callback(aside.unlink, missing_ok=True)
        nbformat.write(notebook, aside)
        yield aside
