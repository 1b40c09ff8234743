"""Take a function's source out of the library, and make a stub of it.

Works on text and syntax tree, importing nothing, so that signature and docstring keep every byte.
"""

import ast
import io
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"


def find_source(root: Path, target: str) -> str:
    """Source of a function or class of the library.

    Args:
        root: the folder that holds the package.
        target: what is wanted, such as "course_utils.costs:parameter_count". A package's name will do when
            the package passes on the name of one of its modules.

    Returns:
        The definition with its decorators.

    Raises:
        ValueError: there is no such module or name.
    """
    module, _, name = target.partition(":")
    path = _module_file(root, module)
    if path is None or not name.isidentifier():
        raise ValueError(f"{target!r} is no function of this repository (write package.module:function).")
    text = path.read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef) and node.name == name:
            start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            return "\n".join(text.splitlines()[start - 1 : node.end_lineno])
    for node in ast.parse(text).body:  # a package that passes on the names of its modules
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    origin = _absolute(module, path, node)
                    if _module_file(root, origin):
                        return find_source(root, f"{origin}:{alias.name}")
    raise ValueError(f"{path.relative_to(root)} defines no function or class {name!r}.")


def _module_file(root: Path, module: str) -> Path | None:
    base = root.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if module and path.is_file():
            return path
    return None


def _absolute(module: str, path: Path, node: ast.ImportFrom) -> str:
    """Name of the module that an import in `module` takes its names from."""
    if not node.level:
        return node.module or ""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    package = package[: len(package) - (node.level - 1)]
    return ".".join(package + ([node.module] if node.module else []))


def accuracy(root: Path, key: str, name: str) -> str:
    """How close a prediction must come, as a comment for the learner.

    Args:
        root: the folder that holds the package.
        key: of the lesson.
        name: of the prediction.

    Returns:
        Such as "# In MB; accepted: within 5 % of the answer."; "" for a choice of words, or when it is not
        written down as plain numbers in course_utils/exercises/KEY.py.
    """
    path = root / "course_utils" / "exercises" / f"{key}.py"
    for node in ast.walk(ast.parse(path.read_text() if path.is_file() else "")):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Prediction":
            given = {argument.arg: getattr(argument.value, "value", None) for argument in node.keywords}
            rtol = given.get("rtol", 0.05)
            if given.get("id") == name and isinstance(rtol, int | float) and not isinstance(
                    given.get("answer"), str):
                unit = f"In {given['unit']}; a" if given.get("unit") else "A"
                close = f"within {100 * rtol:.3g} % of the answer" if rtol else "the exact number"
                return f"# {unit}ccepted: {close}."
    return ""


def mark_solution(source: str) -> str:
    """Put nbgrader's solution marks around the body of a function, or of each method of a class.

    Args:
        source: one function or class.

    Returns:
        The source with the marks; a docstring stays outside of them.

    Raises:
        ValueError: there is no body to mark.
    """
    lines = source.splitlines()
    for start, end, indent in _bodies(source):
        lines[start:end] = [indent + BEGIN, *lines[start:end], indent + END]
    return "\n".join(lines)


