"""What grading one submission came to, kept as JSON."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

from authoring.grading.submissions import Submission
from authoring.project import Project
from course_utils import checking
from course_utils.checking.describe import one_line


@dataclasses.dataclass
class Answer:
    """What one graded cell came to.

    Attributes:
        points: it got.
        maximum: it could have got.
        status: "passed", "failed" or "not attempted".
        message: as the learner's own check says it.
        source: the answer; "" where there is none.
    """

    points: float
    maximum: float
    status: str
    message: str
    source: str = ""


@dataclasses.dataclass
class Grade:
    """Points of one submission.

    Attributes:
        submission: path of the notebook.
        lesson: key of its lesson, "" when that could not be found out.
        student: who handed it in.
        id: the student's number on the learning platform, or "".
        answers: name of the graded cell -> what it came to.
        notes: what was odd, one line each.
        error: why it was not graded, or "".
        bounds: what its answers were allowed.
    """

    submission: Path
    lesson: str = ""
    student: str = ""
    id: str = ""
    answers: dict[str, Answer] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    error: str = ""
    bounds: str = ""

    @property
    def cells(self) -> dict[str, tuple[float, float]]:
        """Name of a graded cell -> (points, maximum)."""
        return {name: (answer.points, answer.maximum) for name, answer in self.answers.items()}

    @property
    def points(self) -> float:
        """All points that the submission got."""
        return sum(answer.points for answer in self.answers.values())

    @property
    def maximum(self) -> float:
        """All points that it could have got."""
        return sum(answer.maximum for answer in self.answers.values())

    @property
    def total(self) -> str:
        """Points of all, as a table shows them; "-" when it was not graded."""
        return "-" if self.error else f"{self.points:g}/{self.maximum:g}"

    @property
    def remarks(self) -> list[str]:
        """Why it was not graded, and what was odd."""
        return [self.error] * bool(self.error) + self.notes


def library_mark(project: Project) -> str:
    """Changes when the lessons or the library do.

    Args:
        project: the course.

    Returns:
        A few letters.
    """
    mark = hashlib.sha256()
    folder = Path(checking.__file__).parent.parent
    own = [*(project.root / "lessons").glob("*.py"), *project.root.glob("*.py")]
    for path in sorted([*folder.rglob("*.py"), *own]):
        mark.update(path.read_bytes())
    return mark.hexdigest()


def stamp(submission: Submission, *settings: str) -> str:
    """Changes when a result would.

    Args:
        submission: the notebook.
        *settings: what else the result depends on.

    Returns:
        A few letters.
    """
    mark = hashlib.sha256()
    for part in (*settings, submission.text, submission.error, submission.student):
        mark.update(part.encode("utf-8", "replace") + b"\0")
    return mark.hexdigest()


def read(path: Path, wanted: str) -> Grade | None:
    """A result of an earlier run, when nothing that it depends on has changed. Path and id are that run's.

    Args:
        path: of the file, which need not be there.
        wanted: its `stamp`.

    Returns:
        The result; None when there is none that holds, or an error: its cause may have gone.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("stamp") != wanted or found["error"]:
            return None
        found["answers"] = {name: Answer(**answer) for name, answer in found["answers"].items()}
        for total in ("points", "maximum"):
            found.pop(total)
        return Grade(**found | {"submission": Path(found["submission"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def as_json(graded: Grade, mark: str) -> str:
    """A result as text.

    Args:
        graded: the result.
        mark: its `stamp`.

    Returns:
        JSON.
    """
    totals = {name: None if graded.error else getattr(graded, name) for name in ("points", "maximum")}
    found = dataclasses.asdict(graded) | {"submission": shown(graded.submission), "stamp": mark} | totals
    return json.dumps(found, indent=1, ensure_ascii=True) + "\n"


def shown(path: Path) -> str:
    """A path as text.

    Args:
        path: the path.

    Returns:
        Text; bytes that are no letters, in names from another system, and control characters become question
        marks.
    """
    return one_line(os.fsencode(path).decode("utf-8", "replace"))
