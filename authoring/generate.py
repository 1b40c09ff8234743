"""Generate the learner's and the solved notebook of a lesson from its source in lessons/."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from authoring import claims, library, links
from authoring.project import LessonError, Project, key_of, number_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,56}")  # with "-check" it still fits a cell id's 64 characters
KEYS = {"name", "tolerance", "atol", "timing", "exercise", "predict", "points", "goal", "tags"}
JUPYTEXT_KEYS = {"lines_to_next_cell", "cell_marker", "lines_to_end_of_cell_marker"}
SIZE_LIMIT = 1_500_000  # bytes; larger notebooks are slow to render and to diff
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
PARAMETERS = """\
# Parameters: papermill and `course run` set them; change them here to try another model or a GPU.
PROFILE = "cpu"  # "cpu" or "gpu"
LM = ""  # "" is the embedded model; or a model of the hub, or a folder
DEVICE = "cpu"  # "cpu", "cuda", ..."""


@dataclass(frozen=True)
class Cell:
    """One cell of a lesson's source.

    Attributes:
        name: unique in the lesson.
        type: "markdown" or "code".
        source: its text.
        options: its directives, such as {"tolerance": 0.02}.
    """

    name: str
    type: str
    source: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lesson:
    """A lesson's source, read and checked.

    Attributes:
        path: of its source, relative to the repository.
        cells: the title cell first.
    """

    path: Path
    cells: list[Cell]

    @property
    def stem(self) -> str:
        """Name of its files without the ending: `04_gptq`."""
        return self.path.stem

    @property
    def key(self) -> str:
        """What everything that belongs to the lesson goes by: `gptq` of 04_gptq.py."""
        return key_of(self.path)

    @property
    def number(self) -> str:
        """Its place, two digits. Nothing but file names and links may depend on it."""
        return number_of(self.path)

    @property
    def title(self) -> str:
        """The heading of its title cell."""
        return self.cells[0].source.splitlines()[0].removeprefix("# ").strip()

    @property
    def goal(self) -> str:
        """What the learner measures, in a line: `goal=` of the title cell, or its second paragraph."""
        text = self.cells[0].options.get("goal") or (_paragraphs(self.cells[0].source) + [""])[1]
        return " ".join(text.split())


def read_title(project: Project, path: Path) -> Lesson:
    """Read no more than a lesson's title cell, without jupytext, which only authors have.

    Args:
        project: the course.
        path: the source, a py:percent text that `read_lesson` accepts.

    Returns:
        The lesson with this one cell: enough for its number, key, title and goal.
    """
    first, *rest = path.read_text(encoding="utf-8").partition("# %%")[2].splitlines()
    goal = re.search(r'goal=("(?:[^"\\]|\\.)*")', first)
    lines = [line.removeprefix("#").removeprefix(" ")
             for line in itertools.takewhile(lambda line: not line.startswith("# %%"), rest)]
    options = {"goal": json.loads(goal[1])} if goal else {}
    return Lesson(project.relative(path), [Cell("title", "markdown", "\n".join(lines).strip("\n"), options)])


def read_lesson(project: Project, path: Path) -> Lesson:
    """Parse and check a lesson's source.

    Args:
        project: the course.
        path: the source, a py:percent text.

    Returns:
        The lesson.

    Raises:
        LessonError: something in it is not as it must be; names the cell.
    """
    import jupytext

    relative = project.relative(path)
    key_of(path)
    try:
        notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    except Exception as error:
        raise LessonError(relative, None, f"is no py:percent text: {error}") from error
    cells, seen = [], {"setup", "parameters"}
    for n, cell in enumerate(notebook.cells, start=1):
        options = {k: v for k, v in cell.metadata.items() if k not in JUPYTEXT_KEYS}
        name = options.pop("name", None)
        if not isinstance(name, str) or not NAME.fullmatch(name):
            rule = "needs name=\"...\" of at most 57 letters, digits, '-' or '_'."
            raise LessonError(relative, name or f"number {n}", rule)
        names = {name, f"{name}-check"} if "exercise" in options or "predict" in options else {name}
        if names & seen:
            raise LessonError(relative, name, "the name is taken (every cell needs one of its own).")
        seen |= names
        _check_options(relative, name, cell.cell_type, options)
        if typed := links.typed_number(cell.source):
            raise LessonError(relative, name, f"{typed!r} names a lesson by its number, which may change: "
                              + links.ADVICE[cell.cell_type])
        cells.append(Cell(name, cell.cell_type, cell.source.strip("\n"), options))
    if not cells or cells[0].name != "title" or not re.match(r"# \S", cells[0].source):
        raise LessonError(
            relative,
            cells[0].name if cells else None,
            'the first cell must be markdown, name="title", beginning with "# " and the lesson\'s title.',
        )
    return Lesson(relative, cells)


