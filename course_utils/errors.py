"""The error that every module raises when the machine, not the caller, is at fault."""


class CourseError(RuntimeError):
    """Something around the course is missing or broken: no network, no disk space, a damaged file.

    The message is one line. It names what is wrong and says what to do.
    Wrong arguments raise ValueError or TypeError instead.
    """
