"""How far you are: the exercises of your notebooks, as the checks left them when you last saved.

`show()` shows a table of the notebooks beside this one, and a link to the first exercise that has not passed.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

LIBRARY = "passed with the library's function"  # status of an exercise that was skipped in this way
OPEN = "not attempted"
CHECK = re.compile(r'^check\("(\w+\.\w+)"', re.MULTILINE)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Progress:
    """How far a learner is in one notebook.

    Attributes:
        path: of the notebook.
        title: its first heading.
        statuses: id of each exercise, in the notebook's order -> "passed", "failed", "not attempted", or
            `LIBRARY` when it passed with the library's own function.
        place: the heading above the first exercise that has not passed; None when all have.
    """

    path: Path
    title: str
    statuses: dict[str, str]
    place: str | None

    @property
    def link(self) -> str:
        """Where the first exercise that has not passed stands, as Jupyter's links have it."""
        name = quote(self.path.name)
        return f"{name}#{quote(self.place.replace(' ', '-'))}" if self.place else name


def statuses(notebook: dict[str, Any]) -> dict[str, str]:
    """What came of the exercises, as the checks left it in the metadata of their outputs.

    Args:
        notebook: an executed notebook, as its file has it.

    Returns:
        Id of the exercise -> "passed", "failed", "not attempted", or `LIBRARY` when it passed with the
        library's own function. An exercise whose check never ran is left out.
    """
    found = {}
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            mark = output.get("metadata", {}).get("course", {})
            if "exercise" in mark:
                found[mark["exercise"]] = LIBRARY if mark.get("library") else mark["status"]
    return found


def read(folder: str | Path = ".") -> list[Progress]:
    """How far a learner is in each lesson.

    Args:
        folder: with the notebooks, which are called NN_key.ipynb. One that cannot be read is left out.

    Returns:
        One entry for each lesson, in order.
    """
    found = []
    for path in sorted(Path(folder).glob("[0-9][0-9]_*.ipynb")):
        if re.fullmatch(r"\d\d_[a-z][a-z0-9_]*", path.stem):  # not a copy such as 04_gptq-Copy1
            try:
                found.append(_progress(path, json.loads(path.read_text(encoding="utf-8"))))
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue  # being written, or no notebook
    return found


def markdown(folder: str | Path = ".") -> str:
    """The table that `show` shows.

    Args:
        folder: with the notebooks.

    Returns:
        Markdown: a row for each lesson, and where to go on.
    """
    lessons = [lesson for lesson in read(folder) if lesson.statuses]
    if not lessons:
        return "There is no lesson's notebook beside this one."
    rows = ["| lesson | passed | with the library's function | failed | open |", "|---|---|---|---|---|"]
    total: Counter[str] = Counter()
    for lesson in lessons:
        counts = Counter(lesson.statuses.values())
        total += counts
        rows.append(f"| [{lesson.title}]({quote(lesson.path.name)}) | {_cells(counts)} |")
    rows.append(f"| **all** | {_cells(total)} |")
    following = next((lesson for lesson in lessons if lesson.place), None)
    if following is None:
        return "\n".join([*rows, "", "All have passed."])
    go_on = f"Go on with [{following.title}, {following.place}]({following.link})."
    return "\n".join([*rows, "", go_on])


def show(folder: str | Path = ".") -> None:
    """Show how far you are. Save your notebooks first: their files are read.

    Args:
        folder: with the notebooks; the one that this notebook is in when left out.
    """
    from IPython.display import Markdown, display

    display(Markdown(markdown(folder)))


def _progress(path: Path, notebook: dict[str, Any]) -> Progress:
    done = statuses(notebook)
    title, heading, place, found = path.stem, "", None, {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            headings = HEADING.findall(source)
            title = headings[0] if headings and title == path.stem else title
            heading = headings[-1] if headings else heading
        for id in CHECK.findall(source) if cell["cell_type"] == "code" else ():
            found[id] = done.get(id, OPEN)
            if place is None and found[id] in (OPEN, "failed"):
                place = heading
    return Progress(path, title, found, place)


def _cells(counts: Counter[str]) -> str:
    return " | ".join(str(counts[status]) for status in ("passed", LIBRARY, "failed", OPEN))
