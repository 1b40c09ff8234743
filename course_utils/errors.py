"""The error that every module raises when the machine, not the caller, is at fault; and a name for others."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class CourseError(RuntimeError):
    """Something around the course is missing or broken: no network, no disk space, a damaged file.

    The message is one line. It names what is wrong and says what to do.
    Wrong arguments raise ValueError or TypeError instead.
    """


def read_json(path: str | Path, advice: str) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        path: of the file.
        advice: what to do when it is damaged, without a full stop.

    Returns:
        Its content.

    Raises:
        CourseError: it is damaged, or holds no object.
        OSError: it cannot be read.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}, no object")
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or brackets in brackets without end
        raise CourseError(f"{path} is damaged ({' '.join(str(error).split())[:100]}): {advice}.") from None
    return found


@contextmanager
def named(name: str) -> Iterator[None]:
    """Put a name in front of a ValueError.

    Args:
        name: of what is being worked on.

    Yields:
        Nothing.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
