"""Submissions as they come: files, folders, archives; notebooks of every age, read as what they may be."""

import dataclasses
import io
import json
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from course_utils.checking.describe import one_line

MOST = 64 * 2**20  # bytes of one notebook
MOST_IN_ARCHIVE = 2**30  # bytes of all notebooks of an archive
MOST_HANDED_IN = 2**28  # bytes of an archive that a student handed in, and letters of all notebooks of one
LEFT_OUT = re.compile(r"(^|/)(__MACOSX|\.ipynb_checkpoints)(/|$)|(^|/)\._")
HANDED_OUT = re.compile(r"\d\d_[a-z0-9_]+\.ipynb")  # a lesson's file that nobody has given another name
# Who handed in, as learning platforms name their files and folders.
MOODLE = re.compile(r"(?P<student>.+?)_(?P<id>\d+)_assignsubmission_(file|onlinetext)_*(?P<file>.*)")
CANVAS = re.compile(r"(?P<student>[^_]+)(_LATE)?_(?P<id>\d+)_\d+_(?P<file>.+)")
UNREADABLE = (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError,
              ValueError, OSError, zlib.error)


@dataclasses.dataclass(frozen=True)
class Submission:
    """One notebook.

    Attributes:
        path: where it stands; inside an archive, as if that were a folder.
        text: its content; "" where it could not be read.
        error: why not.
        student: who handed it in, as far as its name or its folder says.
        id: the student's number on the learning platform, "" when none is there.
        file: name of the file as it was handed in.
    """

    path: Path
    text: str = ""
    error: str = ""
    student: str = ""
    id: str = ""
    file: str = ""


@dataclasses.dataclass(frozen=True)
class Cell:
    """What counts of a cell.

    Attributes:
        name: its grade id, else its id, else "".
        type: "code", "markdown", ...
        source: its text.
    """

    name: str
    type: str
    source: str


def collect(paths: Iterable[Path]) -> list[Submission]:
    """Read what was handed in.

    Args:
        paths: notebooks, folders (such as nbgrader's submitted/) or zip archives.

    Returns:
        The notebooks in order; one that cannot be read says why.
    """
    found: dict[str, Submission] = {}
    sizes: Counter[tuple[str, str]] = Counter()
    for path in paths:
        path = Path(path)
        for submission in _inside(path):
            key = os.path.abspath(submission.path)
            if key in found:
                print(f"{one_line(submission.path)} is named twice: graded once.")
                continue
            named = _named(submission, path)
            whose = named.student, named.id
            sizes[whose] += len(named.text)
            if sizes[whose] > MOST_HANDED_IN:
                error = f"larger than {MOST_HANDED_IN // 2**20} MiB, with what else {named.student} handed in"
                named = dataclasses.replace(named, text="", error=error)
            found[key] = named
    return list(found.values())


def without_ending(path: Path) -> Path:
    """A path without the ending of its last name, whatever the name is: `with_suffix` refuses "..ipynb".

    Args:
        path: of a file.

    Returns:
        The path.
    """
    return Path(os.path.splitext(path)[0])


def _named(submission: Submission, given: Path) -> Submission:
    """The submission with its student: of a platform's name, else the folder's, else the file's.

    Only what the platform, or the instructor, has named counts: the first part below what was given. What
    stands deeper, and in an archive of a student's, the student may call like somebody else's.
    """
    path = submission.path
    top = without_ending(given) if given.suffix.lower() == ".zip" else given
    below = path.relative_to(top).parts if path != top and path.is_relative_to(top) else ()
    above = Path(os.path.abspath(top)).parts
    inside = "submitted" in above and given.suffix.lower() != ".zip"  # nbgrader's submitted/STUDENT/...
    outer = below[0] if below else path.name
    match = MOODLE.fullmatch(outer) or CANVAS.fullmatch(outer)
    if match and not (inside and outer == path.name):
        file = match["file"] if outer == path.name else path.name
        return dataclasses.replace(submission, student=match["student"], id=match["id"], file=file)
    parts = below if below[:1] == ("submitted",) else (*above, *below) if inside else ()
    if len(parts) > 2 + (place := parts.index("submitted") if parts else 0):
        return dataclasses.replace(submission, student=parts[place + 1], file=path.name)
    folder = Path(os.path.abspath(path.parent)).name
    student = below[0] if len(below) > 1 else folder if HANDED_OUT.fullmatch(path.name) else path.stem
    return dataclasses.replace(submission, student=student, file=path.name)


