"""What the learner's own source says: the line that raised, a stub that is not written yet, borrowed code."""

import ast
import dataclasses
import functools
import inspect
import linecache
import os
import sysconfig
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from course_utils.checking.describe import shorten

PACKAGES = ("site-packages", "dist-packages")
OTHERS = (f"{Path(__file__).parents[1]}{os.sep}", f"{sysconfig.get_paths()['stdlib']}{os.sep}", "<frozen")


@dataclasses.dataclass(frozen=True)
class Told:
    """What another process says of an error that it raised: its `told`.

    Attributes:
        stub: as of `is_stub`.
        left_over: as of `left_over`.
        line: as of `learners_line`.
    """

    stub: bool = False
    left_over: str = ""
    line: str = ""


def told(error: BaseException) -> Told | None:
    """What is known of an error that was raised in another process.

    Args:
        error: as it was raised here.

    Returns:
        What that process said; None for an error of this one.
    """
    return getattr(error, "told", None) if isinstance(getattr(error, "told", None), Told) else None


def own_frames(error: BaseException, call: Callable | None = None) -> list[tuple[CodeType, int]]:
    """The learner's part of a traceback: no frame of the course, of packages or of Python's library.

    Args:
        error: as it was raised.
        call: the exercise's `call`, which is the course's wherever it stands.

    Returns:
        (code, line number in its file), outermost first.
    """
    found, step = [], error.__traceback__
    own = getattr(call, "__code__", None)
    while step is not None:
        code = step.tb_frame.f_code
        ours = code.co_filename.startswith(OTHERS) or any(name in code.co_filename for name in PACKAGES)
        if own is not None and code.co_filename == own.co_filename:  # `call`, or a comprehension in it
            ours |= f"{code.co_qualname}.".startswith(f"{own.co_qualname}.")
        if not ours:
            found.append((code, step.tb_lineno))
        step = step.tb_next
    return found


def learners_line(error: BaseException, call: Callable | None = None) -> str:
    """The line of the learner's code that raised.

    Args:
        error: as it was raised.
        call: as in `own_frames`.

    Returns:
        The line, or "" when it cannot be told.
    """
    if far := told(error):
        return far.line
    frames = own_frames(error, call)
    return shorten(linecache.getline(frames[-1][0].co_filename, frames[-1][1])) if frames else ""


def is_stub(error: BaseException, call: Callable | None = None) -> bool:
    """Whether an error is that of a function that nobody has written yet.

    Args:
        error: as it was raised.
        call: as in `own_frames`.

    Returns:
        True for a NotImplementedError without text, out of a function that holds nothing else.
    """
    if far := told(error):
        return far.stub
    if not isinstance(error, NotImplementedError) or error.args:
        return False
    frames = own_frames(error, call)
    return not frames or not _other_lines(frames[0][0])


def left_over(error: BaseException, call: Callable | None = None) -> str:
    """What to say when finished code has kept the stub's `raise NotImplementedError`.

    Args:
        error: as it was raised.
        call: as in `own_frames`.

    Returns:
        A text, or "" when that is not what happened.
    """
    if far := told(error):
        return far.left_over
    if not isinstance(error, NotImplementedError) or error.args:
        return ""
    frames = own_frames(error, call)
    if not frames or len(frames) > 1:
        return ""
    code, line = frames[0]
    after = any(other > line for other in _other_lines(code))
    trouble = "so the code below it never runs" if after else "and your code runs into it"
    return f"`raise NotImplementedError` is still there, {trouble}: delete that line"


def _other_lines(code: CodeType) -> list[int]:
    """Numbers of the lines, in its file, where a function does more than raise NotImplementedError."""
    try:
        lines, first = inspect.getsourcelines(code)
        (function,) = ast.parse(textwrap.dedent("".join(lines))).body
        body = function.body
    except (OSError, TypeError, ValueError, SyntaxError, AttributeError):
        return []  # no source: such as a function made by exec
    return [first + node.lineno - 1 for node in body if not _says_nothing(node)]


def _says_nothing(node: ast.stmt) -> bool:
    raised = node.exc if isinstance(node, ast.Raise) else None
    raised = raised.func if isinstance(raised, ast.Call) else raised
    empty = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)  # a docstring, or ...
    return empty or isinstance(node, ast.Pass) or getattr(raised, "id", "") == "NotImplementedError"


def codes(thing: Any) -> frozenset[CodeType]:
    """The code of a function, or of all methods and properties of a class.

    Args:
        thing: a function, a class, or either one wrapped by functools.

    Returns:
        Its code objects. Two that were compiled from the same lines are equal.
    """
    while isinstance(thing, functools.partial):
        thing = thing.func
    if isinstance(thing, type):
        members = [getattr(item, "__func__", item) for item in vars(thing).values()]
        members += [item.fget for item in members if isinstance(item, property)]
        return frozenset().union(*(codes(item) for item in members if isinstance(item, FunctionType)))
    thing = inspect.unwrap(thing)
    return frozenset([thing.__code__] if isinstance(thing, FunctionType) else [])
