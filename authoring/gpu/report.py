"""The report of a GPU run: report.json for programs, report.md for people. Written anew after each step."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from authoring.gpu.plan import STEPS
from authoring.sync import replace_file
from course_utils.errors import CourseError, read_json


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of an earlier run.

    Args:
        folder: that it wrote into.

    Returns:
        A line a step, as `run.gpu_run` returns them; [] when there was none.

    Raises:
        CourseError: its file is damaged.
    """
    path, advice = folder / "report.json", "remove it, or name another folder with --out"
    if not path.exists():
        return []
    lines = read_json(path, advice).get("steps")
    if not isinstance(lines, list) or any(
            not isinstance(line, dict) or line.get("step") not in STEPS for line in lines):
        raise CourseError(f"{path} is damaged (it has no list of steps): {advice}.")
    return lines


def write(folder: Path, lines: list[dict[str, Any]]) -> None:
    """Write both files from the steps' lines and from their result files.

    Args:
        folder: of the run.
        lines: a line a step.
    """
    replace_file(folder / "report.json", json.dumps({"steps": lines}, indent=1) + "\n")
    replace_file(folder / "report.md", text(folder, lines))


def text(folder: Path, lines: list[dict[str, Any]]) -> str:
    """The report: what became of each step, then the rows of each.

    Args:
        folder: of the run.
        lines: a line a step.

    Returns:
        Markdown.
    """
    from course_utils import records

    overview = [{"step": line["step"], "state": line["state"], "seconds": line["seconds"],
                 "limit (s)": line["limit"], "why": line.get("error", "")} for line in lines]
    parts = ["# GPU run", table(overview)]
    for line in lines:
        step = STEPS[line["step"]]
        record = records.load(step.record, folder=folder / "recorded")
        if record is None:
            continue
        results = dict(record["results"])
        rows, columns = results.pop("rows"), results.pop("columns")
        parts.append(f"## {line['step']}: {results.pop('title', '')}")
        parts.append(records.provenance_line(record))
        parts += [f"- {key}: {_cell(value)}" for key, value in results.items()]
        parts.append(table(rows, columns))
    return "\n\n".join(part for part in parts if part) + "\n"


def table(rows: list[dict[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Rows as a Markdown table.

    Args:
        rows: value by column.
        columns: their order; that of the rows' entries when left out.

    Returns:
        Markdown, "" when there are no rows.
    """
    columns = columns or list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(c)) for c in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return "; ".join(map(_cell, value))
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_cell(item)}" for key, item in value.items())
    return " ".join(str(value).replace("|", "/").split())
