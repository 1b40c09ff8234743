"""Grade the answers of submitted notebooks, not the notebooks.

Only the answers run, each in a bound process of its own that holds no case and no expected value. The judge,
in this process, is the one of `check(...)` in a notebook; it executes no line of a submission. Which lesson,
which exercises and how many points: the course says so, never the submission.
"""

import ast
import contextlib
import dataclasses
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from authoring import sync
from authoring.grading import results as kept
from authoring.grading.reports import as_csv, feedback_page, page_names
from authoring.grading.results import Answer, Grade, shown
from authoring.grading.starter import Bounds, Starter
from authoring.grading.submissions import Cell, Submission, cells, collect
from authoring.grading.trees import (
    Assignment,
    Task,
    Trees,
    as_python,
    assignment,
    global_names,
    needed,
)
from authoring.project import Project
from course_utils import checking
from course_utils.checking.describe import one_line, printable
from course_utils.checking.limits import Stopped
from course_utils.checking.mirror import opaque
from course_utils.checking.remote import Channel
from course_utils.checking.source import told
from course_utils.checking.spec import FAILED, NOT_ATTEMPTED, PASSED, Exercise, Prediction, Result

MOST_MESSAGE = 4_000  # letters


@dataclasses.dataclass(frozen=True)
class Rules:
    """How answers are marked.

    Attributes:
        seed: draws further cases, which no learner has seen; "" draws none.
        partial: whether an answer that is right in some cases gets that share of its points.
        bounds: what an answer may take.
    """

    seed: str = ""
    partial: bool = False
    bounds: Bounds = Bounds()


class Grader:
    """Grades submissions one after the other; a context manager.

    Args:
        project: the course.
        rules: how answers are marked.
    """

    def __init__(self, project: Project, rules: Rules | None = None) -> None:
        self.project, self.rules = project, rules or Rules()
        self.starter = Starter(self.rules.bounds)
        self._folder = tempfile.TemporaryDirectory(prefix="course-grade-")
        self.trees = Trees(project, Path(self._folder.name))
        self.assignments: dict[str, Assignment] = {}

    def __enter__(self) -> "Grader":
        return self

    def __exit__(self, *_: object) -> None:
        self.starter.__exit__()
        self._folder.cleanup()

    def assignment(self, lesson: str) -> Assignment:
        """What a lesson asks.

        Args:
            lesson: its key or number.

        Returns:
            Its tasks.

        Raises:
            ValueError: there is no such lesson.
        """
        if lesson not in self.assignments:
            found = assignment(self.project, lesson)
            if not self.assignments:
                self.starter.prepare(self.trees.of(""), self.trees.own, found.imports)
            self.assignments[lesson] = found
        return self.assignments[lesson]

    def grade(self, submission: Submission, lesson: str = "") -> Grade:
        """Grade one submission. Never raises for what it holds: see `Grade.error`.

        Args:
            submission: the notebook.
            lesson: key or number of its lesson; "" takes it from the file's name.

        Returns:
            Its points.
        """
        result = Grade(submission.path, student=one_line(submission.student), id=submission.id,
                       bounds=self.starter.text)
        try:
            if submission.error:
                raise ValueError(submission.error)
            asked = self.assignment(lesson or _lesson_of(self.project, submission))
            result.lesson = asked.key
            self._grade(asked, cells(submission.text), result)
        except ValueError as error:
            result.error = f"not graded: {printable(' '.join(str(error).split()))[:200]}"
        except Exception as error:  # no submission may end the grading of the others
            result.error = f"not graded: {type(error).__name__} {printable(error)[:200]}"
        return result

    def _grade(self, asked: Assignment, handed_in: list[Cell], result: Grade) -> None:
        sources = {task.cell: answer_to(task, handed_in, result.notes) for task in asked.tasks}
        if not any(cell.name in asked.names for cell in handed_in) and not any(sources.values()):
            raise ValueError(f"no cell of it is one of the lesson {asked.key!r}")
        extra = _extra(asked, handed_in, sources)
        code = [[cell, as_python(source)] for cell, source in sources.items() if source is not None]
        end = time.monotonic() + self.rules.bounds.total
        for task in asked.tasks:
            source = sources[task.cell]
            try:
                got = self._judge(task, source, asked.imports + extra, code, end - time.monotonic())
            except Exception as error:  # the course's own, so it must not become a 0
                text = f"{type(error).__name__}: {' '.join(printable(error).split())}"[:200]
                result.error = result.error or f"not graded: {task.id} could not be judged ({text})"
                continue
            points = task.points if got.status == PASSED else 0
            if self.rules.partial and got.right:
                points = round(task.points * got.right / got.cases, 2)
            message, source = printable(got.message)[:MOST_MESSAGE], printable(source or "")
            result.answers[task.cell] = Answer(points, task.points, got.status, message, source)

    def _judge(
        self, task: Task, source: str | None, imports: list[str], code: list[list[str]], left: float
    ) -> Result:
        if source is None or source.strip() == task.stub.strip():
            return checking.judge(task.id, None)
        if left <= 0:
            return Result(FAILED, 0, f"{task.id}: not run. The answers before it took all of the "
                                     f"{self.rules.bounds.total:g} seconds of a submission.")
        exercise = checking.find(task.id)
        channel = self.starter.start(self.trees.of(task.target), self.trees.own, left)
        try:
            answer = _fetch(channel, task, exercise, imports, code)
            return checking.judge(task.id, answer, self.rules.seed)
        except Stopped as error:
            return Result(FAILED, 0, f"{task.id}: failed\n  {error}")
        except BaseException as error:  # the cell itself raised, perhaps SystemExit
            if told(error) is None:
                raise
            if told(error).stub:
                return Result(NOT_ATTEMPTED, 0, f"{task.id}: not attempted.")
            text = f"{task.id}: failed\n  the cell raised {type(error).__name__}: {error}"
            return Result(FAILED, 0, text)
        finally:
            channel.close()


