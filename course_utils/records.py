"""Measurements that a learner's machine may not be able to make, kept as JSON files in recorded/.

Each file holds its results and where they come from: machine, versions, date, commit.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

from course_utils import measure, threads

# Beside the package in a checkout; installed beside it by pip.
FOLDER = Path(__file__).resolve().parent.parent / "recorded"


def load(name):
    """What `save` wrote under that name: a dict with "provenance" and "results"; None if it never ran."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def save(name, results, **more):
    """Write results (anything JSON can hold) with this machine's card; returns the file's path.

    `more` is added to the provenance, for example versions=... or driver=...
    """
    FOLDER.mkdir(exist_ok=True)
    provenance = asdict(measure.machine_card()) | {"waiting": threads.in_force()} | more
    record = {"provenance": provenance, "results": results}
    path = FOLDER / f"{name}.json"
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    os.replace(aside, path)
    return path


def provenance_line(record):
    """One line that says where a record comes from, for printing beside its numbers."""
    where = record["provenance"]
    gpu = f", {where['gpu']}" if where.get("gpu") else ""
    versions = f"torch {where['torch']}, transformers {where['transformers']}"
    return (f"recorded {where['date']} on {where['cpu']} with {where['cores']} cores{gpu}, "
            f"{versions}, commit {where['commit'] or 'unknown'}")