def defined_name(marked: str) -> str:
    """Name of the one function or class that holds solution marks.

    Args:
        marked: source of a cell.

    Returns:
        The name.

    Raises:
        ValueError: none holds marks, or more than one does.
    """
    begins = [n for n, line in enumerate(marked.splitlines(), start=1) if line.strip() == BEGIN]
    nodes = [node for node in ast.parse(marked).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    names = [node.name for node in nodes if any(node.lineno < n <= node.end_lineno + 1 for n in begins)]
    if len(names) != 1:
        raise ValueError(f"needs one function with its body between {BEGIN} and {END}, has {len(names)}.")
    return names[0]


def replace_solutions(marked: str, replacement: Callable[[list[str], str], list[str]]) -> str:
    """Replace each region between the solution marks, marks included.

    Args:
        marked: source with marks.
        replacement: called with the region's lines and their indent; returns lines.

    Returns:
        The source without marks.

    Raises:
        ValueError: there are no marks, or they do not pair.
    """
    kept, region = [], None
    for line in marked.splitlines():
        mark = line.strip()
        if mark == BEGIN:
            if region is not None:
                raise ValueError(f"{BEGIN} twice without {END} between.")
            region, indent = [], line[: len(line) - len(line.lstrip())]
        elif mark == END:
            if region is None:
                raise ValueError(f"{END} without {BEGIN} before it.")
            kept += replacement(region, indent)
            region = None
        elif region is not None:
            region.append(line)
        elif "BEGIN SOLUTION" in line or "END SOLUTION" in line:
            raise ValueError(f"write the marks as {BEGIN!r} and {END!r}, not as {mark!r}.")
        else:
            kept.append(line)
    if region is not None:
        raise ValueError(f"{BEGIN} without {END} after it.")
    if kept == marked.splitlines():
        raise ValueError(f"has no {BEGIN}.")
    return "\n".join(kept)


def stub(marked: str) -> str:
    """Replace each solution by its effort and ``raise NotImplementedError``.

    Args:
        marked: source with solution marks.

    Returns:
        What the learner gets.

    Raises:
        ValueError: there are no marks, or they do not pair.
    """
    return replace_solutions(marked, lambda region, indent: [indent + effort(region), indent + RAISE])


RAISE = "raise NotImplementedError"


def effort(lines: list[str]) -> str:
    """How long a solution is, for the learner.

    Args:
        lines: of the solution; blank lines and comments do not count.

    Returns:
        A comment such as "# About 3 lines."
    """
    count = sum(bool(line.strip()) and not line.strip().startswith("#") for line in lines)
    return f"# About {count} line{'' if count == 1 else 's'}."


def _bodies(source: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, indent) of each function body, docstring left out, last first; line numbers from 0."""
    (node,) = ast.parse(source).body
    functions = [node]
    if isinstance(node, ast.ClassDef):
        functions = [item for item in node.body if isinstance(item, ast.FunctionDef)]
        if not functions:
            raise ValueError(f"class {node.name} has no method to write.")
    lines = source.splitlines()
    found = []
    for function in functions:
        body = function.body
        start = function.lineno
        if isinstance(body[0], ast.Expr) and isinstance(getattr(body[0].value, "value", None), str):
            start, body = body[0].end_lineno, body[1:]
        if not body:
            raise ValueError(f"{function.name} has a docstring and no body.")
        first = min([body[0].lineno, *(d.lineno for d in getattr(body[0], "decorator_list", []))])
        if first <= start:
            raise ValueError(f"{function.name}: write the body on lines of its own.")
        begin = first - 1
        while begin > start and lines[begin - 1].strip().startswith("#"):  # comments above belong to it
            begin -= 1
        text = lines[first - 1]
        found.append((begin, function.end_lineno, text[: len(text) - len(text.lstrip())]))
    return reversed(found)


def without_comments(source: str) -> str:
    """Take the comments out of a cell, and the docstrings and hints of its functions and classes.

    Works on the text, so that the result is the same under every version of Python.

    Args:
        source: of a code cell.

    Returns:
        The source without them; a cell that is no plain Python (magics) as it is.
    """
    try:
        tree = ast.parse(source)
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, tokenize.TokenError):
        return source
    lines = dict(enumerate(source.splitlines(), start=1))
    for row, column in (token.start for token in tokens if token.type == tokenize.COMMENT):
        lines[row] = lines[row][:column].rstrip() or None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            text = node.body[0]
            if text.lineno > node.lineno:  # not `def f(): "text"` on one line
                lines |= dict.fromkeys(range(text.lineno, text.end_lineno + 1))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines |= _without_hints(node, lines)
    return "\n".join(line for line in lines.values() if line is not None)


def _without_hints(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: dict[int, str | None]) -> dict:
    """What the lines of a function's header become: one line without hints. Nothing of `def f(): body`."""
    first = min([node.body[0].lineno, *(d.lineno for d in getattr(node.body[0], "decorator_list", []))])
    header = range(node.lineno, first)
    if not header or (lines[first] or "")[: node.body[0].col_offset].strip(" @"):
        return {}
    bare = node.args
    for argument in [*bare.posonlyargs, *bare.args, *bare.kwonlyargs, bare.vararg, bare.kwarg]:
        if argument:
            argument.annotation = None
    word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    text = f"{' ' * node.col_offset}{word} {node.name}({ast.unparse(bare)}):"
    return dict.fromkeys(header) | {node.lineno: text}
