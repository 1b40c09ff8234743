"""The learner's own copies of the notebooks: made where missing, never overwritten, updated when asked.

A copy is made in work/, and with it, in work/.given/, what was copied. So `update` can tell what the learner
changed from what the course changed.
"""

import copy
import datetime
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from authoring import places, start_page
from authoring.project import Project, key_of
from authoring.sync import replace_file
from course_utils import progress

GIVEN, BEFORE = ".given", "before-update"
AWAY = "move it to another folder, and `course lab` writes it anew"  # what to do with a damaged copy
ANEW = "get it back with `git checkout`, or run `course sync --no-run`"  # and with a damaged lesson


def folder(project: Project) -> Path:
    """The folder with the learner's notebooks; it is made.

    Args:
        project: the course.

    Returns:
        What the variable COURSE_WORK names; else work/ in the checkout; else, where that may not be written,
        work/ in the user's own folder for data.

    Raises:
        ValueError: it may not be written.
    """
    return places.own_folder(project, "work", places.WORK)


def copy_missing(project: Project, work: Path) -> list[Path]:
    """Copy the notebooks that the learner has not yet, and bring the start page's table up to date.

    Args:
        project: the course.
        work: the learner's folder.

    Returns:
        The copies made now.
    """
    made = []
    for path in project.notebooks("notebooks"):
        if not _copies(work, path):
            made.append(work / path.name)
            _give(path, work, path.read_bytes())
    page = work / start_page.NAME
    replace_file(page, _with_progress((project.root / "notebooks" / start_page.NAME), page))
    return made


def outdated(project: Project, work: Path) -> list[str]:
    """The lessons that are newer than the learner's copies.

    Args:
        project: the course.
        work: the learner's folder.

    Returns:
        Their names, such as "04_gptq".
    """
    return [path.stem for path in project.notebooks("notebooks")
            if _copies(work, path) and _sources(_read(path, ANEW)) != _sources(_given(work, path))]


def update(project: Project, work: Path) -> Iterator[str]:
    """Bring the learner's copies to the course's newest lessons; answers and own cells are kept.

    Args:
        project: the course.
        work: the learner's folder.

    Yields:
        A line for each lesson that was brought up to date.

    Raises:
        ValueError: one of the copies is damaged; none has been changed.
    """
    newer = outdated(project, work)
    kept = work / BEFORE / datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    paths = [path for path in project.notebooks("notebooks") if path.stem in newer]
    own = {path: _read(_copies(work, path)[0], AWAY) for path in paths}  # all, before one is changed
    for path in paths:
        old = _copies(work, path)[0]
        merged, beside = merge(_read(path, ANEW), own[path], _given(work, path))
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copy2(old, kept / old.name)
        _give(path, work, nbformat.writes(merged).encode())
        if old.name != path.name:
            old.unlink()
        both = f"; cells that you and we changed stand there twice: {', '.join(beside)}" if beside else ""
        yield f"{path.stem} is up to date, your answers are kept{both}. As it was: {kept / old.name}"


def merge(new: NotebookNode, own: NotebookNode, base: NotebookNode | None) -> tuple[NotebookNode, list[str]]:
    """A learner's notebook with the lesson's new text and code.

    Args:
        new: the lesson as it is now, with stubs.
        own: the learner's notebook.
        base: the lesson as it was copied; None when that is not known.

    Returns:
        The merged notebook, and ids of the cells that both changed: there the learner's stands behind the new
        one. An exercise that the learner has written is always theirs.
    """
    own_cells = _with_ids(own.cells, (base or new).cells)
    mine = {cell.id: cell for cell in own_cells}
    before = {cell.id: cell.source for cell in base.cells} if base else {}
    cells, beside, new_ids = [], [], {cell.id for cell in new.cells}
    for cell in new.cells:
        cell, theirs = copy.deepcopy(cell), mine.get(cell.id)
        if theirs is not None and theirs.source == cell.source:
            cell = theirs  # with its outputs
        elif theirs is not None and theirs.source != before.get(cell.id):  # the learner wrote in it
            if cell.source == before.get(cell.id) or cell.metadata.get("nbgrader", {}).get("solution"):
                cell = theirs
            elif base is not None:
                beside.append(cell.id)
        cells.append(cell)
        if cell.id in beside:
            cells.append(_unlocked(theirs))
    previous = None
    for cell in own_cells:  # the learner's own, each behind the cell that it followed
        if cell.id not in new_ids and cell.source.strip() and cell.source != before.get(cell.id):
            ids = [placed.id for placed in cells]
            cells.insert(ids.index(previous) + 1 if previous in ids else len(cells), cell)
        previous = cell.id
    return nbformat.from_dict({**new, "cells": cells}), beside


