"""`course new-exercise`: the three places of an exercise, written together, as a skeleton to be filled in.

An exercise is a cell of the lesson (which function is asked), an entry in course_utils/exercises/KEY.py (by
what an answer is judged) and planted answers in tests/exercises/test_KEY.py. The function itself stands in
the library. The skeleton fails, in the tests and in the lesson, until it is filled in.
"""

import ast
import difflib
import keyword
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from authoring import generate, library
from authoring.project import LessonError, Project
from authoring.sync import replace_files

WIDTH = 110  # characters of a line, as ruff is told in pyproject.toml
NEW_MODULE = '''"""What is asked in the lesson {key}."""

EXERCISES = []
'''
NEW_TEST = '''"""Lesson {key}: wrong answers are rejected for their reason, right ones written otherwise pass.

A shared test (test_all.py) walks these dictionaries; see tests/exercises/common.py for what it asserts.
"""

WRONG = {}

RIGHT = {}
'''
EXERCISE = '''\
def _{name}_cases():
    # Case({parameters}, label="what is special about it"),
    # with usual and extreme values, other shapes, dtypes and strides, two of the same shapes with other
    # numbers, real objects where they come (nn.Parameter, float16); seed what is random. One with
    # raises=ValueError for each argument that must be refused.
    raise NotImplementedError("{id}: its cases are not written yet")


{call}{constant} = Exercise(
    reference={reference},
    cases=_{name}_cases,
{call_argument}    mistakes=[
        # Mistake("what is wrong, and where to look.", a function that makes this mistake),
    ],
    # exact_dtype=True, where the docstring promises a type; gradients=True, where gradients belong to it.
    hint="",
)
'''
CALL = '''\
def _{name}_call(cls, *args):
    # What the class does with the arguments of a case; returns what is compared: a value, or a dict whose
    # keys say in plain words what was looked at. `checking.cases` has read_twice and error_of.
    raise NotImplementedError("{id}: how the class is called is not written yet")


'''
PREDICTION = '''\
def _{name}_answer():
    # Compute it from what the lesson knows; no number is typed that could be computed.
    raise NotImplementedError("{id}: its answer is not written yet")


{constant} = Prediction(
    id="{name}",
    answer=_{name}_answer,
    unit="",
    mistakes=[
        # (a wrong number, "how one comes to it, in a sentence."),
    ],
    hint="",
)
'''
WRONG = "# (answer, \"regex of the reason in the check's message\"): three at least"
RIGHT = "# answer: two at least, written differently from the reference"
NEXT = """\
Now fill them in. Until then the tests and the lesson's check fail.
  {lesson}: say in a markdown cell above {cell!r} what is asked{value}
  {module}: {fields} of {name!r}
  {test}: three wrong answers, each with the reason that the check must give, and two right ones
Then: python -m pytest tests/exercises -k {key}, and course sync {key}"""


@dataclass(frozen=True)
class Plan:
    """The exercise to be written.

    Args:
        lesson: the lesson, read.
        name: name of the exercise after the lesson's key; for a function, the function's own name.
        function: where the reference is, "package.module:function"; "" for a prediction.
        points: what nbgrader gives for it.
    """

    lesson: generate.Lesson
    name: str
    function: str
    points: int

    @property
    def id(self) -> str:
        """What the check is called with: `gptq.column_update`."""
        return f"{self.lesson.key}.{self.name}"

    @property
    def cell(self) -> str:
        """Name of the lesson's cell."""
        kind = "ex" if self.function else "predict"
        return f"{kind}-{self.name.removeprefix('predict_').replace('_', '-').lower()}"

    @property
    def module(self) -> Path:
        """File that says by what an answer is judged, relative to the repository."""
        return Path("course_utils", "exercises", f"{self.lesson.key}.py")

    @property
    def test(self) -> Path:
        """File of the planted answers, relative to the repository."""
        return Path("tests", "exercises", f"test_{self.lesson.key}.py")


