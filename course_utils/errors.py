"""The error that every module raises when the machine, not the caller, is at fault; and a name for others."""

from collections.abc import Iterator
from contextlib import contextmanager


class CourseError(RuntimeError):
    """Something around the course is missing or broken: no network, no disk space, a damaged file.

    The message is one line. It names what is wrong and says what to do.
    Wrong arguments raise ValueError or TypeError instead.
    """


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
