"""A notebook that shows a record says where it was made: is that still the record in recorded/?"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from course_utils import records
from course_utils.errors import read_json

if TYPE_CHECKING:
    from authoring.project import Project

PRINTED = re.compile(r"^recorded \d{4}-\d\d-\d\d on .*$", flags=re.MULTILINE)


def replaced(project: Project, outputs: dict[str, list]) -> list[tuple[str, str]]:
    """Find what a notebook shows of records that were made again since it was executed.

    Args:
        project: the course, with its recorded/.
        outputs: of its cells, by their ids.

    Returns:
        For each such line the id of its cell and the line.
    """
    kept = [read_json(path, records.ADVICE) for path in sorted((project.root / "recorded").glob("*.json"))]
    lines = {records.provenance_line(record) for record in kept if "provenance" in record}
    return [
        (id, line)
        for id, shown in outputs.items()
        for output in shown
        for line in PRINTED.findall(output.get("text", ""))
        if line not in lines
    ]