def new_exercise(project: Project, lesson: str, name: str, *, function: str = "", predict: bool = False,
                 after: str = "", points: int = 1) -> list[str]:
    """Write the skeleton of an exercise into its three files.

    Args:
        project: the course.
        lesson: the lesson's key or number.
        name: the function's name; with `predict` any name, by custom "predict_..."
        function: where the function is, "package.module:function".
        predict: ask for a number instead of a function.
        after: name of the cell after which it comes; "" is before the lesson's recap.
        points: what nbgrader gives for it.

    Returns:
        Lines that say what was written and what is to be done next.

    Raises:
        ValueError: something does not fit; nothing was written then.
    """
    if not re.fullmatch(r"[A-Za-z]\w{0,49}", name, re.ASCII) or keyword.iskeyword(name):
        raise ValueError(f"{name!r} is no name for an exercise: at most 50 letters, digits and '_'.")
    (path,) = project.lessons([lesson])
    plan = Plan(generate.read_lesson(project, path), name, function, points)
    if predict and function:
        raise ValueError("a prediction asks for a number: leave out --function or --predict.")
    source = "" if predict else _reference(project, plan)
    text = {}
    for place, empty in ((plan.module, NEW_MODULE), (plan.test, NEW_TEST)):
        file = project.root / place
        new = empty.replace("{key}", plan.lesson.key)
        text[place] = file.read_text(encoding="utf-8") if file.exists() else new
    _check_free(plan, text)
    text[plan.module] = _with_entry(project, plan, text[plan.module], source)
    text[plan.test] = _with_planted(plan, text[plan.test])
    text[plan.lesson.path] = _with_cell(plan, path.read_text(encoding="utf-8"), after)
    replace_files({project.root / place: content for place, content in text.items()})
    return [f"wrote {place}" for place in text] + NEXT.format(
        lesson=plan.lesson.path, cell=plan.cell, module=plan.module, test=plan.test,
        name=name, key=plan.lesson.key,
        fields="cases, mistakes and hint" if function else "answer, unit, mistakes and hint",
        value="" if function else ", and in the cell itself a number that passes",
    ).splitlines()  # fmt: skip


# --- what must hold before anything is written ------------------------------------------------------------


def _reference(project: Project, plan: Plan) -> str:
    """Source of the function that is asked for. Raises ValueError when there is none to make a stub of."""
    name, function = plan.name, plan.function
    if not function:
        found = _places(project, name)
        advice = " or ".join(f"--function {place}" for place in found[:3]) or (
            f"write {name} in course_utils first, then add --function package.module:{name}")
        raise ValueError(f"say where the function is: {advice} (or --predict for a number to predict).")
    if not re.fullmatch(r"\w+(\.\w+)*:\w+", function):
        raise ValueError(f"--function {function}: write it as package.module:function.")
    if function.partition(":")[2] != name:
        raise ValueError(f"an exercise goes by the name of its function: {function.partition(':')[2]!r}, "
                         f"not {name!r}.")
    source = library.find_source(project.root, function)
    library.stub(library.mark_solution(source))
    return source


