"""How long a learner works on a lesson: an estimate from what there is to read and to write, no measurement.

Minutes that the machine takes are measured, and stand beside it.
"""

import re
from pathlib import Path
from typing import Any

from authoring.project import Project
from course_utils.errors import CourseError, read_json

WORDS = 200  # of text, read in a minute
GIVEN_LINES = 15  # of given code, read in a minute
LINE = 3  # minutes for a line that the learner writes: docstring, thought, check and second try included
PREDICTION = 3  # minutes for a number to predict
STEP = 5  # minutes: an estimate is not finer than that
EFFORT = re.compile(r"^ *# About (\d+) lines?\.$", re.MULTILINE)


def minutes(notebook: dict[str, Any]) -> int:
    """The estimate for one lesson.

    Args:
        notebook: the learner's, with stubs, as its file has it. Stubs say how many lines to write.

    Returns:
        Minutes, a multiple of `STEP`.
    """
    words = given = written = predictions = 0
    for cell in notebook["cells"]:
        source, graded = "".join(cell["source"]), cell["metadata"].get("nbgrader")
        if cell["cell_type"] == "markdown":
            words += len(re.sub(r"\]\([^)]*\)", "]", source).split())  # addresses are not read
        elif graded is None:
            given += sum(bool(line.strip()) for line in source.splitlines())
        elif graded["solution"]:
            written += sum(map(int, EFFORT.findall(source)))
            predictions += "prediction = None" in source
    exact = words / WORDS + given / GIVEN_LINES + LINE * written + PREDICTION * predictions
    return STEP * -int(-exact // STEP)


def of(project: Project, lesson: Path) -> str:
    """The estimate for one lesson as tables show it.

    Args:
        project: the course.
        lesson: path of its source.

    Returns:
        Such as "1 h 25 min"; "-" before its notebook is generated.
    """
    path = project.notebook("notebooks", lesson)
    return readable(_minutes(path)) if path.exists() else "-"


def sentence(project: Project) -> str:
    """What stands under a table with the estimates: what they are, and their sum.

    Args:
        project: the course.

    Returns:
        Markdown.
    """
    files = [project.notebook("notebooks", lesson) for lesson in project.lessons()]
    total = sum(_minutes(path) for path in files if path.exists())
    return (f"Your time is an estimate, beside the machine's minutes: {WORDS} words of text or {GIVEN_LINES} "
            f"lines of given code read in a minute, {LINE} minutes for each line to write, {PREDICTION} for "
            f"each prediction, rounded up to {STEP} minutes; {readable(total)} for the whole course.")


def _minutes(path: Path) -> int:
    """The estimate for the notebook in a file.

    Raises:
        CourseError: the file is damaged.
    """
    advice = "remove it and run `course sync --no-run`"
    notebook = read_json(path, advice)
    try:
        return minutes(notebook)
    except (KeyError, TypeError, AttributeError):
        raise CourseError(f"{path} is damaged (it is no notebook): {advice}.") from None


def readable(total: int) -> str:
    """Minutes as people say them.

    Args:
        total: minutes.

    Returns:
        Such as "50 min", "1 h 25 min" or "2 h".
    """
    hours, rest = divmod(total, 60)
    return " ".join([f"{hours} h"] * bool(hours) + [f"{rest} min"] * bool(rest or not hours))
