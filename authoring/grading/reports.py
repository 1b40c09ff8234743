"""Results for others: tables for a learning platform, a page for each student."""

import collections
import csv
import html
import io
import os
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from authoring.grading.results import Grade, shown
from authoring.grading.submissions import without_ending

FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20", "\t", "\r", "\n")  # also of full width


def as_csv(grades: list[Grade], layout: str = "plain") -> str:
    """Results as a table.

    Args:
        grades: what was graded.
        layout: "plain" has a line for each graded cell, each submission and each student. "canvas" and
            "moodle" have a line for each student, as the gradebook of that platform imports them.

    Returns:
        CSV. A text that a spreadsheet would take for a formula begins with a quote.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    for row in {"plain": _plain_rows, "canvas": _canvas_rows, "moodle": _moodle_rows}[layout](grades):
        writer.writerow([_neutral(value) for value in row])
    return file.getvalue()


def _neutral(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def best(grades: list[Grade]) -> dict[tuple[str, str], dict[str, Grade]]:
    """What counts for each student: of several notebooks of one lesson the one with the most points.

    Args:
        grades: what was graded.

    Returns:
        (student, id) -> lesson -> result. What could not be graded is left out.
    """
    found = collections.defaultdict(dict)
    for graded in grades:
        lessons = found[graded.student, graded.id]
        before = lessons.get(graded.lesson)
        if not graded.error and (before is None or graded.points > before.points):
            lessons[graded.lesson] = graded
    return dict(found)


def _percent(points: float, maximum: float) -> float | str:
    return round(100 * points / maximum, 1) if maximum else ""


def _plain_rows(grades: list[Grade]) -> list[list[Any]]:
    rows = [["student", "submission", "lesson", "cell", "points", "maximum", "percent", "status", "notes"]]
    for graded in grades:
        start = [graded.student, shown(graded.submission), graded.lesson]
        for cell, answer in graded.answers.items():
            rows.append([*start, cell, answer.points, answer.maximum,
                         _percent(answer.points, answer.maximum), answer.status, ""])
        total = ("", "", "") if graded.error else (
            graded.points, graded.maximum, _percent(graded.points, graded.maximum))
        rows.append([*start, "total", *total, "", "; ".join(graded.remarks)])
    for (student, _), lessons in best(grades).items():
        points = sum(graded.points for graded in lessons.values())
        maximum = sum(graded.maximum for graded in lessons.values())
        rows.append([student, "", "", "all", points, maximum, _percent(points, maximum), "", ""])
    return rows


def _canvas_rows(grades: list[Grade]) -> list[list[Any]]:
    lessons = {graded.lesson: graded.maximum for graded in grades if not graded.error}
    rows = [["Student", "ID", "SIS User ID", "SIS Login ID", "Section", *lessons],
            ["    Points Possible", "", "", "", "", *lessons.values()]]
    for (student, id), found in best(grades).items():
        points = [found[key].points if key in found else "" for key in lessons]
        rows.append([student, id, "", "", "", *points])
    return rows


def _moodle_rows(grades: list[Grade]) -> list[list[Any]]:
    rows = [["Identifier", "Full name", "Assignment", "Grade", "Maximum Grade", "Feedback comments"]]
    for (student, id), found in best(grades).items():
        for key, graded in found.items():
            comment = "; ".join(f"{cell}: {answer.points:g} of {answer.maximum:g}"
                                for cell, answer in graded.answers.items())
            identifier = f"Participant {id}" if id else ""
            rows.append([identifier, student, key, graded.points, graded.maximum, comment])
    return rows


def page_names(submissions: Sequence[Path], released: Collection[str] = ()) -> list[str]:
    """A name for each submission's page, the shortest that tells it from the others.

    It is the file's name without ending. Where files are called alike, the names of as many folders as are
    needed stand before it: "alice_L" of alice/L.ipynb. So does one where the file still has the name that it
    was handed out under, or the pages of two calls would have one name. Names that a file system takes for
    one, since it does not tell capitals or ways to write an accent apart, count as equal.

    Args:
        submissions: paths of different files.
        released: names, without ending, that notebooks are handed out under.

    Returns:
        The names in the same order, all different.
    """
    parts = [without_ending(Path(os.path.abspath(path))).parts[1:] for path in submissions]
    depth = [2 if each[-1] in released and len(each) > 1 else 1 for each in parts]

    def names() -> list[str]:
        return [_end("_".join(each[-deep:])) for each, deep in zip(parts, depth, strict=True)]

    def alike() -> list[int]:
        keys = [unicodedata.normalize("NFC", name).casefold() for name in names()]
        counts = collections.Counter(keys)
        return [n for n, key in enumerate(keys) if counts[key] > 1]

    while longer := [n for n in alike() if depth[n] < len(parts[n])]:
        for n in longer:
            depth[n] += 1
    clash, found = set(alike()), names()  # a_b/L and a/b_L, or names that are too long
    return [f"{name}_{n + 1}" if n in clash else name for n, name in enumerate(found)]


MOST_BYTES = 180  # of a page's name: with a number and an ending it is below the 255 of file systems


def _end(name: str) -> str:
    """The end of a name, as much as a file system takes."""
    content = os.fsencode(name)
    return content[-MOST_BYTES:].decode("utf-8", "ignore") if len(content) > MOST_BYTES else name


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>body {{ font-family: sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }}
pre {{ background: #f4f4f4; color: #111; padding: .7em; overflow-x: auto }}</style></head>
<body><h1>{title}</h1>
<p>{name}</p>
{body}
</body></html>
"""
MOST_SOURCE = 20_000  # letters of an answer that a page shows


def feedback_page(graded: Grade) -> str:
    """A page for a student: points, each check's message, the answer's source as text. No script runs in it.

    Args:
        graded: what was graded.

    Returns:
        HTML. It names the file, not the instructor's folders.
    """
    show = html.escape
    body = [f"<p>{show(note)}</p>" for note in graded.remarks]
    for cell, answer in graded.answers.items():
        body.append(f"<h2>{show(cell)}: {answer.points:g} of {answer.maximum:g}</h2>")
        body.append(f"<pre>{show(answer.message)}</pre>")
        if answer.source:
            cut = answer.source[:MOST_SOURCE]
            cut += f"\n[cut after {MOST_SOURCE:,} letters]" * (len(answer.source) > MOST_SOURCE)
            body.append(f"<details><summary>your answer</summary><pre>{show(cut)}</pre></details>")
    title = "not graded" if graded.error else f"{graded.points:g} of {graded.maximum:g} points"
    return PAGE.format(title=title, name=show(shown(Path(graded.submission.name))),
                       body="\n".join(body))
