"""Values in a few words, for a learner."""

import reprlib
import types
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch

from course_utils.checking.limits import time_limit


class _Repr(reprlib.Repr):
    """Of long containers the beginning, of tensors in them the shape."""

    def repr_Tensor(self, value: torch.Tensor, _: int) -> str:  # noqa: N802 (reprlib goes by the type's name)
        return f"<{dtype_name(value)} tensor of shape {tuple(value.shape)}>"

    repr_Parameter = repr_Tensor  # noqa: N815

    def repr_ndarray(self, value: np.ndarray, _: int) -> str:
        return f"<{dtype_name(value)} array of shape {value.shape}>"


_SHORT = _Repr()
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = _SHORT.maxfrozenset = 40
_SHORT.maxlevel = 3  # 40 items in 40 in 40: each level more makes it forty times as much work
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200


def describe(value: Any) -> str:
    """A value in a few words. Never raises.

    Args:
        value: any value, also one whose own methods raise or never end.

    Returns:
        Shape and dtype of a tensor or array, a shortened repr of the rest.
    """
    try:
        with time_limit(1):
            return _describe(value)
    except KeyboardInterrupt:
        raise  # the learner pressed stop
    except BaseException:  # a learner's own class may have a broken __repr__
        return f"an object of type {type(value).__name__}"


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, torch.Tensor) else "array"
        text = f"{dtype_name(value)} {kind} of shape {tuple(value.shape)}"
        return f"{text}: {value.item():.8g}" if value.ndim == 0 and kind_of(value) == "float" else text
    if isinstance(value, torch.nn.Module):
        return f"a {type(value).__name__} module"
    if isinstance(value, types.GeneratorType):
        return "a generator (return the values themselves, for instance as a list)"
    if isinstance(value, types.MethodType):
        name = value.__name__
        return f"the method {name}, not what it returns (is `@property` missing above `def {name}`?)"
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType):
        return f"the function {value.__name__} itself (are the brackets missing that call it?)"
    if value is None:
        return "None"
    if isinstance(value, bool | str | bytes):
        return reprlib.repr(value)
    if isinstance(value, float):
        return f"{value:.8g} ({type(value).__name__})"
    if isinstance(value, Sequence | Mapping | Set):
        return f"{shorten(_SHORT.repr(value))} ({type(value).__name__} of {len(value)})"
    text = repr(value)
    if " at 0x" in text:  # an address says nothing
        return f"an object of type {type(value).__name__}"
    return f"{shorten(text)} ({type(value).__name__})"


def figures(first: float, second: float) -> tuple[str, str]:
    """Two numbers with eight digits, or with as many as it takes for them to look different.

    Args:
        first: a number.
        second: another one.

    Returns:
        Both as texts.
    """
    for digits in range(8, 18):
        texts = f"{first:.{digits}g}", f"{second:.{digits}g}"
        if texts[0] != texts[1]:
            break
    return texts


def printable(text: Any) -> str:
    """A text from elsewhere, as text that every file and terminal takes.

    Args:
        text: whatever came.

    Returns:
        It, with a question mark for each control character and each half of a letter.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in str(text))


def one_line(text: Any) -> str:
    """A name from elsewhere on one line: `printable`, with a question mark for a line's end or a tab, too.

    Args:
        text: whatever came.

    Returns:
        The line.
    """
    return printable(text).replace("\n", "?").replace("\t", "?")


def shorten(text: str, limit: int = 120) -> str:
    """A text on one line, cut in the middle.

    Args:
        text: any text.
        limit: characters that the result has at most.

    Returns:
        The shortened text.
    """
    text = " ".join(text.split())
    half = (limit - 5) // 2
    return text if len(text) <= limit else f"{text[:half]} ... {text[-half:]}"


def dtype_name(value: torch.Tensor | np.ndarray) -> str:
    """Name of a dtype, such as "float32".

    Args:
        value: a tensor or an array.

    Returns:
        The name, the same for torch and numpy.
    """
    return str(value.dtype).removeprefix("torch.")


def kind_of(value: torch.Tensor | np.ndarray) -> str:
    """The kind of dtype of a tensor or array.

    Args:
        value: a tensor or an array.

    Returns:
        "bool", "integer", "float", "complex", "quantized" (torch's own integers with a scale) or "other".
    """
    if isinstance(value, np.ndarray):
        return {"b": "bool", "i": "integer", "u": "integer", "f": "float", "c": "complex"}.get(
            value.dtype.kind, "other"
        )
    if value.dtype == torch.bool:
        return "bool"
    if value.dtype.is_complex:
        return "complex"
    if value.is_quantized:
        return "quantized"
    return "float" if value.dtype.is_floating_point else "integer"


def at(path: str) -> str:
    """How a text about a part of a value begins.

    Args:
        path: where the part stands, such as "[0]['mean']".

    Returns:
        "at PATH: ", or nothing for the value itself.
    """
    return f"at {path}: " if path else ""


def describe_keys(keys: Iterable[Any]) -> str:
    """Keys of a mapping in a few words.

    Args:
        keys: the keys.

    Returns:
        Their reprs in order, shortened.
    """
    return shorten(", ".join(sorted(map(repr, keys))))
