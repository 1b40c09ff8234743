"""Where things stand in the repository, and the error for a lesson that is written wrongly.

A lesson is known by its key, the name of its file without the number: `gptq` in lessons/04_gptq.py. The
number only says where it stands.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

KINDS = ("notebooks", "solutions")


class LessonError(ValueError):
    """A lesson's source, or a file generated from it, is not as it must be. Names the file and the cell.

    Args:
        path: the file.
        cell: name of the cell, None when it is no cell's fault.
        message: what is wrong, and what to do.
    """

    def __init__(self, path: Path | str, cell: str | None, message: str) -> None:
        where = f"{path}, cell {cell!r}" if cell else f"{path}"
        super().__init__(f"{where}: {message}")


@dataclass(frozen=True)
class Project:
    """A course and where its parts stand.

    Attributes:
        root: its folder; the repository itself by default.
    """

    root: Path = Path(__file__).resolve().parent.parent

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The content of pyproject.toml."""
        try:
            return tomllib.loads((self.root / "pyproject.toml").read_text(encoding="utf-8"))
        except ValueError as error:
            raise LessonError("pyproject.toml", None, f"is no TOML: {error}.") from None

    @property
    def repository(self) -> str:
        """The one address of the repository."""
        return self.settings["project"]["urls"]["Repository"]

    @property
    def ref(self) -> str:
        """Branch or tag that the notebooks' badges and set-up line point to."""
        return self.settings.get("tool", {}).get("course", {}).get("ref", "main")

    @cached_property
    def parts(self) -> tuple["Part", ...]:
        """The parts of the course in their order, as pyproject.toml has them; () when it has none.

        Raises:
            LessonError: a lesson is in no part or in two, a part names no lesson, or a part's lessons do not
                stand side by side in the order of their numbers; or it is not said for each what one learns.
        """
        listed = self.settings.get("tool", {}).get("course", {}).get("parts", [])
        if not listed:
            return ()
        where = {key: n for n, part in enumerate(listed) for key in part["lessons"]}
        keys = [key_of(path) for path in self.lessons()]
        named = [key for part in listed for key in part["lessons"]]
        for key in [*named, *keys]:
            if key not in keys:
                title = listed[where[key]]["title"]
                raise _parts_error(f"part {title!r} names {key!r}, and there is no such lesson in lessons/.")
            if named.count(key) != 1:
                raise _parts_error(f"lesson {key!r} must be in one part, is in {named.count(key)}.")
        places = [where[key] for key in keys]
        if places != sorted(places):
            wrong = next(key for key, place, before in zip(keys[1:], places[1:], places, strict=False)
                         if place < before)
            raise _parts_error(f"lesson {wrong!r} stands behind lessons of a later part: give its file "
                               "another number or put it into another part.")
        learn = self.settings["tool"]["course"].get("learn", {})
        if learn and learn.keys() != {part["title"] for part in listed}:
            raise _parts_error("[tool.course.learn] needs a sentence for each part's title, and no other.")
        return tuple(
            Part(n, part["title"], tuple(key for key in keys if key in part["lessons"]),
                 learn.get(part["title"], ""))
            for n, part in enumerate(listed, start=1)
        )

    @property
    def costs_file(self) -> Path:
        """Measured minutes and memory of the lessons."""
        return self.root / "recorded" / "lesson_costs.json"

    @property
    def picture_file(self) -> Path:
        """The README's picture, taken from an executed solution."""
        return self.root / "docs" / "picture.png"

    def lessons(self, numbers: Sequence[str] = ()) -> list[Path]:
        """Sources of the lessons.

        Args:
            numbers: which ones: numbers ("04", "4"), keys or names of files; all when empty.

        Returns:
            Their paths in order.

        Raises:
            LessonError: two lessons have the same key or number.
            ValueError: there is no such lesson.
        """
        found = sorted((self.root / "lessons").glob("[0-9][0-9]_*.py"))
        for part in (key_of, number_of):
            seen = [part(path) for path in found]
            if twice := {name for name in seen if seen.count(name) > 1}:
                raise LessonError("lessons", None, f"two lessons are called {twice.pop()!r}: rename one.")
        return select(found, numbers)

    def lesson(self, key: str) -> Path:
        """Source of one lesson.

        Args:
            key: of the lesson.

        Returns:
            Its path.

        Raises:
            ValueError: there is no such lesson; names near keys.
        """
        by_key = {key_of(path): path for path in self.lessons()}
        if key not in by_key:
            near = difflib.get_close_matches(key, by_key, n=3) or list(by_key)
            raise ValueError(f"no lesson {key!r}; near it: {', '.join(near)}.")
        return by_key[key]

    def notebook(self, kind: str, lesson: Path) -> Path:
        """Where the notebook of a lesson is generated.

        Args:
            kind: "notebooks" or "solutions".
            lesson: path of the lesson's source.

        Returns:
            The notebook's path; it need not exist yet.
        """
        return self.root / kind / f"{lesson.stem}.ipynb"

    def notebooks(self, kind: str, numbers: Sequence[str] = ()) -> list[Path]:
        """Generated notebooks.

        Args:
            kind: "notebooks" or "solutions".
            numbers: which ones, as in `lessons`.

        Returns:
            Their paths in order.

        Raises:
            ValueError: there is none, or no such lesson.
        """
        found = sorted((self.root / kind).glob("[0-9][0-9]_*.ipynb"))
        if not found:
            raise ValueError(f"there is nothing in {kind}/: run `course sync` first.")
        return select(found, numbers)

    def relative(self, path: Path) -> Path:
        """A path as a message shows it.

        Args:
            path: any path.

        Returns:
            The path from the root, when it is below it.
        """
        return path.relative_to(self.root) if path.is_relative_to(self.root) else path


