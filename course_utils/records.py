"""Measurements that a learner's machine may not be able to make, kept as JSON files in recorded/.

Each file holds its results and where they come from: machine, versions, date, commit.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from course_utils import measure

# Beside the package in a checkout; installed beside it by pip.
FOLDER = Path(__file__).resolve().parent.parent / "recorded"


def load(name: str) -> dict[str, Any] | None:
    """What `save` wrote under a name.

    Args:
        name: of the record, the name of its file without ".json".

    Returns:
        A dict with "provenance" and "results"; None if it was never recorded.
    """
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def save(name: str, results: Any, **more: Any) -> Path:
    """Write results with this machine's card.

    Args:
        name: of the record, the name of its file without ".json".
        results: anything JSON can hold.
        **more: added to the provenance, for example versions=... or driver=...

    Returns:
        Path of the file in recorded/.
    """
    FOLDER.mkdir(exist_ok=True)
    record = {"provenance": asdict(measure.machine_card()) | more, "results": results}
    path = FOLDER / f"{name}.json"
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    os.replace(aside, path)
    return path


def provenance_line(record: dict[str, Any]) -> str:
    """Where a record comes from, for printing beside its numbers.

    Args:
        record: what `load` returned.

    Returns:
        One line: date, machine, versions, commit.
    """
    where = record["provenance"]
    gpu = f", {where['gpu']}" if where.get("gpu") else ""
    versions = f"torch {where['torch']}, transformers {where['transformers']}"
    return (f"recorded {where['date']} on {where['cpu']} with {where['cores']} cores{gpu}, "
            f"{versions}, commit {where['commit'] or 'unknown'}")