def _check_options(path: Path, name: str, cell_type: str, options: dict[str, Any]) -> None:
    unknown = set(options) - KEYS
    if unknown:
        known = ", ".join(sorted(KEYS))
        raise LessonError(path, name, f"unknown {', '.join(sorted(unknown))}; known: {known}.")
    if cell_type not in ("markdown", "code"):
        raise LessonError(path, name, f"is a {cell_type} cell; only markdown and code are generated.")
    code_only = KEYS - {"name", "goal", "tags"}
    if cell_type == "markdown" and set(options) & code_only:
        raise LessonError(path, name, f"{', '.join(sorted(set(options) & code_only))} on a markdown cell.")
    for key in ("tolerance", "atol"):
        value = options.get(key, 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
            raise LessonError(path, name, f"{key} must be a number that is not negative, is {value!r}.")
    if options.get("timing") and ("tolerance" in options or "atol" in options):
        raise LessonError(path, name, "timing cells are not compared, so they take no tolerance.")
    if "exercise" in options and "predict" in options:
        raise LessonError(path, name, "is both an exercise and a prediction.")
    points = options.get("points", 1)
    if isinstance(points, bool) or not isinstance(points, int) or points < 0:
        raise LessonError(path, name, f"points must be a whole number, is {points!r}.")


def make_notebook(project: Project, lesson: Lesson, kind: str, costs: dict[str, dict]) -> NotebookNode:
    """The notebook of a lesson without outputs.

    Args:
        project: the course.
        lesson: the lesson's source.
        kind: "notebooks" (exercises are stubs) or "solutions".
        costs: measured minutes and memory by key, the content of recorded/lesson_costs.json.

    Returns:
        The notebook, the same to the byte each time.

    Raises:
        LessonError: a directive cannot be expanded.
    """
    path = f"{kind}/{lesson.stem}.ipynb"
    cells = [
        _markdown("title", header(project, lesson, path, costs.get(lesson.key))),
        _code("setup", links.setup_line(project.repository, project.ref)),
        _code("parameters", PARAMETERS, {"tags": ["parameters"]}),
    ]
    for cell in lesson.cells[1:]:
        if cell.type == "markdown":
            text = links.resolve(project, lesson.path, cell.name, cell.source)
            text = claims.fill(project, lesson.path, cell.name, text)
            cells.append(_markdown(cell.name, text, cell.options.get("tags")))
        elif "exercise" in cell.options or "predict" in cell.options:
            try:
                cells += _exercise(project, lesson, cell, kind)
            except (ValueError, SyntaxError) as error:
                raise LessonError(lesson.path, cell.name, str(error)) from error
        else:
            if library.BEGIN in cell.source:
                raise LessonError(lesson.path, cell.name, "has solution marks but no exercise= or predict=.")
            source = "\n".join(filter(None, [_comment(cell.options), cell.source]))
            cells.append(_code(cell.name, source, _metadata(cell.options)))
    metadata = {
        "kernelspec": dict(KERNEL),
        "language_info": {"name": "python"},
        "course": {"lesson": lesson.key, "kind": kind},
    }
    return new_notebook(cells=cells, metadata=metadata)


def header(project: Project, lesson: Lesson, path: str, cost: dict[str, Any] | None) -> str:
    """Text of the title cell: the author's, after the lesson's place, badges, minutes and memory.

    Args:
        project: the course.
        lesson: the lesson's source.
        path: of the notebook in the repository, for the badges.
        cost: the lesson's measured minutes and memory; None before the first execution.

    Returns:
        Markdown.

    Raises:
        LessonError: the text refers to a lesson that does not exist.
    """
    heading = f"# Lesson {lesson.number}: {lesson.title}"
    rest = links.resolve(project, lesson.path, "title", lesson.cells[0].source.partition("\n")[2])
    if cost:
        measured = (
            f"about {cost['minutes']:.1f} minutes and {cost['peak_gb']:.1f} GB of memory "
            f"(measured {cost['date']} on {cost['cores']} cores, {cost['cpu']}, torch {cost['torch']})"
        )
    else:
        measured = "not measured yet"
    badges = links.badges(project.repository, project.ref, path)
    place = links.place(project, lesson.path)
    ours = " **The outputs are ours**, from that machine, until you run a cell."
    takes = f"**It takes** {measured}." + ours * (bool(cost) and path.startswith("notebooks/"))
    above = [heading, *[place] * bool(place), badges, takes]
    return "\n\n".join([*above, rest.strip("\n")]).rstrip("\n")


def _exercise(project: Project, lesson: Lesson, cell: Cell, kind: str) -> list[NotebookNode]:
    """The cell to fill in and the locked check after it."""
    solved = kind == "solutions"
    points = cell.options.get("points", 1)
    if "predict" in cell.options:
        id, answer = cell.options["predict"], "prediction"
        if not re.fullmatch(rf"{lesson.key}\.[A-Za-z_]\w*", str(id)):
            raise ValueError(f'predict="{id}" must be "{lesson.key}." and a name.')
        empty = library.replace_solutions(cell.source, lambda region, indent: [f"{indent}prediction = None"])
        asked = library.accuracy(project.root, lesson.key, id.partition(".")[2])
        source = "\n".join(filter(None, [asked, cell.source if solved else empty]))
    else:
        target = cell.options["exercise"]
        if target == "inline":
            marked = cell.source
            answer = library.defined_name(marked)
        else:
            if cell.source.strip():
                raise ValueError(f"must be empty: its content is taken from {target}.")
            marked = library.mark_solution(library.find_source(project.root, target))
            answer = target.partition(":")[2]
        id = f"{lesson.key}.{answer}"
        source = marked if solved else library.stub(marked)
    task = _code(cell.name, source, {"nbgrader": _nbgrader(cell.name, solution=True)})
    check_source = f'from course_utils.checking import check\n\ncheck("{id}", {answer})'
    check_source = "\n".join(filter(None, [_comment(cell.options), check_source]))
    name = f"{cell.name}-check"
    metadata = _metadata(cell.options) | {"nbgrader": _nbgrader(name, points=points)}
    check = _code(name, check_source, metadata)
    if not solved:  # as nbgrader releases it: what is locked says so, and carries its checksum
        check.metadata.update(deletable=False, editable=False)
        for released in (task, check):
            released.metadata.nbgrader.update(checksum=_checksum(released), cell_type="code")
    return [task, check]


def _nbgrader(grade_id: str, *, solution: bool = False, points: int | None = None) -> dict[str, Any]:
    """What nbgrader reads in the metadata of a cell: of the one to fill in, or of a locked check."""
    graded = {} if points is None else {"points": points}
    return {
        "schema_version": 3,
        "grade_id": grade_id,
        "solution": solution,
        "grade": not solution,
        "locked": not solution,
        "task": False,
        **graded,
    }


def _checksum(cell: NotebookNode) -> str:
    from nbgrader.utils import compute_checksum

    return compute_checksum(cell)


def _comment(options: dict[str, Any]) -> str:
    """What the reader should know about the cell's numbers."""
    if options.get("timing"):
        return "# timing, not compared"
    parts = []
    if "tolerance" in options:
        parts.append(f"{100 * options['tolerance']:g} %")
    if "atol" in options:
        parts.append(f"{options['atol']:g}")
    return f"# compared within {' or '.join(parts)}" if parts else ""


def _metadata(options: dict[str, Any]) -> dict[str, Any]:
    course = {key: options[key] for key in ("tolerance", "atol", "timing") if key in options}
    tags = list(options.get("tags", [])) + ["nbval-ignore-output"] * bool(options.get("timing"))
    return ({"course": course} if course else {}) | ({"tags": tags} if tags else {})


def _markdown(name: str, source: str, tags: Iterable[str] | None = None) -> NotebookNode:
    return new_markdown_cell(source, id=name, metadata={"tags": list(tags)} if tags else {})


def _code(name: str, source: str, metadata: dict[str, Any] | None = None) -> NotebookNode:
    return new_code_cell(source, id=name, metadata=metadata or {})


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def code_hash(notebook: NotebookNode) -> str:
    """SHA-256 of the code cells: the outputs of two notebooks with the same hash are interchangeable.

    Comments, docstrings and hints do not count: they change what is read, not what is computed.

    Args:
        notebook: the notebook.

    Returns:
        64 hexadecimal digits.
    """
    code = [[cell.id, library.without_comments(cell.source)]
            for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def to_text(notebook: NotebookNode) -> str:
    """Content of a notebook's file.

    Args:
        notebook: the notebook.

    Returns:
        JSON with sorted keys and one newline at the end.

    Raises:
        nbformat.ValidationError: it is no valid notebook.
    """
    nbformat.validate(notebook)
    return nbformat.writes(notebook, version=4).rstrip("\n") + "\n"