def _places(project: Project, name: str) -> list[str]:
    """Where the library defines a function or class of this name, as "package.module:name"."""
    found = []
    for path in sorted((project.root / "course_utils").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
                parts = path.relative_to(project.root).with_suffix("").parts
                found.append(f"{'.'.join(part for part in parts if part != '__init__')}:{name}")
    return found


def _check_free(plan: Plan, text: dict[Path, str]) -> None:
    """Raise ValueError when the lesson, the entries or the tests have an exercise or cell of this name."""
    cells = {cell.name for cell in plan.lesson.cells}
    asked = {str(cell.options.get("exercise", "")).partition(":")[2] for cell in plan.lesson.cells}
    asked |= {str(cell.options.get("predict", "")).partition(".")[2] for cell in plan.lesson.cells}
    planted = {getattr(key, "value", None) for variable in ("WRONG", "RIGHT")
               for key in _literal(text[plan.test], variable, plan.test).keys}
    for taken, place in ((plan.cell in cells or f"{plan.cell}-check" in cells, plan.lesson.path),
                         (plan.name in asked, plan.lesson.path),
                         (plan.name in _listed(text[plan.module], plan.module), plan.module),
                         (plan.name in planted, plan.test)):
        if taken:
            raise ValueError(f"{plan.id} is there already: see {place}.")


def _listed(text: str, path: Path) -> set[str]:
    """Names of the exercises and predictions in the text of a module of course_utils.exercises."""
    names = set()
    for node in ast.walk(_parsed(text, path)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Exercise", "Prediction"):
            given = {argument.arg: argument.value for argument in node.keywords}
            reference = given.get("reference")
            own = getattr(reference, "attr", getattr(reference, "id", ""))  # of `module.function`, `function`
            names.add(getattr(given.get("id"), "value", own))
    return names


# --- the texts --------------------------------------------------------------------------------------------


def _with_cell(plan: Plan, text: str, after: str) -> str:
    """The lesson with the exercise's cell behind the cell `after`, or else before the recap."""
    names = [cell.name for cell in plan.lesson.cells]
    if after and after not in names:
        near = difflib.get_close_matches(after, names, n=3) or names[-3:]
        raise ValueError(f"--after {after}: no such cell in {plan.lesson.path}; near it: {', '.join(near)}.")
    if after:
        place = names.index(after) + 1
    else:
        recaps = (n for n, cell in enumerate(plan.lesson.cells) if cell.type == "markdown"
                  and (cell.name == "recap" or re.search(r"^## Recap", cell.source, re.MULTILINE)))
        place = next(recaps, len(names))
    if plan.function:
        new = f'# %% name="{plan.cell}" exercise="{plan.function}" points={plan.points}\n'
    else:
        new = (f'# %% name="{plan.cell}" predict="{plan.id}" points={plan.points}\n'
               f"{library.BEGIN}\nprediction = None  # unit\n{library.END}\n")
    if place == len(names):
        return f"{text.rstrip()}\n\n{new}"
    lines = text.splitlines(keepends=True)
    heads = [n for n, line in enumerate(lines) if re.match(rf'# %%.*\bname="{names[place]}"', line)]
    if len(heads) != 1:
        raise LessonError(plan.lesson.path, names[place], "its first line cannot be found.")
    return "".join([*lines[: heads[0]], f"{new}\n", *lines[heads[0] :]])


def _with_entry(project: Project, plan: Plan, text: str, source: str) -> str:
    """The module of course_utils.exercises with the exercise's entry, and what the entry needs imported."""
    fields = {"name": plan.name, "id": plan.id}
    fields["constant"] = _free_name(plan.name.upper(), text)
    if not plan.function:
        imports, entry = ["from course_utils.checking import Prediction"], PREDICTION.format(**fields)
    else:
        imports, fields["reference"] = _import(plan, text)
        imports.append("from course_utils.checking import Case, Exercise, Mistake")
        (node,) = ast.parse(source).body
        is_class = isinstance(node, ast.ClassDef)
        parameters = "" if is_class else ", ".join(arg.arg for arg in node.args.args)
        fields["parameters"] = parameters if 0 < len(parameters) <= 60 else "..."
        fields["call"] = CALL.format(**fields) if is_class else ""
        fields["call_argument"] = f"    call=_{plan.name}_call,\n" if is_class else ""
        entry = EXERCISE.format(**fields)
    value = _literal(text, "EXERCISES", plan.module)
    text = _with_item(text, value, fields["constant"])
    head = text.splitlines(keepends=True)
    above, rest = "".join(head[: value.lineno - 1]), "".join(head[value.lineno - 1 :])
    title = f"# --- {plan.name} ".ljust(WIDTH - 2, "-")
    text = f"{above.rstrip()}\n\n\n{title}\n\n\n{entry}\n{rest}"
    return _sort_imports(project, plan.module, _with_imports(text, imports))


def _import(plan: Plan, text: str) -> tuple[list[str], str]:
    """(statements to add, how the reference is then written)."""
    module, _, name = plan.function.partition(":")
    package, _, last = module.rpartition(".")
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and node.module == package and not node.level:
            for alias in node.names:
                if alias.name == last:
                    return [], f"{alias.asname or last}.{name}"
    if package and _free_name(last, text) == last:
        return [f"from {package} import {last}"], f"{last}.{name}"
    return [f"import {module}"], f"{module}.{name}"


def _with_imports(text: str, statements: list[str]) -> str:
    """`text` with import statements behind its last one; some may be there already."""
    body = ast.parse(text).body
    last = max((node.end_lineno for node in body if isinstance(node, ast.Import | ast.ImportFrom)), default=0)
    lines = text.splitlines()
    if not last and body and isinstance(body[0], ast.Expr):
        last = body[0].end_lineno  # the docstring
        statements = ["", *statements]
    return "\n".join([*lines[:last], *statements, *lines[last:]]) + "\n"


def _sort_imports(project: Project, path: Path, text: str) -> str:
    """`text` with its imports merged and in order, by ruff."""
    from ruff import find_ruff_bin

    command = [find_ruff_bin(), "check", "--select", "I", "--fix", "--quiet", "--exit-zero",
               "--stdin-filename", str(path), "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=project.root, check=True)
    return done.stdout


def _with_planted(plan: Plan, text: str) -> str:
    """The test module with empty lists of planted answers, which the shared test refuses."""
    for variable, comment in (("WRONG", WRONG), ("RIGHT", RIGHT)):
        item = f'"{plan.name}": [\n        {comment}\n    ]'
        text = _with_item(text, _literal(text, variable, plan.test), item)
    return text


def _free_name(name: str, text: str) -> str:
    """`name`, or a longer one where the module's text already uses it."""
    tree = ast.parse(text)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {alias.asname or alias.name for node in ast.walk(tree)
             if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
    while name in used or keyword.iskeyword(name):
        name += "_EXERCISE"
    return name


def _parsed(text: str, path: Path) -> ast.Module:
    """Syntax tree of a file's text. Raises ValueError, with file and line, when it is no Python."""
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}; mend it first.") from error


def _literal(text: str, variable: str, path: Path) -> ast.List | ast.Dict:
    """The list or dict that `text` assigns to `variable`. Raises ValueError when it does not."""
    for node in _parsed(text, path).body:
        if (isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == variable
                and isinstance(node.value, ast.List | ast.Dict)):
            return node.value
    raise ValueError(f"{path} assigns no list or dict to {variable}.")


def _with_item(text: str, value: ast.List | ast.Dict, item: str) -> str:
    """`text` with one more item at the end of a list or dict that stands in it."""
    items = value.elts if isinstance(value, ast.List) else value.values
    data = text.encode()  # the tree counts bytes
    starts = [0]
    for line in data.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    begin = starts[value.lineno - 1] + value.col_offset
    end = starts[value.end_lineno - 1] + value.end_col_offset
    if not items and isinstance(value, ast.List):
        middle = f"[{item}]"
    elif not items:
        middle = "{\n    " + item + ",\n}"
    elif value.lineno == value.end_lineno and isinstance(value, ast.List):
        middle = data[begin : end - 1].decode() + f", {item}]"
        if value.col_offset + len(middle) > WIDTH:
            parts = [ast.get_source_segment(text, element) for element in items] + [item]
            middle = "[\n" + "".join(f"    {part},\n" for part in parts) + "]"
    else:
        last = starts[items[-1].end_lineno - 1] + items[-1].end_col_offset
        middle = data[begin:last].decode() + f",\n    {item}" + data[last:end].decode()
    return data[:begin].decode() + middle + data[end:].decode()
