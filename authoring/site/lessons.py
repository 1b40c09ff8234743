"""A lesson as a page of the site: the solved notebook, each solution folded behind the stub it answers."""

import copy
import re
from collections.abc import Iterable

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from authoring import library
from authoring.project import Project

OUTSIDE_PICTURE = re.compile(r"!\[([^\]]*)\]\(https?://[^)]*\)")
# A link to a lesson's notebook, and to a cell of it as JupyterLab has such links.
LINK = re.compile(r"(?<=\]\()(?:(?:\.\./)?(?:notebooks|solutions)/)?(\d\d_\w+)\.ipynb"
                  r"(?:#cell-id=([\w-]+))?(?=\))")
FOLDED = {"setup": "set-up", "parameters": "parameters", "imports": "imports"}  # cells that say little


def place(stem: str, cell: str) -> str:
    """Name of a place on the site, a cell that is linked to.

    Args:
        stem: of the lesson, such as "04_gptq".
        cell: its id.

    Returns:
        Such as "cell-04_gptq-claim-c4".
    """
    return f"cell-{stem}-{cell}"


def linked(texts: Iterable[str]) -> set[str]:
    """The cells that texts link to.

    Args:
        texts: Markdown, or notebooks' files.

    Returns:
        Their places.
    """
    return {place(*found) for text in texts for found in LINK.findall(text) if found[1]}


def page(project: Project, stem: str, places: set[str]) -> str:
    """The notebook that the site shows of a lesson.

    Args:
        project: the course.
        stem: name of its files without the ending, such as "04_gptq".
        places: cells of all lessons that are linked to.

    Returns:
        Content of an ipynb file.
    """
    learner, solved = (nbformat.read(project.root / kind / f"{stem}.ipynb", as_version=4)
                       for kind in ("notebooks", "solutions"))
    made = fold(learner, solved)
    for n, cell in reversed(list(enumerate(made.cells))):
        if place(stem, cell.id) in places:
            above = new_markdown_cell(f"({place(stem, cell.id)})=", id=f"{cell.id}-place")
            made.cells.insert(n - made.cells[n - 1].id.endswith("-stub"), above)
    return LINK.sub(lambda found: f"#{place(*found.groups())}" if found[2] else f"{found[1]}.ipynb",
                    nbformat.writes(made, version=4))


def fold(learner: NotebookNode, solved: NotebookNode) -> NotebookNode:
    """Put each stub before its solution, and fold the solution.

    Args:
        learner: the notebook with stubs.
        solved: the same lesson solved, with outputs.

    Returns:
        A new notebook with the cells of both.
    """
    stubs = {cell.id: cell for cell in learner.cells}
    cells = []
    for cell in copy.deepcopy(solved.cells):
        stub = copy.deepcopy(stubs[cell.id])
        if cell.id == "title":  # its links open the learner's notebook, not the solved one
            stub.source = OUTSIDE_PICTURE.sub(r"\1", stub.source)
            cells.append(stub)
        elif cell.cell_type == "code" and cell.source != stub.source:
            stub.update(id=f"{cell.id}-stub", outputs=[], metadata={})
            cell.source = "\n".join(line for line in cell.source.splitlines()
                                    if line.strip() not in (library.BEGIN, library.END))
            cells += [stub, _folded(cell, "solution")]
        elif cell.id in FOLDED:
            cells.append(_folded(cell, FOLDED[cell.id]))
        else:
            cells.append(cell)
    return nbformat.from_dict({**solved, "cells": cells})


def _folded(cell: NotebookNode, what: str) -> NotebookNode:
    tags = [*cell.metadata.get("tags", []), "hide-input"]
    prompts = {"code_prompt_show": f"Show the {what}", "code_prompt_hide": f"Hide the {what}"}
    cell.metadata.update(tags=tags, mystnb=prompts)
    return cell
