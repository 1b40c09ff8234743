"""Side-by-side measurements: `course bench` runs them, prints their tables and keeps them in recorded/.

A bench is a module of this package with

    TITLE = "one line that says what is compared"
    RATIO_OF = "seconds"        # optional: this column, divided by its value in the first row, is shown too
    def bench() -> list[dict]:  # one row for each thing compared, all with the same keys; none when nothing
                                # can be measured here (it prints why, and the record stays as it is)

Figures of one bench are measured in one run, one after the other, and read as ratios.
"""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from types import ModuleType
from typing import Any


def names() -> list[str]:
    """Names of all benches.

    Returns:
        The names in order.
    """
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load(name: str) -> ModuleType:
    """The module of a bench.

    Args:
        name: of the bench.

    Returns:
        The module, with `TITLE` and `bench`.

    Raises:
        ValueError: unknown name, or a module that is no bench.
    """
    if name not in names():
        raise ValueError(f"no bench {name!r}: there are {', '.join(names()) or 'none'}.")
    module = importlib.import_module(f"{__name__}.{name}")
    for needed in ("TITLE", "bench"):
        if not hasattr(module, needed):
            raise ValueError(f"authoring/bench/{name}.py has no {needed}.")
    return module


SAME = ("cpu", "cores", "threads", "gpu", "torch", "transformers")  # of all rows of a record


def resume(
    name: str, title: str, runs: dict[tuple, dict[str, Any]], measure: Callable[..., dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows of a bench that takes long: those that its record holds are not measured again.

    Each new row is kept at once, so the run can be interrupted.

    Args:
        name: of the record, "bench_...".
        title: of the table.
        runs: arguments of `measure` -> what names the row, in the order of the table.
        measure: called as measure(*arguments), returns the rest of the row.

    Returns:
        All rows, in the order of `runs`.

    Raises:
        CourseError: rows are missing, and those of the record come from another machine, other versions or
            another number of threads: the record names one of each.
    """
    from course_utils import measure as here
    from course_utils import records
    from course_utils.errors import CourseError

    kept = records.load(name)
    known = kept["results"]["rows"] if kept else []
    rows = {run: next((row for row in known if keys.items() <= row.items()), None)
            for run, keys in runs.items()}
    if known and None in rows.values():
        before, now = kept["provenance"], asdict(here.machine_card())
        other = [f"{what} {before[what]} and not {now[what]}" for what in SAME if before[what] != now[what]]
        if other:
            raise CourseError(f"recorded/{name}.json holds rows made with {', '.join(other)}. "
                              "Go on there, or move the file away to begin anew")
    for run, keys in runs.items():
        if rows[run] is None:
            rows[run] = keys | measure(*run)
            records.save(name, {"title": title, "rows": [row for row in rows.values() if row]})
            print(rows[run], flush=True)
    return list(rows.values())


def with_ratio(rows: list[dict[str, Any]], column: str | None) -> list[dict[str, Any]]:
    """Rows with a column "ratio": a column divided by its value in the first row.

    Args:
        rows: of a table.
        column: the column to divide; None adds nothing.

    Returns:
        New rows, or the same when nothing is added.
    """
    if not column or not rows:
        return rows
    base = rows[0][column]
    return [row | {"ratio": row[column] / base} for row in rows]


def main(chosen: Sequence[str] = ()) -> int:
    """Run benches, print their tables and write recorded/bench_<name>.json.

    Args:
        chosen: names of benches; all when empty.

    Returns:
        The exit code: 1 when a bench failed. The others still run.

    Raises:
        ValueError: unknown name, or a module that is no bench.
    """
    from rich.console import Console
    from rich.table import Table

    from course_utils import measure, records

    console = Console()
    modules = {name: load(name) for name in chosen or names()}
    if not modules:
        console.print("There is no bench in authoring/bench/.")
        return 0
    console.print(str(measure.machine_card()), markup=False, highlight=False)
    failed = False
    for name, module in modules.items():
        try:
            with console.status(f"{name}: {module.TITLE}"):
                rows = with_ratio(module.bench(), getattr(module, "RATIO_OF", None))
        except Exception as error:  # one engine missing must not hide the others' figures
            console.print(f"{name}: failed with {type(error).__name__}: {error}", markup=False)
            failed = True
            continue
        if not rows:
            continue
        table = Table(title=module.TITLE)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        for column in columns:
            table.add_column(column)
        for row in rows:
            table.add_row(*(_figure(row.get(column, "")) for column in columns))
        console.print(table)
        path = records.save(f"bench_{name}", {"title": module.TITLE, "rows": rows})
        console.print(f"written to {path}", markup=False)
    return int(failed)


def _figure(value: Any) -> str:
    if isinstance(value, bool | str) or value is None:
        return str(value)
    if isinstance(value, list | dict):
        return f"({len(value)})"  # too much for a table; the record holds it
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
