"""Does a learner's notebook show the solution of one of its own exercises? Compared line by line.

Both sides are written anew from their syntax trees, so that layout, comments and docstrings do not count.
"""

import ast
import re
import textwrap

from nbformat import NotebookNode

SHARE = 1 / 3  # of a solution's lines may not be seen elsewhere ...
RUN = 2  # ... nor this many that follow one another
SHORTEST = 12  # characters of a line that tells something
# Lines that many functions have in common.
COMMON = re.compile(r"return \w+|(from|import|def|class|with|raise NotImplementedError)\b.*|else:|try:|@.*")


def lines(source: str) -> list[str]:
    """The lines of a piece of code that tell how it does its work.

    Args:
        source: Python code; also text, such as a cell's output, of which the lines are taken as they are.

    Returns:
        Lines without indent, comments, docstrings, imports, headers and what is shorter than `SHORTEST`.
    """
    source = textwrap.dedent(re.sub(r"^[%!].*$", "", source, flags=re.MULTILINE))  # magics
    try:
        tree = ast.parse(source)
    except SyntaxError:
        found = [line.partition("#")[0].strip() for line in source.splitlines()]
    else:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        found = [line.strip() for line in ast.unparse(tree).splitlines()]
    return [line for line in found if len(line) >= SHORTEST and not COMMON.fullmatch(line)]


def shown(solution: list[str], elsewhere: set[str]) -> list[str]:
    """The lines of a solution that can be seen elsewhere, if they are too many; else [].

    Args:
        solution: what `lines` returns for the solution.
        elsewhere: lines of the rest of the notebook.

    Returns:
        The lines seen, when they are `SHARE` of the solution or more, or `RUN` of them follow one another.
    """
    seen = [line in elsewhere for line in solution]
    in_a_row = any(all(seen[n : n + RUN]) for n in range(len(seen) - RUN + 1))
    if not any(seen) or (sum(seen) < SHARE * len(seen) and not in_a_row):
        return []
    return [line for line, is_seen in zip(solution, seen, strict=True) if is_seen]


def exercises(solved: NotebookNode, learner: NotebookNode) -> dict[str, list[str]]:
    """Cell id -> lines of the solution, for each exercise (predictions are numbers, and measured later)."""
    stubs = {cell.id: set(lines(cell.source)) for cell in learner.cells if cell.cell_type == "code"}
    return {
        cell.id: [line for line in lines(cell.source) if line not in stubs[cell.id]]
        for cell in solved.cells
        if cell.metadata.get("nbgrader", {}).get("solution") and not _is_prediction(cell)
    }


def _is_prediction(cell: NotebookNode) -> bool:
    """True for a cell without any function or class: all that is asked is `prediction = ...`."""
    return not re.search(r"^(def|class) ", cell.source, flags=re.MULTILINE)


def visible(learner: NotebookNode) -> dict[str, list[str]]:
    """Cell id -> lines of code that its source, its text output and its fenced code show."""
    found = {}
    for cell in learner.cells:
        if cell.cell_type == "markdown":
            texts = re.findall(r"^```.*?\n(.*?)^```", cell.source, flags=re.MULTILINE | re.DOTALL)
        else:
            texts = [cell.source]
            for output in cell.get("outputs", []):
                texts.append(output.get("text", "") + output.get("data", {}).get("text/plain", ""))
        found[cell.id] = [line for text in texts for line in lines(text)]
    return found


def leaks(solved: NotebookNode, learner: NotebookNode) -> list[str]:
    """One line for each exercise whose solution the learner's notebook shows in another cell."""
    problems = []
    seen = visible(learner)
    for exercise, solution in exercises(solved, learner).items():
        others = {id: found for id, found in seen.items() if id != exercise}
        if told := shown(solution, {line for found in others.values() for line in found}):
            cells = ", ".join(repr(id) for id, found in others.items() if set(found) & set(told))
            problems.append(f"cell {exercise!r}: the learner can read its solution in cell {cells} "
                            f"({told[0]}). Move that code to course_utils and import it.")
    return problems
