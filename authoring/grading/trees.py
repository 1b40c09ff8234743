"""The library as one exercise's answers see it: without the function that is asked for, and without cases."""

import ast
import compileall
import contextlib
import dataclasses
import os
import shutil
import symtable
from collections.abc import Collection
from pathlib import Path

import course_utils
from authoring import generate, library
from authoring.project import Project
from course_utils import checking

LEFT_OUT = {"exercises", "__pycache__"}


@dataclasses.dataclass(frozen=True)
class Task:
    """One graded cell of a lesson.

    Attributes:
        cell: its grade id, without "-check".
        id: of the exercise, such as "gptq.Hessian".
        name: what the answer is called; "prediction" for a prediction.
        points: what it gives.
        target: where its reference stands, "package.module:function"; "" for a prediction or an inline one.
        stub: the cell's source as it was handed out.
    """

    cell: str
    id: str
    name: str
    points: float
    target: str
    stub: str


@dataclasses.dataclass(frozen=True)
class Assignment:
    """A lesson as it is graded.

    Attributes:
        key: of the lesson.
        tasks: its graded cells.
        imports: its imports, and what else of it an answer may need: functions, classes and constants.
        names: ids of all of its cells.
    """

    key: str
    tasks: list[Task]
    imports: list[str]
    names: frozenset[str]


def assignment(project: Project, key: str) -> Assignment:
    """What a lesson asks, from its source alone.

    Args:
        project: the course.
        key: of the lesson, or its number.

    Returns:
        Its tasks.

    Raises:
        ValueError: there is no such lesson.
        LessonError: its source is not as it must be.
    """
    (path,) = project.lessons([key])
    lesson = generate.read_lesson(project, path)
    release = generate.make_notebook(project, lesson, "notebooks", {})
    stubs = {cell.id: cell.source for cell in release.cells}
    tasks, imports = [], []
    for cell in lesson.cells:
        if not {"predict", "exercise"} & set(cell.options):
            if cell.type == "code":
                imports += needed(cell.source)
            continue
        target = cell.options.get("exercise", "")
        if "predict" in cell.options:
            id, name, target = cell.options["predict"], "prediction", ""
        elif target == "inline":
            name = library.defined_name(cell.source)
            id, target = f"{lesson.key}.{name}", ""
        else:
            name = target.partition(":")[2]
            id = f"{lesson.key}.{name}"
        tasks.append(Task(cell.name, id, name, cell.options.get("points", 1), target, stubs[cell.name]))
    _register(path)
    return Assignment(lesson.key, tasks, imports, frozenset(stubs))


def needed(source: str, names: Collection[str] = ()) -> list[str]:
    """Statements of a cell that an answer may need: imports, functions, classes, plain constants.

    Args:
        source: of the cell.
        names: what answers use. What has one of these names is no plain constant, but needed all the same.

    Returns:
        Their source, each by itself, as far as it is Python.
    """
    found = []
    try:
        for node in ast.parse(as_python(source)).body:
            assigned = isinstance(node, ast.Assign | ast.AnnAssign)
            wanted = assigned and any(isinstance(part, ast.Name) and part.id in names
                                      and isinstance(part.ctx, ast.Store) for part in ast.walk(node))
            kinds = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef
            if isinstance(node, kinds) or wanted or (assigned and not _calls(node)):
                found.append(ast.unparse(node))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    return found


def _calls(node: ast.AST) -> bool:
    """Whether something is called where this is run; what a lambda calls, it calls later."""
    if isinstance(node, ast.Lambda):
        return False
    return isinstance(node, ast.Call | ast.Await) or any(map(_calls, ast.iter_child_nodes(node)))


def as_python(source: str) -> str:
    """A cell without the lines that only a notebook knows, such as `%%time`, `!ls` and `halve?`.

    Args:
        source: of the cell.

    Returns:
        Python, or what is none for other reasons. Its lines have the same numbers.
    """
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        lines = source.splitlines()
        source = "\n".join("" if line.lstrip().startswith(("%", "!", "?")) or line.rstrip().endswith("?")
                           else line for line in lines)  # fmt: skip
    return source


def global_names(source: str) -> set[str]:
    """Names that a cell, and the functions in it, read from outside.

    Args:
        source: of the cell.

    Returns:
        The names, those of builtins too.
    """
    found, waiting = set(), []
    with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        waiting.append(symtable.symtable(as_python(source), "cell", "exec"))
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        top = table.get_type() == "module"
        found |= {name.get_name() for name in table.get_symbols()
                  if name.is_referenced() and (top or name.is_global())}
    return found


def _register(path: Path) -> None:
    """Where a lesson says `checking.MODULES["key"] = "module"`, do as it says."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            place = node.targets[0]
            if ast.unparse(place.value) == "checking.MODULES" and isinstance(node.value, ast.Constant):
                checking.MODULES[ast.literal_eval(place.slice)] = node.value.value


class Trees:
    """Copies of the library, one for each exercise.

    Args:
        project: the course.
        folder: an empty one, for the copies.
    """

    def __init__(self, project: Project, folder: Path) -> None:
        self.root, self.folder = project.root, folder
        self.made: dict[str, Path] = {}
        self.own: list[str] = ["course_utils", "authoring"]

    def of(self, target: str) -> Path:
        """The library in which one function is a stub.

        Args:
            target: as of `Task`; "" empties nothing.

        Returns:
            The folder to import from.
        """
        if target not in self.made:
            self.made[target] = self._without(target) if target else self._whole()
        return self.made[target]

    def _whole(self) -> Path:
        tree = self.folder / "library"
        package = Path(course_utils.__file__).resolve().parent
        shutil.copytree(package, tree / "course_utils", ignore=lambda _, names: LEFT_OUT & set(names))
        if self.root.resolve() != package.parent:  # a course that brings modules of its own
            hidden = {name.partition(".")[0] for name in checking.MODULES.values()}
            for path in self.root.glob("*.py"):
                if path.stem not in hidden:
                    shutil.copy(path, tree / path.name)
                    self.own.append(path.stem)
        compileall.compile_dir(tree, quiet=2, workers=1)
        return tree

    def _without(self, target: str) -> Path:
        """A copy of the whole library, of linked files, in which the modules with the function are others."""
        whole, tree = self.of(""), self.folder / f"library{len(self.made)}"
        source = library.find_source(self.root, target)
        stub = library.stub(library.mark_solution(source))
        texts = {path: path.read_text(encoding="utf-8") for path in whole.rglob("*.py")}
        texts = {path: text for path, text in texts.items() if source in text}
        if not texts:
            raise ValueError(f"{target} cannot be emptied: its source is not in the library.")
        shutil.copytree(whole, tree, copy_function=os.link)
        for path, text in texts.items():
            place = tree / path.relative_to(whole)
            compiled = [cached for cached in place.parent.glob("__pycache__/*.pyc")
                        if cached.name.partition(".")[0] == place.stem]
            for old in (place, *compiled):  # a link: the other copies stay as they are
                old.unlink()
            place.write_text(text.replace(source, stub), encoding="utf-8")
            compileall.compile_file(place, quiet=2)
        return tree
