"""Bring notebooks/, solutions/ and the README's lesson table in step with lessons/, or check them."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from filelock import FileLock
from nbformat.notebooknode import from_dict

from authoring import claims, generate, leaks, links, record_lines, start_page, working_time
from authoring.project import KINDS, LessonError, Project, key_of
from course_utils import lesson_needs, records
from course_utils.errors import read_json

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from authoring.execute import Execution

TABLE = "lessons"  # between <!-- lessons:begin --> and <!-- lessons:end --> in the README
PICTURE = "picture"
NEEDS = "needs"  # what lessons may need of a model; only where the README asks for it


def check(project: Project, numbers: Sequence[str] = ()) -> list[str]:
    """Find out what is out of step, writing nothing.

    Args:
        project: the course.
        numbers: which lessons, as in `Project.lessons`; when all, the README and other texts too.

    Returns:
        One line for each finding; an empty list when everything is in step.

    Raises:
        ValueError: there is no such lesson.
    """
    problems = []
    costs = read_costs(project)
    lessons = []
    for path in project.lessons(numbers):
        try:
            lesson = generate.read_lesson(project, path)
            lessons.append(lesson)
            made = {kind: generate.make_notebook(project, lesson, kind, costs) for kind in KINDS}
            problems += [f"{lesson.path}, {leak}"
                         for leak in leaks.leaks(made["solutions"], made["notebooks"])]
            for kind, expected in made.items():
                problems += _check_notebook(project, project.notebook(kind, path), expected)
        except LessonError as error:
            problems.append(str(error))
    if not numbers:
        problems += orphans(project) + typed_numbers(project)
        try:
            problems += claims.problems(project)
            if len(lessons) == len(project.lessons()) and readme_text(project, lessons, costs) is not None:
                problems.append("README.md: the lesson table, the picture, the claims or a link to a lesson "
                                "is out of step. Run `course sync`.")
        except LessonError as error:
            problems.append(str(error))
        if len(lessons) == len(project.lessons()) and start_text(project, lessons, costs) is not None:
            problems.append(f"notebooks/{start_page.NAME}: out of step. Run `course sync`.")
        shown = picture(project)
        if shown and (not project.picture_file.exists() or project.picture_file.read_bytes() != shown[0]):
            problems.append(f"{project.relative(project.picture_file)}: out of step. Run `course sync`.")
    return list(dict.fromkeys(problems))


def sync(
    project: Project,
    numbers: Sequence[str] = (),
    *,
    force: bool = False,
    run: bool = True,
    report: Callable[[str], object] = print,
    on_cell: Callable[[Path, int, int, NotebookNode], None] | None = None,
) -> list[Path]:
    """Write what is out of step and execute what is stale.

    Args:
        project: the course.
        numbers: which lessons, as in `Project.lessons`.
        force: execute whether stale or not.
        run: False writes without executing; outputs that no longer belong to the code are dropped.
        report: called with a line of text for each file written or executed.
        on_cell: called with (path of the notebook, index, number of cells, cell) when a cell starts.

    Returns:
        The files written.

    Raises:
        LessonError: a lesson cannot be generated, or a cell fails.
        ValueError: there is no such lesson.
    """
    written = []

    def write(path: Path, notebook: NotebookNode) -> None:
        if write_notebook(project, path, notebook) and path not in written:
            written.append(path)
            report(f"wrote {project.relative(path)}")

    for lesson in [generate.read_lesson(project, path) for path in project.lessons(numbers)]:
        paths = {kind: project.notebook(kind, lesson.path) for kind in KINDS}
        for path in paths.values():
            _follow(project, path, report)
        if run:
            for kind in reversed(KINDS):  # the solution first: its minutes and memory go into both headers
                fresh = generate.make_notebook(project, lesson, kind, read_costs(project))
                kept = kept_outputs(paths[kind], fresh)
                if force or kept is None or record_lines.replaced(project, kept):
                    report(f"executing {project.relative(paths[kind])}")
                    attach_outputs(fresh, _execute(project, lesson, paths[kind], fresh, on_cell))
                    write(paths[kind], fresh)
        for kind in KINDS:
            write(paths[kind], with_kept_outputs(project, lesson, kind))
    written += sync_claims(project, report)
    written += sync_readme(project, report)
    for line in [] if numbers else orphans(project):
        report(line)
    return written


def with_kept_outputs(project: Project, lesson: generate.Lesson, kind: str) -> NotebookNode:
    """The notebook of a lesson with the outputs that the stored one has, if they still belong to its code.

    Args:
        project: the course.
        lesson: the lesson's source.
        kind: "notebooks" or "solutions".

    Returns:
        The notebook.
    """
    fresh = generate.make_notebook(project, lesson, kind, read_costs(project))
    outputs = kept_outputs(project.notebook(kind, lesson.path), fresh)
    if outputs is not None:
        attach_outputs(fresh, outputs)
    return fresh


def _follow(project: Project, path: Path, report: Callable[[str], object]) -> None:
    """Rename the notebook of a lesson that has another number now: its outputs are still its own."""
    others = [p for p in path.parent.glob(f"[0-9][0-9]_{key_of(path)}.ipynb") if p != path]
    if not path.exists() and len(others) == 1:
        os.replace(others[0], path)
        report(f"moved {project.relative(others[0])} to {path.name}")


# --- outputs ----------------------------------------------------------------------------------------------


def kept_outputs(path: Path, fresh: NotebookNode) -> dict[str, list] | None:
    """The outputs that a stored notebook holds, if they still belong to its code.

    Args:
        path: of the stored notebook; it need not exist.
        fresh: the notebook as generated now.

    Returns:
        Id of the cell -> outputs; None when other code produced them.
    """
    if not path.exists():
        return None
    try:
        old = nbformat.read(path, as_version=4)
    except Exception:  # whatever is wrong with it, it is generated again
        return None
    if old.metadata.get("course", {}).get("code") != generate.code_hash(fresh):
        return None
    return {cell.get("id"): cell.outputs for cell in old.cells if cell.cell_type == "code"}


def attach_outputs(notebook: NotebookNode, outputs: dict[str, list]) -> None:
    """Put outputs into a generated notebook, normalised, with the marks of the code they belong to.

    Args:
        notebook: changed in place.
        outputs: id of the cell -> outputs.
    """
    count = 0
    hashes = {}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        cell.outputs = normalise(outputs.get(cell.id, []), count)
        if cell.outputs:
            hashes[cell.id] = outputs_hash(cell.outputs)
    notebook.metadata.course.code = generate.code_hash(notebook)
    notebook.metadata.course.outputs = from_dict(hashes)


def normalise(outputs: list, count: int) -> list[NotebookNode]:
    """Make the outputs of a cell such that they are the same each time.

    Args:
        outputs: as the kernel gave them.
        count: the cell's execution count.

    Returns:
        Outputs without stderr and widgets, neighbouring stdout joined, with the execution count.
    """
    kept = []
    for output in outputs:
        output = from_dict(output)
        if passing(output):
            continue
        if output.output_type == "stream":
            if kept and kept[-1].output_type == "stream":
                kept[-1].text += output.text
                continue
        elif output.output_type == "error":
            output.traceback = []  # paths and colours of this machine; raises-exception cells have these
        elif output.output_type == "execute_result":
            output.execution_count = count
        output.pop("transient", None)
        kept.append(output)
    return kept


def passing(output: dict[str, Any]) -> bool:
    """Whether an output is shown while the notebook runs and not kept: stderr and progress bars.

    Args:
        output: one output of a cell.

    Returns:
        True when it is not kept.
    """
    widget = any(mime.startswith("application/vnd.jupyter.widget") for mime in output.get("data", {}))
    return widget or output.get("name") == "stderr"


def outputs_hash(outputs: list) -> str:
    """Mark by which a change of a cell's outputs is noticed.

    Args:
        outputs: normalised outputs of a cell.

    Returns:
        16 hexadecimal digits.
    """
    return hashlib.sha256(json.dumps(outputs, sort_keys=True).encode()).hexdigest()[:16]


def _execute(
    project: Project,
    lesson: generate.Lesson,
    path: Path,
    fresh: NotebookNode,
    on_cell: Callable[[Path, int, int, NotebookNode], None] | None,
) -> dict[str, list]:
    """Outputs by cell id; the minutes and memory of a solution are noted."""
    from authoring.execute import execute

    path.parent.mkdir(parents=True, exist_ok=True)
    tell = (lambda *cell: on_cell(path, *cell)) if on_cell else None
    done = execute(fresh, path.parent, on_cell=tell)
    if done.error:
        raise LessonError(lesson.path, None, f"{path.parent.name}: {done.error}\n{done.traceback}")
    if path.parent.name == "solutions":
        save_costs(project, lesson.key, done)
    return {cell.id: cell.outputs for cell in done.notebook.cells if cell.cell_type == "code"}


# --- measured minutes and memory --------------------------------------------------------------------------


def read_costs(project: Project) -> dict[str, dict]:
    """Measured minutes and memory.

    Args:
        project: the course.

    Returns:
        Key of the lesson -> "minutes", "peak_gb" and the machine; {} before the first execution.
    """
    return read_json(project.costs_file, records.ADVICE) if project.costs_file.exists() else {}


def save_costs(project: Project, key: str, execution: Execution) -> None:
    """Note what the execution of a solution took, with machine, versions and date.

    Args:
        project: the course.
        key: of the lesson.
        execution: of its solution.
    """
    from course_utils import measure

    card = dataclasses.asdict(measure.machine_card())
    took = {"minutes": round(execution.seconds / 60, 2), "peak_gb": round(execution.peak_bytes / 1e9, 2)}
    with FileLock(Path(tempfile.gettempdir()) / "course-lesson-costs.lock"):  # two lessons may run at once
        costs = read_costs(project) | {key: card | took}
        replace_file(project.costs_file, json.dumps(costs, indent=1, sort_keys=True) + "\n")


# --- the claims ---------------------------------------------------------------------------------------------


def sync_claims(project: Project, report: Callable[[str], object]) -> list[Path]:
    """Bring the page of claims, and the lessons that show its table, in step with what the cells print.

    Args:
        project: the course.
        report: called with a line of text for each file written.

    Returns:
        The files written.
    """
    written = []
    try:
        for path in [path for path in project.lessons() if claims.shows_table(path)]:
            lesson = generate.read_lesson(project, path)
            for kind in KINDS:
                notebook, target = with_kept_outputs(project, lesson, kind), project.notebook(kind, path)
                stale = "code" not in notebook.metadata.course  # its own sync executes it: keep what there is
                if not stale and write_notebook(project, target, notebook):
                    written.append(target)
        text, page = claims.page(project), project.root / claims.PAGE
        if text is not None and not (page.exists() and page.read_text(encoding="utf-8") == text):
            replace_file(page, text)
            written.append(page)
    except LessonError as error:  # somebody else's lesson, when only some were asked for
        report(f"{claims.PAGE} left as it is: {error}")
    for path in written:
        report(f"wrote {project.relative(path)}")
    return written


# --- the README's table and picture -----------------------------------------------------------------------


def readme_text(
    project: Project, lessons: list[generate.Lesson], costs: dict[str, dict]
) -> str | None:
    """The README with a fresh lesson table and picture.

    Args:
        project: the course.
        lessons: all lessons in order.
        costs: what `read_costs` returned.

    Returns:
        Its text; None when it is right already, or when there is no README.

    Raises:
        LessonError: the README lacks the comments that table or picture stand between.
    """
    path = project.root / "README.md"
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8")
    fresh = links.renumber(project, _replace_part(text, TABLE, lesson_table(project, lessons, costs)))
    if f"<!-- {NEEDS}:begin -->" in fresh:
        needs = "\n".join(f"- *{need}*: {text}." for need, text in lesson_needs.NEEDS.items())
        fresh = _replace_part(fresh, NEEDS, needs)
    if f"<!-- {claims.PART}:begin -->" in fresh:
        fresh = _replace_part(fresh, claims.PART, claims.table(project, "solutions", short=True))
    shown = picture(project)
    if shown:
        alt = shown[1].replace("[", "(").replace("]", ")")
        target = project.relative(_pictured(project)[0])
        image = f"![{alt}]({project.relative(project.picture_file)})"
        fresh = _replace_part(fresh, PICTURE, f"{image}\n\n*{alt} [Picture from {target}]({target})*")
    return None if fresh == text else fresh


def start_text(project: Project, lessons: list[generate.Lesson], costs: dict[str, dict]) -> str | None:
    """A fresh start page for learners.

    Args:
        project: the course.
        lessons: all lessons in order.
        costs: what `read_costs` returned.

    Returns:
        Its file's content; None when it is right already, or when the course has no parts to make a map of.
    """
    if not project.parts:
        return None
    path = project.root / "notebooks" / start_page.NAME
    fresh = generate.to_text(start_page.make(project, lessons, costs))
    return None if path.exists() and path.read_text(encoding="utf-8") == fresh else fresh


def _replace_part(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise LessonError("README.md", None, f"needs one {begin} and one {end}.")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"


def picture(project: Project) -> tuple[bytes, str] | None:
    """The README's picture: the output of the cell that pyproject.toml names ("tool.course.picture").

    Args:
        project: the course.

    Returns:
        (PNG, alt text); None when no cell is named, or before that notebook was executed.
    """
    path, cell_id = _pictured(project)
    if path is None or not path.exists():
        return None
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []) if cell.get("id") == cell_id else []:
            if "image/png" in output.get("data", {}):
                return base64.b64decode(output.data["image/png"]), output.metadata["image/png"]["alt"]
    return None


def _pictured(project: Project) -> tuple[Path | None, str]:
    """The solution and the id of the cell that "tool.course.picture" names ("one_token#plot-roofline")."""
    key, _, cell_id = project.settings.get("tool", {}).get("course", {}).get("picture", "").partition("#")
    return (project.notebook("solutions", project.lesson(key)) if key else None), cell_id


def sync_readme(project: Project, report: Callable[[str], object]) -> list[Path]:
    """Bring the generated parts of the README and its picture in step.

    Args:
        project: the course.
        report: called with a line of text for each file written.

    Returns:
        The files written.
    """
    try:
        lessons = [generate.read_lesson(project, path) for path in project.lessons()]
    except LessonError as error:  # somebody else's lesson, when only some were asked for
        report(f"README.md left as it is: {error}")
        return []
    written = []
    start = start_text(project, lessons, read_costs(project))
    if start is not None:
        written.append(project.root / "notebooks" / start_page.NAME)
        replace_file(written[-1], start)
    shown = picture(project)
    if shown and (not project.picture_file.exists() or project.picture_file.read_bytes() != shown[0]):
        replace_file(project.picture_file, shown[0])
        written.append(project.picture_file)
    try:
        text = readme_text(project, lessons, read_costs(project))
    except LessonError as error:
        report(f"README.md left as it is: {error}")
        text = None
    if text is not None:
        replace_file(project.root / "README.md", text)
        written.append(project.root / "README.md")
    for path in written:
        report(f"wrote {project.relative(path)}")
    return written


def lesson_table(project: Project, lessons: list[generate.Lesson], costs: dict[str, dict]) -> str:
    """The README's table: a row for each lesson, under a row for each part; below it, what working time is.

    Args:
        project: the course.
        lessons: all lessons in order.
        costs: what `read_costs` returned.

    Returns:
        Markdown.
    """
    rows = ["| lesson | your time | minutes | on one core | memory | model needs | what you measure |",
            "|" + 7 * "---|"]
    one_core = minutes_on_one_core(project)
    first = {part.lessons[0]: part for part in project.parts if part.lessons}
    for lesson in lessons:
        if part := first.get(lesson.key):
            rows.append(f"| **Part {part.number}: {part.title}** | | | | | | |")
        cost = costs.get(lesson.key)
        minutes, memory = (f"{cost['minutes']:.1f}", f"{cost['peak_gb']:.1f} GB") if cost else ("-", "-")
        name = f"{lesson.number}: {lesson.title}".replace("|", "\\|")
        goal = lesson.goal.replace("|", "\\|")
        needs = model_needs(lesson)
        yours = working_time.of(project, lesson.path)
        alone = f"{one_core[lesson.key]:.1f}" if lesson.key in one_core else "-"
        rows.append(f"| [{name}](notebooks/{lesson.stem}.ipynb) | {yours} | {minutes} | {alone} | {memory} | "
                    f"{needs} | {goal} |")  # fmt: skip
    return "\n".join([*rows, "", working_time.sentence(project)])


def minutes_on_one_core(project: Project) -> dict[str, float]:
    """What `course bench one_core` recorded.

    Args:
        project: the course.

    Returns:
        Key of the lesson -> minutes; {} if it was never recorded.
    """
    record = records.load("bench_one_core", project.root / "recorded")
    return {row["lesson"]: row["minutes"] for row in record["results"]["rows"]} if record else {}


def model_needs(lesson: generate.Lesson) -> str:
    """What a lesson needs of the model that --lm names.

    Args:
        lesson: the lesson.

    Returns:
        Its needs with commas between; "any model" when it has none; "-" when it does not use LM.

    Raises:
        ValueError: it loads LM and does not call `shapes.require` with its own key in the next line.
    """
    code = "\n".join(cell.source for cell in lesson.cells if cell.type == "code")
    if "load_lm(LM" not in code:
        return "-"
    call = rf'^(\w+), \w+ = models\.load_lm\(LM, device=DEVICE\)\nshapes\.require\(\1, "{lesson.key}"\)$'
    if lesson.key not in lesson_needs.LESSONS or not re.search(call, code, re.MULTILINE):
        raise ValueError(f'{lesson.stem} loads LM: write shapes.require(model, "{lesson.key}") in the line '
                         "behind it, and what it needs in course_utils/lesson_needs.py")
    return ", ".join(lesson_needs.LESSONS[lesson.key]) or "any model"


TEXTS = ("README.md", "CONTRIBUTING.md", "AGENTS.md", "docs/**/*.md", "course_utils/**/*.py",
         "course_utils/**/*.txt", "authoring/**/*.py")  # fmt: skip


def typed_numbers(project: Project) -> list[str]:
    """Where the library, the tools or a page name a lesson by its number.

    Args:
        project: the course.

    Returns:
        One line for each such file.
    """
    problems = []
    for path in sorted(file for pattern in TEXTS for file in project.root.glob(pattern)):
        text = path.read_text(encoding="utf-8")
        if found := links.TYPED.search(text):
            line = text[: found.start()].count("\n") + 1
            named = f"{project.relative(path)}, line {line}: {links.typed_number(text)!r} names a lesson"
            problems.append(f"{named} by its number, which may change: {links.ADVICE['code']}")
    return problems


def orphans(project: Project) -> list[str]:
    """Generated notebooks whose lesson is gone.

    Args:
        project: the course.

    Returns:
        One line for each.
    """
    stems = {path.stem for path in project.lessons()}
    found = [path for kind in KINDS for path in sorted((project.root / kind).glob("*.ipynb"))]
    text = "no lesson in lessons/ generates it. Remove it."
    return [f"{project.relative(path)}: {text}" for path in found
            if path.stem not in stems and path.name != start_page.NAME]


def _check_notebook(project: Project, path: Path, expected: NotebookNode) -> list[str]:
    name = str(project.relative(path))
    if not path.exists():
        return [f"{name}: missing. Run `course sync`."]
    text = path.read_text(encoding="utf-8")
    if len(text.encode()) > generate.SIZE_LIMIT:
        return [too_large(name, text)]
    try:
        ids = [cell.get("id") for cell in json.loads(text)["cells"]]  # nbformat would mend doubles unasked
        if len(set(ids)) < len(ids):
            return [f"{name}, cell {next(i for i in ids if ids.count(i) > 1)!r}: twice. Run `course sync`."]
        found = nbformat.reads(text, as_version=4)
    except Exception as error:
        return [f"{name}: is no valid notebook ({error}). Run `course sync`."]
    problems = [f"{name}, {problem}" for problem in _cell_problems(found, expected, ids)]
    if problems:
        return problems
    if "code" not in found.metadata.get("course", {}):
        return [f"{name}: never executed. Run `course sync`."]
    if found.metadata.course.code != generate.code_hash(expected):
        return [f"{name}: not executed since its code changed. Run `course sync`."]
    outputs = {cell.id: cell.outputs for cell in found.cells if cell.cell_type == "code"}
    hashes = found.metadata.course.get("outputs", {})
    edited = [id for id, out in outputs.items() if hashes.get(id) != (outputs_hash(out) if out else None)]
    if edited:
        return [f"{name}, cell {id!r}: outputs changed by hand. Run `course sync --force`." for id in edited]
    attach_outputs(expected, outputs)
    for id, line in record_lines.replaced(project, outputs):
        problems.append(f"{name}, cell {id!r}: shows a record that was made again since ({line}). "
                        "Run `course sync`.")
    if problems:
        return problems
    if generate.to_text(expected) != text:
        return [f"{name}: its metadata or formatting was changed by hand. Run `course sync`."]
    return []


def _cell_problems(found: NotebookNode, expected: NotebookNode, ids: list[str | None]) -> list[str]:
    wanted = [cell.id for cell in expected.cells]
    if ids != wanted:
        for id in wanted:
            if id not in ids:
                return [f"cell {id!r}: missing. Run `course sync`."]
        extra = next((id for id in ids if id not in wanted), None)
        if extra is not None:
            return [f"cell {extra!r}: not in the lesson. Run `course sync`."]
        moved = next(have for have, want in zip(ids, wanted, strict=True) if have != want)
        return [f"cell {moved!r}: not in the lesson's order. Run `course sync`."]
    problems = []
    for have, want in zip(found.cells, expected.cells, strict=True):
        for part in ("cell_type", "source", "metadata"):
            if have[part] != want[part]:
                part = part.replace("_", " ")
                text = f"its {part} is not what the lesson gives. Edit lessons/, then run `course sync`."
                problems.append(f"cell {want.id!r}: {text}")
                break
    return problems


# --- files ------------------------------------------------------------------------------------------------


def write_notebook(project: Project, path: Path, notebook: NotebookNode) -> bool:
    """Write a notebook if its content changed.

    Args:
        project: the course.
        path: of the file.
        notebook: its content.

    Returns:
        True when the file was written.

    Raises:
        LessonError: the notebook is too large; names its largest cell.
    """
    text = generate.to_text(notebook)
    if len(text.encode()) > generate.SIZE_LIMIT:
        raise LessonError(project.relative(path), largest_cell(notebook), too_large("", text).lstrip(": "))
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    replace_file(path, text)
    return True


def too_large(name: str, text: str) -> str:
    """What is said about a notebook over the limit.

    Args:
        name: of the notebook.
        text: content of its file.

    Returns:
        One line with its size and the limit, in 10^6 bytes.
    """
    size, limit = len(text.encode()) / 1e6, generate.SIZE_LIMIT / 1e6
    return f"{name}: {size:.2f} MB, over the limit of {limit:.1f} MB. Make its pictures smaller."


def largest_cell(notebook: NotebookNode) -> str:
    """The cell to shorten when a notebook is too large.

    Args:
        notebook: the notebook.

    Returns:
        Its id.
    """
    return max(notebook.cells, key=lambda cell: len(json.dumps(cell))).id


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file aside, then rename it: an interrupt leaves the old one or the new one, never half of one.

    Args:
        path: of the file; folders on the way are made.
        content: what it will hold; text is encoded as UTF-8.
    """
    replace_files({path: content})


def replace_files(contents: dict[Path, str | bytes]) -> None:
    """Write every file aside, then rename them all: while one can still fail, all are as they were.

    Args:
        contents: by path, as in `replace_file`.
    """
    aside = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            aside[path].write_bytes(content.encode() if isinstance(content, str) else content)
        for path in contents:
            os.replace(aside[path], path)
    finally:
        for path in aside.values():
            with contextlib.suppress(OSError):
                path.unlink()