def _with_ids(cells: list[NotebookNode], known: list[NotebookNode]) -> list[NotebookNode]:
    """Copies of a learner's cells with their ids, which another program may have moved or left out."""
    by_source = {cell.source: cell.id for cell in known}
    made = []
    for cell in cells:
        graded = cell.metadata.get("nbgrader", {}).get("grade_id")
        id = cell.get("id") or cell.metadata.get("id") or graded or by_source.get(cell.source)
        made.append(nbformat.from_dict({**cell, "id": id or uuid.uuid4().hex[:8]}))
    return made


def _unlocked(cell: NotebookNode) -> NotebookNode:
    """A copy of a cell as one of the learner's own: not locked, not graded, with an id of its own."""
    return nbformat.from_dict({**cell, "id": f"{cell.id[:40]}-yours-{uuid.uuid4().hex[:8]}", "metadata": {}})


def _copies(work: Path, lesson: Path) -> list[Path]:
    """The learner's copy of a lesson, none or one: of its number now, or of the one it had when copied."""
    same = work / lesson.name
    return [same] if same.exists() else sorted(work.glob(f"[0-9][0-9]_{key_of(lesson)}.ipynb"))


def _give(lesson: Path, work: Path, content: bytes) -> None:
    """Write a learner's copy and note what the lesson was like, the note last."""
    replace_file(work / lesson.name, content)
    replace_file(work / GIVEN / f"{key_of(lesson)}.ipynb", lesson.read_bytes())


def _sources(notebook: NotebookNode | None) -> list[tuple[str, str]] | None:
    """Ids and sources of a notebook's cells: a lesson with others is another. None when there is none."""
    return notebook and [(cell.get("id"), cell.source) for cell in notebook.cells]


def _read(path: Path, advice: str) -> NotebookNode:
    """A notebook, when it is one; else the advice is part of the error.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be read.
    """
    try:
        notebook = nbformat.read(path, as_version=4)
        if all(isinstance(cell.source, str) for cell in notebook.cells):
            return notebook
    except OSError:
        raise
    except Exception:  # nbformat has many errors for what is no notebook
        pass
    raise ValueError(f"{path} is damaged, no notebook can be read from it: {advice}.")


def _given(work: Path, lesson: Path) -> NotebookNode | None:
    """The note of what was copied; None when there is none, or a damaged one: merging can do without."""
    try:
        return _read(work / GIVEN / f"{key_of(lesson)}.ipynb", "")
    except (OSError, ValueError):
        return None


def _with_progress(given: Path, page: Path) -> str:
    """The start page: the learner's if there is one, with a table of how far they are."""
    notebook = _read(page, AWAY) if page.exists() else _read(given, ANEW)
    fresh = {cell.id: cell for cell in _read(given, ANEW).cells}
    for cell in notebook.cells:
        cell.source = fresh[cell.id].source if cell.get("id") in fresh else cell.source
        if cell.get("id") == start_page.PROGRESS:
            table = {"text/markdown": progress.markdown(page.parent), "text/plain": "how far you are"}
            cell.outputs = [nbformat.v4.new_output("display_data", data=table)]
    return nbformat.writes(notebook)
