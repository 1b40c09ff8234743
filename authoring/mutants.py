"""Do the checks notice small changes of a right answer? Mutation testing of each exercise.

What a learner has to write is changed in one place (`authoring.mutation`) and judged like an answer. A mutant
that passes is a survivor: a new case kills it, or `tests/mutants/KEY.toml` says why it is as right:

    [[equal]]
    exercise = "Hessian"
    before = "the changed line as it was"
    after = "the line in its place"
    reason = "why no learner's check has to tell them apart"
"""

import __future__

import ast
import contextlib
import dataclasses
import io
import json
import linecache
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from authoring import library
from authoring.generate import Lesson, read_lesson
from authoring.mutation import Mutant, mutants
from authoring.project import Project, key_of
from authoring.sync import replace_file
from course_utils import checking
from course_utils.checking.judge import judge

FOLDER = "tests/mutants"  # of the lists, below the course's root
SECONDS = 5.0  # a case of a mutant may take so long; one that never ends counts as noticed


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a learner has to write for one exercise.

    Attributes:
        lesson: its key.
        name: of the function or class.
        source: its definition, with solution marks.
        namespace: what its names mean.
    """

    lesson: str
    name: str
    source: str
    namespace: dict[str, Any]

    @property
    def id(self) -> str:
        """What the check calls the exercise."""
        return f"{self.lesson}.{self.name}"

    @property
    def lines(self) -> list[int]:
        """Numbers of the lines that the learner's notebook leaves out."""
        inside, found = False, []
        for number, line in enumerate(self.source.splitlines(), start=1):
            inside = (inside or line.strip() == library.BEGIN) and line.strip() != library.END
            found += [number] * inside
        return found


@dataclasses.dataclass(frozen=True)
class Report:
    """What came of the mutants of one exercise.

    Attributes:
        id: of the exercise.
        mutants: how many there are.
        killed: how many its check rejects.
        equal: survivors that the list explains.
        unexplained: survivors that it does not explain.
        stale: entries of the list, as (before, after), that no survivor matches.
    """

    id: str
    mutants: int
    killed: int
    equal: list[Mutant]
    unexplained: list[Mutant]
    stale: list[tuple[str, str]]

    @property
    def settled(self) -> bool:
        """Whether each survivor is explained and each explanation has its survivor."""
        return not self.unexplained and not self.stale


def answers(project: Project, path: Path) -> list[Answer]:
    """What a lesson asks for. Predictions are not among it.

    Args:
        project: the course.
        path: the lesson's source.

    Returns:
        Its exercises in order, solved.

    Raises:
        LessonError: the lesson is not as it must be.
        ValueError: it names a function that does not exist.
    """
    lesson, found = read_lesson(project, path), []
    for cell in lesson.cells:
        target = cell.options.get("exercise")
        if target == "inline":
            name = library.defined_name(cell.source)
            found.append(Answer(lesson.key, name, cell.source, _imports(lesson)))
        elif target:
            name = target.partition(":")[2]
            source = library.mark_solution(library.find_source(project.root, target))
            reference = checking.find(f"{lesson.key}.{name}").reference
            found.append(Answer(lesson.key, name, source, vars(sys.modules[reference.__module__])))
    return found


def _imports(lesson: Lesson) -> dict[str, Any]:
    """What the names mean that a lesson's cells import."""
    code = "\n\n".join(cell.source for cell in lesson.cells if cell.type == "code")
    lines = [node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]
    namespace: dict[str, Any] = {"__name__": lesson.key}
    exec(compile(ast.Module(lines, []), lesson.key, "exec"), namespace)
    return namespace