@dataclass(frozen=True)
class Part:
    """A part of the course.

    Attributes:
        number: its place, from 1.
        title: its title.
        lessons: keys of its lessons in order.
        learn: what one can do after it, a sentence; "" when pyproject.toml does not say.
    """

    number: int
    title: str
    lessons: tuple[str, ...]
    learn: str = ""


def _parts_error(text: str) -> LessonError:
    return LessonError("pyproject.toml", None, f"[tool.course] parts: {text}")


FILE_NAME = re.compile(r"(?P<number>\d\d)_(?P<key>[a-z][a-z0-9_]*)")


def key_of(path: Path | str) -> str:
    """Key of a lesson.

    Args:
        path: of its source or of its notebook.

    Returns:
        Its file's name without number and ending, such as "gptq".

    Raises:
        LessonError: the file is not called NN_key.
    """
    return _named(path)["key"]


def number_of(path: Path | str) -> str:
    """Number of a lesson.

    Args:
        path: of its source or of its notebook.

    Returns:
        Two digits, such as "04".

    Raises:
        LessonError: the file is not called NN_key.
    """
    return _named(path)["number"]


def _named(path: Path | str) -> re.Match[str]:
    found = FILE_NAME.fullmatch(Path(path).stem)
    if found is None:
        raise LessonError(path, None, "a lesson is called NN_key: two digits, then a name of small "
                          "letters, digits and '_'.")
    return found


def _is_called(file: Path, name: str) -> bool:
    """Whether a name is the file's key or number. A learner's copy beside it (04_gptq-Copy1) has neither."""
    found = FILE_NAME.fullmatch(file.stem)
    if found is None:
        return False
    return name == found["key"] or (name.isdigit() and int(name) == int(found["number"]))


def is_foreign(name: str, files: list[Path]) -> bool:
    """Whether a name is the path of a file outside of the course, such as a copy called like a lesson.

    Args:
        name: as the user wrote it.
        files: of the course, in one of its folders.

    Returns:
        True when it is.
    """
    path = Path(os.path.abspath(os.path.expanduser(name)))
    return len(Path(name).parts) > 1 and os.path.isfile(path) and not path.resolve().is_relative_to(
        files[0].resolve().parent.parent if files else path.anchor)


def select(files: list[Path], numbers: Sequence[str]) -> list[Path]:
    """The files that were asked for.

    Args:
        files: of lessons, in order.
        numbers: which ones: numbers ("04", "4"), keys or names of files; all when empty.

    Returns:
        Those files, in order.

    Raises:
        ValueError: there is no such lesson, or a file was named that is not of this course.
    """
    if not numbers:
        return files
    chosen = []
    for number in numbers:
        stem = Path(str(number)).stem
        if is_foreign(number, files):
            raise ValueError(f"{number} is a file outside of the course: name a lesson by its number or key.")
        matches = [f for f in files if stem == f.stem or _is_called(f, stem)]
        if not matches:
            raise ValueError(f"no lesson {number!r}: there are {', '.join(f.stem for f in files) or 'none'}.")
        chosen += [match for match in matches if match not in chosen]
    return sorted(chosen)