def _fetch(
    channel: Channel, task: Task, exercise: Exercise | Prediction, imports: list[str], code: list[list[str]]
) -> object:
    """Run the cells over there; what stands for the answer here."""
    plain = isinstance(exercise, Prediction)
    channel.request("cells", imports=imports, cells=code)
    answer = channel.answer(task.cell if plain else f"{task.cell}:{task.name}", exercise)
    if plain and not isinstance(answer, int | float | str | None):
        return None if answer is ... else opaque(type(answer).__name__)
    return answer


def grade(project: Project, submission: Path, *, lesson: str = "", rules: Rules | None = None) -> Grade:
    """Grade one submitted notebook. Never raises for what it holds: see `Grade.error`.

    Args:
        project: the course.
        submission: path of the notebook.
        lesson: key or number of its lesson; "" takes it from the file's name.
        rules: how answers are marked.

    Returns:
        Its points.
    """
    (found,) = collect([submission])
    with Grader(project, rules) as grader:
        return grader.grade(found, lesson)


def _lesson_of(project: Project, submission: Submission) -> str:
    """The lesson that the name of a file says, as in "04_gptq (1).ipynb", or that of its folder."""
    folder = submission.path.parent.name
    for lesson in project.lessons():
        key = lesson.stem.partition("_")[2]
        if re.match(rf"{lesson.stem}(?![a-z0-9_])", submission.file) or folder in (key, lesson.stem):
            return key
    raise ValueError("its name does not say which lesson it is: say so with --lesson KEY")


def _extra(asked: Assignment, handed_in: list[Cell], sources: dict[str, str | None]) -> list[str]:
    """What an answer may need of cells that the learner wrote besides it, or of the lesson's own, changed."""
    used = {name for source in sources.values() for name in global_names(source or "")}
    given, answers = set(asked.imports), {task.cell for task in asked.tasks}
    return [statement for cell in handed_in if cell.type == "code" and cell.name not in answers
            for statement in needed(cell.source, () if cell.name in asked.names else used)
            if statement not in given]


def answer_to(task: Task, handed_in: list[Cell], notes: list[str]) -> str | None:
    """The answer to a task, wherever in the notebook it stands.

    Args:
        task: what was asked.
        handed_in: the notebook's cells.
        notes: gets a line for whatever is odd.

    Returns:
        Its source; None where there is none.
    """
    found = [cell for cell in handed_in if cell.name == task.cell]
    if not found:
        if task.name == "prediction":
            found = _before_check(task, handed_in)
        else:
            found = [cell for cell in handed_in if task.name in _defined(cell.source)]
        if found:
            notes.append(f"answer {task.cell} found by what it says: its cell is not the lesson's")
    written = [cell for cell in found if cell.source.strip() != task.stub.strip()]
    if len(written) > 1:
        notes.append(f"answer {task.cell} stands in {len(written)} cells: the first one counts")
    if not found:
        notes.append(f"missing answer {task.cell}")
        return None
    cell = (written or found)[0]
    if cell.type != "code":
        notes.append(f"answer {task.cell} had been turned into {printable(cell.type)[:20]}: read as code")
    return cell.source


def _before_check(task: Task, handed_in: list[Cell]) -> list[Cell]:
    """The cell with a prediction, by the check that stands below it."""
    checks = [n for n, cell in enumerate(handed_in) if f'check("{task.id}"' in cell.source]
    above = [cell for cell in handed_in[:min(checks, default=0)] if "prediction" in _defined(cell.source)]
    return above[-1:]