def define(answer: Answer, source: str, file: str) -> Any:
    """Execute a definition among copies of the names that the original sees.

    Args:
        answer: what the definition takes the place of.
        source: the definition.
        file: what the file is called in which `inspect` then finds the source.

    Returns:
        The function or class.
    """
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    code = compile(source, file, "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True)
    namespace = dict(answer.namespace)
    exec(code, namespace)
    return namespace[answer.name]


def survivors(answer: Answer, step: Callable[[], None] = lambda: None) -> Iterator[tuple[Mutant, bool]]:
    """Judge each mutant of an answer.

    Args:
        answer: what is changed.
        step: called after each.

    Yields:
        Each mutant, and whether it passes.

    Raises:
        RuntimeError: the answer itself does not pass.
    """
    exercise = checking.find(answer.id)
    cases = exercise.cases()
    exercise = dataclasses.replace(exercise, cases=lambda: cases, mistakes=[], seconds=SECONDS)

    def passes(source: str) -> bool:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answered = define(answer, source, f"<mutant of {answer.id}>")
            return judge(exercise, answered, answer.id).status == checking.PASSED

    if not passes(answer.source):
        raise RuntimeError(f"{answer.id}: its own solution fails; run `pytest tests/exercises` first.")
    for mutant in mutants(answer.source, answer.lines):
        yield mutant, passes(mutant.source)
        step()


def explained(project: Project, key: str) -> dict[tuple[str, str, str], str]:
    """The survivors of a lesson that are as right as the reference.

    Args:
        project: the course.
        key: of the lesson.

    Returns:
        (exercise, before, after) -> the reason.

    Raises:
        ValueError: an entry lacks something, or stands there twice.
    """
    path = project.root / FOLDER / f"{key}.toml"
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("equal", []) if path.exists() else []
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{project.relative(path)} is no TOML: {error}") from error
    found: dict[tuple[str, str, str], str] = {}
    for n, entry in enumerate(entries, start=1):
        where = f"{project.relative(path)}, entry {n}"
        missing = [name for name in ("exercise", "before", "after") if name not in entry]
        missing += ["reason"] * (not entry.get("reason", "").strip())
        if missing or set(entry) - {"exercise", "before", "after", "reason"}:
            raise ValueError(f"{where}: needs exercise, before, after and reason; lacks "
                             f"{', '.join(missing) or 'nothing'}; has {', '.join(entry) or 'nothing'}.")
        if entry["exercise"] not in checking.load(key):
            raise ValueError(f"{where}: lesson {key!r} has no exercise {entry['exercise']!r}.")
        mutant = entry["exercise"], entry["before"].strip(), entry["after"].strip()
        if mutant in found:
            raise ValueError(f"{where}: the same change stands there twice.")
        found[mutant] = entry["reason"]
    return found


def report(project: Project, answer: Answer, step: Callable[[], None] = lambda: None) -> Report:
    """Judge the mutants of an exercise and compare the survivors with the list.

    Args:
        project: the course.
        answer: the exercise.
        step: called after each mutant.

    Returns:
        What came of it.

    Raises:
        ValueError: the list of the lesson is not as it must be.
    """
    listed = {key[1:] for key in explained(project, answer.lesson) if key[0] == answer.name}
    judged = list(survivors(answer, step))
    passed = [mutant for mutant, passes in judged if passes]
    equal = [mutant for mutant in passed if (mutant.before, mutant.after) in listed]
    stale = sorted(listed - {(mutant.before, mutant.after) for mutant in equal})
    unexplained = [mutant for mutant in passed if mutant not in equal]
    return Report(answer.id, len(judged), len(judged) - len(passed), equal, unexplained, stale)


def select(project: Project, names: Sequence[str] = ()) -> list[Answer]:
    """The exercises that were asked for.

    Args:
        project: the course.
        names: lessons ("04", "gptq") or exercises ("gptq.Hessian"); all when empty.

    Returns:
        Their answers in the order of the course.

    Raises:
        ValueError: there is no such lesson or exercise, or a list of survivors is not as it must be.
    """
    keys = [key_of(path) for path in project.lessons()]
    for path in sorted((project.root / FOLDER).glob("*.toml")):
        if path.stem not in keys:
            raise ValueError(f"{project.relative(path)} belongs to no lesson: rename or remove it.")
        explained(project, path.stem)
    chosen = []
    for name in names or keys:
        lesson, _, exercise = name.partition(".")
        (path,) = project.lessons([lesson])
        found = [answer for answer in answers(project, path) if exercise in ("", answer.name)]
        if exercise and not found:
            raise ValueError(f"lesson {lesson!r} has no exercise {exercise!r} with a function to write.")
        chosen += found
    return chosen


def entry(id: str, mutant: Mutant) -> str:
    """A survivor as the list has it, the reason left open.

    Args:
        id: of the exercise.
        mutant: the survivor.

    Returns:
        TOML.
    """
    lines = [f"# {mutant.operator}", "[[equal]]", f"exercise = {_quote(id.partition('.')[2])}",
             f"before = {_quote(mutant.before)}", f"after = {_quote(mutant.after)}", 'reason = ""']
    return "\n".join(lines)


def _quote(text: str) -> str:
    """A string of TOML: without escapes where the text allows it."""
    if "\n" in text and "'''" not in text:
        return f"'''\n{text}'''"
    return f"'{text}'" if text and "'" not in text and "\n" not in text else json.dumps(text)


def problems(found: Report) -> list[str]:
    """What has to be mended, as texts for an author.

    Args:
        found: the report of an exercise.

    Returns:
        One text for each unexplained survivor and each stale entry.
    """
    path = f"{FOLDER}/{found.id.partition('.')[0]}.toml"
    texts = [f"{found.id} accepts this change. Add a case that tells them apart, or, with a reason, to "
             f"{path}:\n{entry(found.id, mutant)}" for mutant in found.unexplained]
    texts += [f"{path} is stale: {found.id} has no survivor with before = {before!r}, after = {after!r}. "
              "Remove the entry." for before, after in found.stale]
    return texts


def main(project: Project, names: Sequence[str], *, show: bool, json_path: Path | None) -> int:
    """Judge mutants with a progress bar and print a table.

    Args:
        project: the course.
        names: which, as in `select`.
        show: whether the problems are printed whole.
        json_path: file for the numbers and the survivors; None for none.

    Returns:
        The exit code: 1 when a survivor is unexplained or an entry is stale.

    Raises:
        ValueError: as in `select` and `explained`.
    """
    from rich.console import Console
    from rich.table import Table
    from tqdm import tqdm

    chosen = select(project, names)
    if not chosen:
        raise ValueError(f"{', '.join(names) or 'the course'}: no exercise asks for a function.")
    total = sum(1 for answer in chosen for _ in mutants(answer.source, answer.lines))
    reports = []
    with tqdm(total=total, unit="mutant", disable=None) as bar:
        for answer in chosen:
            bar.set_description(answer.id)
            reports.append(report(project, answer, bar.update))
    table = Table("exercise", "mutants", "killed", "equal (explained)", "unexplained", "stale entries")
    rows = [(r.id, r.mutants, r.killed, len(r.equal), len(r.unexplained), len(r.stale)) for r in reports]
    for row in rows:
        table.add_row(*map(str, row))
    table.add_section()
    table.add_row("all", *(str(sum(column)) for column in list(zip(*rows, strict=True))[1:]))
    # A narrow pipe would fold the names.
    Console(width=None if Console().is_terminal else max(110, Console().width)).print(table)
    if show:
        print(*(text for found in reports for text in problems(found)), sep="\n\n")
    if json_path:
        replace_file(json_path, json.dumps([dataclasses.asdict(r) for r in reports], indent=1) + "\n")
    return int(not all(found.settled for found in reports))
