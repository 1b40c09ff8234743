"""No sentence ranks without a paired comparison behind it.

A code cell that says "better", "beats" or "costs less" in a text of its own must get it from
`measure.compare` (or its table `measure.ranking`), in the cell or through a name that was made of one. A
text cell cannot compute, so it must not rank at all. What only looks like a ranking stands in rankings.toml
with its reason.
"""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from authoring.generate import read_lesson
from authoring.project import Project, key_of

PROJECT = Project()
LESSONS = {key_of(path): path for path in PROJECT.lessons()}
REASONS = tomllib.loads(Path(__file__).with_name("rankings.toml").read_text(encoding="utf-8"))
RANKS = re.compile(
    r"\b(better|worse|best|worst|beats?|wins?|won|cheaper|superior|outperform\w*"
    r"|loses? (?:more|less|nothing)|costs? (?:more|less|nothing|no more))\b",
    re.IGNORECASE,
)
RANKS_IN_TEXT = re.compile(
    r"\b((?:better|worse|cheaper) than|beats?|outperforms?|superior"
    r"|(?:is|was|are|were) (?:the |clearly |always |still )?(?:best|worst|better|worse|cheaper)"
    r"|wins|won|loses? (?:more|less|nothing)|costs? (?:more|less|nothing))\b",
    re.IGNORECASE,
)
COMPARE = {"compare", "ranking", "paired_difference"}


def texts(tree):
    """The text constants of a cell that are said: no names of columns and files that are looked up."""
    looked_up = {id(node.slice) for node in ast.walk(tree) if isinstance(node, ast.Subscript)}
    return [node.value for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in looked_up]


def names(tree):
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def bound(statement):
    """Names that a statement gives a value to, or whose values it changes."""
    found = {node.id for node in ast.walk(statement)
             if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    found |= {node.value.id for node in ast.walk(statement) if isinstance(node, ast.Subscript)
              and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name)}
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        found.add(statement.name)
    return found


def unproved(cells):
    """(cell, text) of each text that ranks without a comparison.

    Args:
        cells: (name, type, source) of the cells of a lesson, in their order.
    """
    compared, found = set(COMPARE), []
    for name, kind, source in cells:
        if kind == "markdown":
            sentences = re.split(r"(?<=[.:?!])\s+", re.sub(r"\s+", " ", source))
            found += [(name, text) for text in sentences
                      if RANKS_IN_TEXT.search(text) and not text.endswith("?")]
            continue
        tree = ast.parse(source)
        for statement in tree.body:
            if names(statement) & compared:
                compared |= bound(statement)
        if not names(tree) & compared:
            found += [(name, text) for text in texts(tree) if RANKS.search(text)]
    return found


def cells_of(key):
    lesson = read_lesson(PROJECT, LESSONS[key])
    return [(cell.name, cell.type, cell.source) for cell in lesson.cells]


@pytest.mark.parametrize("key", LESSONS)
def test_each_ranking_comes_from_a_comparison(key):
    reasons = REASONS.get(key, {})
    found = unproved(cells_of(key))
    left = [f"{cell}: {text.strip()}" for cell, text in found if cell not in reasons]
    assert not left, "a ranking without measure.compare:\n" + "\n".join(left)
    assert set(reasons) <= {cell for cell, _ in found}, "rankings.toml excuses cells that rank no more"


SAYS = "print(f'{name} is better than {other}')"


@pytest.mark.parametrize("cells", [
    [("a", "code", SAYS)],
    [("a", "code", "word = 'better' if a.value < b.value else 'worse'\nprint(word)")],
    [("a", "code", "gap = measure.compare(a, b)"), ("b", "code", SAYS)],
    [("a", "markdown", "The first line.\nGPTQ beats rounding.")],
])
def test_a_ranking_by_itself_is_found(cells):
    assert unproved(cells)


@pytest.mark.parametrize("cells", [
    [("a", "code", "print(measure.compare(a, b).sentence('GPTQ', 'rounding'))\n" + SAYS)],
    [("a", "code", "gap = measure.compare(a, b)"), ("b", "code", f"if gap.shown:\n    {SAYS}")],
    [("a", "code", "gaps['x'] = measure.compare(a, b)\nshown = [x for x in gaps]"),
     ("b", "code", f"print(shown)\n{SAYS}")],
    [("a", "code", "print(rows['best'], f'{perplexity:.2f}')")],
    [("a", "markdown", "Is GPTQ better than rounding?")],
])
def test_a_ranking_by_comparison_and_a_question_are_not(cells):
    assert not unproved(cells)
