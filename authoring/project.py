"""Where things stand in the repository, and the error for a lesson that is written wrongly."""

import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

KINDS = ("notebooks", "solutions")


class LessonError(ValueError):
    """A lesson's source, or a file generated from it, is not as it must be. Names the file and the cell."""

    def __init__(self, path, cell, message):
        where = f"{path}, cell {cell!r}" if cell else f"{path}"
        super().__init__(f"{where}: {message}")


@dataclass(frozen=True)
class Project:
    """The course rooted at a folder; the repository itself by default."""

    root: Path = Path(__file__).resolve().parent.parent

    @cached_property
    def settings(self) -> dict:
        return tomllib.loads((self.root / "pyproject.toml").read_text())

    @property
    def repository(self) -> str:
        """The one address of the repository."""
        return self.settings["project"]["urls"]["Repository"]

    @property
    def ref(self) -> str:
        """Branch or tag that the notebooks' badges and set-up line point to."""
        return self.settings.get("tool", {}).get("course", {}).get("ref", "main")

    @property
    def costs_file(self) -> Path:
        return self.root / "recorded" / "lesson_costs.json"

    @property
    def picture_file(self) -> Path:
        """The README's picture, taken from an executed solution."""
        return self.root / "docs" / "picture.png"

    def lessons(self, numbers=()) -> list[Path]:
        """Lesson sources in order; with `numbers` ("00", "1" or a file's name) only those."""
        found = sorted((self.root / "lessons").glob("[0-9][0-9]_*.py"))
        return select(found, numbers)

    def notebook(self, kind: str, lesson: Path) -> Path:
        return self.root / kind / f"{lesson.stem}.ipynb"

    def notebooks(self, kind: str, numbers=()) -> list[Path]:
        """Generated notebooks in order, chosen as in `lessons`. Raises ValueError when there is none."""
        found = sorted((self.root / kind).glob("[0-9][0-9]_*.ipynb"))
        if not found:
            raise ValueError(f"there is nothing in {kind}/: run `course sync` first.")
        return select(found, numbers)

    def relative(self, path: Path) -> Path:
        return path.relative_to(self.root) if path.is_relative_to(self.root) else path


def select(files: list[Path], numbers) -> list[Path]:
    """The files whose number or name is in `numbers`; all of them when `numbers` is empty."""
    if not numbers:
        return files
    chosen = []
    for number in numbers:
        stem = Path(str(number)).stem
        matches = [f for f in files if f.stem == stem or (stem.isdigit() and int(f.stem[:2]) == int(stem))]
        if not matches:
            raise ValueError(f"no lesson {number!r}: there are {', '.join(f.stem for f in files) or 'none'}.")
        chosen += [match for match in matches if match not in chosen]
    return sorted(chosen)
