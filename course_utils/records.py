"""Measurements that a learner's machine may not be able to make, kept as JSON files in recorded/.

Each file holds its results and where they come from: machine, versions, date, commit.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

from course_utils import measure

# Beside the package in a checkout; installed beside it by pip.
FOLDER = Path(__file__).resolve().parent.parent / "recorded"


def load(name, folder=None):
    """What `save` wrote under that name: a dict with "provenance" and "results"; None if it never ran."""
    path = Path(folder or FOLDER) / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def save(name, results, folder=None, **more):
    """Write results (anything JSON can hold) with this machine's card; returns the file's path.

    `folder` is recorded/ when left out. `more` is added to the provenance, for example versions=... or
    driver=...
    """
    folder = Path(folder or FOLDER)
    folder.mkdir(exist_ok=True)
    record = {"provenance": asdict(measure.machine_card()) | more, "results": results}
    path = folder / f"{name}.json"
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    os.replace(aside, path)
    return path


def gpu_table(name, columns):
    """What `course gpu-run` recorded, to stand beside a learner's own figures: these columns of its rows.

    Prints where the record comes from, and returns a table; without a record, a sentence that says so.
    Numbers have three digits. A row without a figure, because a format did not fit or a kernel is missing,
    says why in the column "error".
    """
    record = load(name)
    if record is None:
        return f"No recorded run yet: `course gpu-run --record` makes {name}.json on a machine with a GPU."
    print(provenance_line(record))
    rows = record["results"]["rows"]
    shown = [*columns, *({"error"} & {key for row in rows for key in row})]
    return measure.table([{column: _short(row.get(column)) for column in shown} for row in rows])


def _short(value):
    if value is None:
        return ""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def provenance_line(record):
    """One line that says where a record comes from, for printing beside its numbers."""
    where = record["provenance"]
    gpu = f", {where['gpu']}" if where.get("gpu") else ""
    versions = f"torch {where['torch']}, transformers {where['transformers']}"
    return (f"recorded {where['date']} on {where['cpu']} with {where['cores']} cores{gpu}, "
            f"{versions}, commit {where['commit'] or 'unknown'}")