def _defined(source: str) -> set[str]:
    """Names that a cell gives to functions, classes and values."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    names = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return names | {target.id for node in body if isinstance(node, ast.Assign)
                    for target in node.targets if isinstance(target, ast.Name)}


_here: dict[str, Grader] = {}  # of a process that is given one submission after the other


def grade_here(root: str, rules: Rules, submission: Submission, lesson: str) -> Grade:
    """Grade one submission with this process' grader for these rules, which is made once.

    Args:
        root: folder of the course.
        rules: how answers are marked.
        submission: the notebook.
        lesson: key or number; "" takes it from the file's name.

    Returns:
        Its points.
    """
    key = repr((root, rules))
    if key not in _here:
        _here[key] = Grader(Project(Path(root)), rules)
    return _here[key].grade(submission, lesson)


def grade_all(
    project: Project, submissions: Sequence[Submission], *, lesson: str = "", results: Path | None = None,
    feedback: Path | None = None, rules: Rules | None = None, grader: Grader | None = None,
    dask: str | None = None,
) -> Iterator[Grade]:  # fmt: skip
    """Grade submissions, writing down each result when it is known.

    Args:
        project: the course.
        submissions: what `collect` found.
        lesson: key or number; "" takes it from each file's name.
        results: folder for one JSON a submission; what stands there and still holds is not graded again.
        feedback: folder for one page a submission.
        rules: how answers are marked.
        grader: one that stands already, with rules of its own.
        dask: address of a scheduler whose workers grade, see `authoring.cluster`; None grades here.

    Yields:
        The grades as they are known.
    """
    released = [path.stem for path in project.lessons()]
    names = page_names([submission.path for submission in submissions], released)
    rules = grader.rules if grader else rules or Rules()
    settings = lesson, repr(rules), kept.library_mark(project)
    marks = [kept.stamp(submission, *settings) for submission in submissions]
    open_tasks = []
    for n, (name, mark) in enumerate(zip(names, marks, strict=True)):
        graded = kept.read(results / f"{name}.json", mark) if results else None
        if graded is None:
            open_tasks.append(n)
            continue
        graded.submission, graded.id = submissions[n].path, submissions[n].id  # it may have been moved
        if feedback:
            sync.replace_file(feedback / f"{name}.html", feedback_page(graded))
        yield graded
    tasks = [submissions[n] for n in open_tasks]
    if grader or dask is None:
        found = _graded_here(project, tasks, lesson, rules, grader)
    else:
        found = _graded_there(project, tasks, lesson, rules, dask)
    for n, graded in found:
        name = names[open_tasks[n]]
        if results:
            sync.replace_file(results / f"{name}.json", kept.as_json(graded, marks[open_tasks[n]]))
        if feedback:
            sync.replace_file(feedback / f"{name}.html", feedback_page(graded))
        yield graded


def _graded_here(
    project: Project, tasks: list[Submission], lesson: str, rules: Rules, grader: Grader | None
) -> Iterator[tuple[int, Grade]]:
    with contextlib.nullcontext(grader) if grader else Grader(project, rules) as grader:
        for n, submission in enumerate(tasks):
            yield n, grader.grade(submission, lesson)


def _graded_there(
    project: Project, tasks: list[Submission], lesson: str, rules: Rules, dask: str
) -> Iterator[tuple[int, Grade]]:
    from authoring.cluster import spread

    arguments = [(str(project.root), rules, submission, lesson) for submission in tasks]
    for n, graded in spread(grade_here, arguments, dask) if tasks else ():
        if isinstance(graded, BaseException):
            why = f"not graded: the process that judged it ended ({type(graded).__name__})"
            graded = Grade(tasks[n].path, student=one_line(tasks[n].student), id=tasks[n].id, error=why)
        yield n, graded


def main(
    project: Project,
    paths: list[Path],
    *,
    lesson: str = "",
    csv_path: Path | None = None,
    layout: str = "plain",
    results: Path | None = None,
    feedback: Path | None = None,
    rules: Rules | None = None,
    dask: str | None = None,
) -> int:
    """Grade, say each result when it is known, print a table, write what was asked for.

    Args:
        project: the course.
        paths: of notebooks, folders or zip archives.
        lesson: as of `grade_all`.
        csv_path: file for the points; None for none.
        layout: of that file, see `as_csv`.
        results: as of `grade_all`.
        feedback: as of `grade_all`.
        rules: as of `grade_all`.
        dask: as of `grade_all`.

    Returns:
        The exit code: 1 when a submission could not be graded.
    """
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from authoring.progress import table_width

    if lesson:
        assignment(project, lesson)  # an unknown one is an error before anything is graded
    submissions = collect(paths)
    for folder in (results, feedback):
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
    if not dask and (len(submissions) < 2 or find_spec("distributed") is None):
        dask = None
    work = grade_all(project, submissions, lesson=lesson, results=results, feedback=feedback, rules=rules,
                     dask=dask)
    grades, known = [], Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    for graded in track(work, description="grading", total=len(submissions), transient=True, console=known):
        grades.append(graded)
        where = f"{len(grades)} of {len(submissions)}"
        known.print(f"{where}  {shown(graded.submission)}: {graded.error or graded.total}")
    order = {submission.path: n for n, submission in enumerate(submissions)}
    grades.sort(key=lambda graded: order.get(graded.submission, len(order)))
    table = Table("student", "submission", "lesson", "points", "notes")
    for graded in grades:
        notes = "\n".join(graded.remarks)
        table.add_row(graded.student, shown(graded.submission), graded.lesson, graded.total, notes)
    console = Console(width=table_width(), markup=False)
    console.print(table)
    if grades:
        console.print(f"Bounds: {grades[0].bounds}.")
    if csv_path:
        sync.replace_file(csv_path, as_csv(grades, layout))
    return int(any(graded.error for graded in grades))
