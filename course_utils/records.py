"""Measurements that a learner's machine may not be able to make, kept as JSON files in recorded/.

Each file holds its results and where they come from: machine, versions, date, commit.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas

from course_utils import measure, threads
from course_utils.errors import CourseError, read_json

# Beside the package in a checkout; installed beside it by pip.
FOLDER = Path(__file__).resolve().parent.parent / "recorded"
ADVICE = "get it back with `git checkout`, or remove it and record it anew"  # for one that is damaged


def load(name: str, folder: str | Path | None = None) -> dict[str, Any] | None:
    """What `save` wrote under a name.

    Args:
        name: of the record, the name of its file without ".json".
        folder: where it is; recorded/ when left out.

    Returns:
        A dict with "provenance" and "results"; None if it was never recorded.

    Raises:
        CourseError: the file is damaged.
    """
    path = Path(folder or FOLDER) / f"{name}.json"
    if not path.exists():
        return None
    record = read_json(path, ADVICE)
    if missing := {"provenance", "results"} - record.keys():
        raise CourseError(f"{path} is damaged (it has no {' and no '.join(sorted(missing))}): {ADVICE}.")
    return record


def save(name: str, results: Any, folder: str | Path | None = None, **more: Any) -> Path:
    """Write results with this machine's card.

    Args:
        name: of the record, the name of its file without ".json".
        results: anything JSON can hold.
        folder: where it is written; recorded/ when left out.
        **more: added to the provenance, for example versions=... or driver=...

    Returns:
        Path of the file.
    """
    folder = Path(folder or FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    provenance = asdict(measure.machine_card()) | {"waiting": threads.in_force()} | more
    record = {"provenance": provenance, "results": results}
    path = folder / f"{name}.json"
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    try:
        aside.write_text(text)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def gpu_table(name: str, columns: list[str], **only: Any) -> pandas.DataFrame | str:
    """What `course gpu-run` recorded, to stand beside a learner's own figures. Prints where it comes from.

    Args:
        name: of the record.
        columns: of the table. Where a row has no figure, because a format did not fit or a kernel is missing,
            a column "error" says why.
        **only: just the rows with these entries, for example dtype="float16".

    Returns:
        A table, numbers with three digits; without a record, a sentence that says so.
    """
    record = load(name)
    if record is None:
        return f"No recorded run yet: `course gpu-run --record` makes {name}.json on a machine with a GPU."
    print(provenance_line(record))
    rows = [row for row in record["results"]["rows"] if only.items() <= row.items()]
    shown = [*columns, *({"error"} & {key for row in rows for key in row})]
    return measure.table([{column: _short(row.get(column)) for column in shown} for row in rows])


def _short(value: Any) -> Any:
    if value is None:
        return ""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def provenance_line(record: dict[str, Any]) -> str:
    """Where a record comes from, for printing beside its numbers.

    Args:
        record: what `load` returned.

    Returns:
        One line: date, machine, threads where they are not as many as cores, versions, commit.
    """
    where = record["provenance"]
    gpu = f", {where['gpu']}" if where.get("gpu") else ""
    threads = where.get("threads", where["cores"])
    used = "" if threads == where["cores"] else f", {threads} thread{'s' * (threads != 1)}"
    versions = f"torch {where['torch']}, transformers {where['transformers']}"
    return (f"recorded {where['date']} on {where['cpu']} with {where['cores']} cores{used}{gpu}, "
            f"{versions}, commit {where['commit'] or 'unknown'}")