def _inside(path: Path) -> Iterator[Submission]:
    try:
        if path.is_dir():
            for file in _files(path):
                yield from [Submission(file, error="a link: not followed")] if file.is_symlink() else (
                    _archive(file, MOST_HANDED_IN) if file.suffix.lower() == ".zip" else _inside(file))
        elif path.suffix.lower() == ".zip":
            yield from _archive(path, MOST_IN_ARCHIVE)
        elif not path.is_file():
            yield Submission(path, error="no file")
        elif path.stat().st_size > MOST:
            yield Submission(path, error=f"larger than {MOST // 2**20} MiB")
        else:
            yield Submission(path, path.read_bytes().decode("utf-8-sig", "replace"))
    except OSError as error:
        yield Submission(path, error=f"cannot be read: {error.strerror or error}")


def _files(folder: Path) -> list[Path]:
    """Notebooks and archives below a folder, linked folders left out."""
    found = [Path(place) / name for place, _, names in os.walk(folder) for name in names]
    return sorted(path for path in found if path.suffix.lower() in (".ipynb", ".zip")
                  and not LEFT_OUT.search(path.relative_to(folder).as_posix()))


def _archive(path: Path, most: int, source: io.BytesIO | None = None) -> Iterator[Submission]:
    """Notebooks of an archive, and of archives in it."""
    try:
        with zipfile.ZipFile(source or path) as archive:
            for entry in sorted(archive.infolist(), key=lambda entry: entry.filename):
                name = entry.filename
                kind = Path(name).suffix.lower()
                if entry.is_dir() or kind not in (".ipynb", ".zip") or LEFT_OUT.search(name):
                    continue
                inner = without_ending(path).joinpath(*[part for part in re.split(r"[/\\]", name)
                                                        if part not in ("", ".", "..")])
                limit = MOST if kind == ".ipynb" else MOST_HANDED_IN
                if entry.file_size > min(limit, most):
                    yield Submission(inner, error=f"larger than {min(limit, most) // 2**20} MiB")
                    continue
                most -= entry.file_size
                try:
                    with archive.open(entry) as file:
                        content = file.read(limit)
                except UNREADABLE as error:
                    yield Submission(inner, error=f"cannot be read from its archive: {error}")
                    continue
                if kind == ".ipynb":
                    yield Submission(inner, content.decode("utf-8-sig", "replace"))
                elif source is None:
                    yield from _archive(inner, MOST_HANDED_IN, io.BytesIO(content))
                else:
                    yield Submission(inner, error="an archive in an archive in an archive")
    except UNREADABLE as error:
        yield Submission(path, error=f"no archive that can be read: {error}")


def cells(text: str) -> list[Cell]:
    """Cells of a notebook of nbformat 3 to 4.5, whatever else it holds.

    Args:
        text: of the file.

    Returns:
        The cells in order. What is no cell is left out.

    Raises:
        ValueError: it is no notebook.
    """
    try:
        notebook = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a notebook: {' '.join(str(error).split())[:100]}") from None
    if not isinstance(notebook, dict):
        raise ValueError("not a notebook: no cells in it")
    listed = notebook.get("cells")
    if not isinstance(listed, list):
        sheets = notebook.get("worksheets")
        sheets = sheets if isinstance(sheets, list) else []
        listed = [cell for sheet in sheets if isinstance(sheet, dict)
                  for cell in (sheet.get("cells") if isinstance(sheet.get("cells"), list) else ())]
        if not sheets:
            raise ValueError("not a notebook: no cells in it")
    return [_cell(cell) for cell in listed if isinstance(cell, dict)]


def _cell(cell: dict[str, Any]) -> Cell:
    metadata = cell.get("metadata")
    mark = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    name = mark.get("grade_id") if isinstance(mark, dict) else None
    name = name if isinstance(name, str) else cell.get("id")
    source = cell.get("source", cell.get("input", ""))
    if isinstance(source, list):
        source = "".join(part for part in source if isinstance(part, str))
    return Cell(name if isinstance(name, str) else "", str(cell.get("cell_type", "")),
                source if isinstance(source, str) else "")
