"""Compare an answer with what was expected, and say where the two part."""

import dataclasses
import math
import numbers
import reprlib
from collections.abc import Iterable, Mapping, Sequence, Set
from types import GeneratorType
from typing import Any

import numpy as np
import torch


@dataclasses.dataclass(frozen=True)
class Difference:
    """Where an answer and what was expected part, as short texts for a learner.

    Attributes:
        expected: what was expected.
        came: what came.
    """

    expected: str
    came: str


def difference(
    expected: Any,
    came: Any,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-8,
    exact_dtype: bool = False,
    path: str = "",
) -> Difference | None:
    """First difference between two values, or None when they agree.

    Floats agree when ``|came - expected| <= atol + rtol * |expected|`` and NaN agrees with NaN. Integers,
    booleans and texts must be equal. Tensors and arrays must have the same shape and the same kind of dtype
    (bool, integer, float, complex), or the very same dtype with `exact_dtype`. A 0-dimensional tensor counts
    as a number, and a list as a tuple. Containers and dataclasses are compared element by element.

    Args:
        expected: the right value.
        came: the value to compare with it.
        rtol: relative tolerance for floats.
        atol: absolute tolerance for floats.
        exact_dtype: True when the dtype itself must be the same, not only its kind.
        path: where the values stand inside a larger one, such as "[0]['mean']"; named in the texts.

    Returns:
        The first difference, or None.
    """
    options = {"rtol": rtol, "atol": atol, "exact_dtype": exact_dtype}
    if expected is None or came is None:
        if expected is came:
            return None
        hint = " (is a `return` missing?)" if came is None else ""
        return Difference(at(path) + describe(expected), at(path) + describe(came) + hint)
    if isinstance(expected, bool | np.bool_):
        same = isinstance(came, bool | np.bool_) or is_scalar_tensor(came, torch.bool)
        return None if same and bool(came) == bool(expected) else differ(expected, came, path)
    if isinstance(expected, numbers.Number) and not isinstance(expected, np.ndarray):
        return _number_difference(expected, came, rtol, atol, path)
    if isinstance(expected, torch.Tensor):
        if isinstance(came, numbers.Number) and expected.ndim == 0:
            came = torch.tensor(came)
        if not isinstance(came, torch.Tensor):
            return differ(expected, came, path)
        return _tensor_difference(expected, came, path, **options)
    if isinstance(expected, np.ndarray):
        return _array_difference(expected, came, path, **options)
    if isinstance(expected, str | bytes):
        return None if type(came) is type(expected) and came == expected else differ(expected, came, path)
    if isinstance(expected, Mapping):
        return _mapping_difference(expected, came, path, options)
    if isinstance(expected, Set):
        same = isinstance(came, Set) and set(came) == set(expected)
        return None if same else differ(expected, came, path)
    if isinstance(expected, Sequence):
        return _sequence_difference(expected, came, path, options)
    if dataclasses.is_dataclass(expected):
        if type(came).__name__ != type(expected).__name__ or not dataclasses.is_dataclass(came):
            return differ(expected, came, path)
        return _mapping_difference(_fields(expected), _fields(came), path, options)
    if hasattr(expected, "columns") and hasattr(expected, "to_dict"):  # a pandas table
        if not hasattr(came, "to_dict"):
            return differ(expected, came, path)
        return _mapping_difference(expected.to_dict("list"), came.to_dict("list"), path, options)
    return None if type(came) is type(expected) and came == expected else differ(expected, came, path)


def describe(value: Any) -> str:
    """A value in a few words. Never raises.

    Args:
        value: any value, also one whose own methods raise.

    Returns:
        Shape and dtype of a tensor or array, a shortened repr of the rest.
    """
    try:
        if isinstance(value, torch.Tensor | np.ndarray):
            kind = "tensor" if isinstance(value, torch.Tensor) else "array"
            text = f"{dtype_name(value)} {kind} of shape {tuple(value.shape)}"
            return f"{text}: {value.item():.8g}" if value.ndim == 0 and kind_of(value) == "float" else text
        if isinstance(value, torch.nn.Module):
            return f"a {type(value).__name__} module"
        if isinstance(value, GeneratorType):
            return "a generator (return the values themselves, for instance as a list)"
        if value is None:
            return "None"
        if isinstance(value, bool | str | bytes):
            return reprlib.repr(value)
        if isinstance(value, float):
            return f"{value:.8g} (float)"
        if isinstance(value, Sequence | Mapping | Set):
            return f"{shorten(repr(value))} ({type(value).__name__} of {len(value)})"
        return f"{shorten(repr(value))} ({type(value).__name__})"
    except Exception:  # a learner's own class may have a broken __repr__
        return f"an object of type {type(value).__name__}"


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
        "bool", "integer", "float", "complex" or "other".
    """
    if isinstance(value, np.ndarray):
        return {"b": "bool", "i": "integer", "u": "integer", "f": "float", "c": "complex"}.get(
            value.dtype.kind, "other"
        )
    if value.dtype == torch.bool:
        return "bool"
    if value.dtype.is_complex:
        return "complex"
    return "float" if value.dtype.is_floating_point else "integer"


def is_scalar_tensor(value: Any, dtype: torch.dtype | None = None) -> bool:
    """Whether a value is a 0-dimensional tensor.

    Args:
        value: any value.
        dtype: if given, the tensor must have it.

    Returns:
        True when it is.
    """
    return isinstance(value, torch.Tensor) and value.ndim == 0 and dtype in (None, value.dtype)


def at(path: str) -> str:
    """How a text about a part of a value begins.

    Args:
        path: where the part stands, as in `difference`.

    Returns:
        "at PATH: ", or nothing for the value itself.
    """
    return f"at {path}: " if path else ""


def differ(expected: Any, came: Any, path: str = "") -> Difference:
    """The difference of two values that disagree as a whole.

    Args:
        expected: the right value.
        came: the other one.
        path: where they stand, as in `difference`.

    Returns:
        Both values described.
    """
    return Difference(at(path) + describe(expected), at(path) + describe(came))


def as_number(value: Any) -> int | float | complex | None:
    """A value as a Python number.

    Args:
        value: any value; numbers of numpy and 0-dimensional tensors and arrays count as numbers.

    Returns:
        The number, or None when the value is none (a bool is none).
    """
    if is_scalar_tensor(value) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Number):
        return None
    return value


def numbers_agree(expected: complex, came: complex, rtol: float, atol: float) -> bool:
    """Whether |came - expected| <= atol + rtol * |expected|; NaN agrees with NaN.

    Args:
        expected: the right number: an integer, a float or a complex number.
        came: the other one.
        rtol: relative tolerance.
        atol: absolute tolerance.

    Returns:
        True when the two agree.
    """
    if came == expected:  # also infinities
        return True
    if any(isinstance(x, int) and abs(x) > 1e300 for x in (expected, came)):  # too large for a float
        return False
    if isinstance(expected, complex) or isinstance(came, complex):
        return abs(came - expected) <= atol + rtol * abs(expected)
    if math.isnan(expected) or math.isnan(came):
        return math.isnan(expected) and math.isnan(came)
    if math.isinf(expected) or math.isinf(came):
        return False
    return abs(came - expected) <= atol + rtol * abs(expected)


def _number_difference(expected: Any, came: Any, rtol: float, atol: float, path: str) -> Difference | None:
    wanted, number = as_number(expected), as_number(came)
    if number is None:
        return differ(expected, came, path)
    # Integers count things: a tolerance would let a count that is slightly off pass.
    exact = isinstance(wanted, int)
    agree = number == wanted if exact else numbers_agree(wanted, number, rtol, atol)
    return None if agree else differ(wanted, number, path)


def _array_difference(expected: np.ndarray, came: Any, path: str, **options: Any) -> Difference | None:
    if not isinstance(came, np.ndarray):
        return differ(expected, came, path)
    if kind_of(expected) == "other":
        same = expected.shape == came.shape and bool(np.array_equal(expected, came))
        return None if same else differ(expected, came, path)
    if kind_of(came) == "other":
        return differ(expected, came, path)
    found = _tensor_difference(_from_numpy(expected), _from_numpy(came), path, **options)
    return found and Difference(
        found.expected.replace(" tensor of", " array of"), found.came.replace(" tensor of", " array of")
    )


def _from_numpy(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))  # a copy: torch has no negative strides and no read-only arrays


def _tensor_difference(
    expected: torch.Tensor, came: torch.Tensor, path: str, *, rtol: float, atol: float, exact_dtype: bool
) -> Difference | None:
    wrong_shape = expected.shape != came.shape
    wrong_kind = kind_of(expected) != kind_of(came) or (exact_dtype and expected.dtype != came.dtype)
    if came.is_meta or wrong_shape or wrong_kind:
        return differ(expected, came, path)
    wanted, values = _plain(expected), _plain(came)
    if wanted.dtype == torch.float64:
        wrong = ~torch.isclose(values, wanted, rtol=rtol, atol=atol, equal_nan=True)
    else:
        wrong = values != wanted
    if not wrong.any():
        return None
    index = tuple(wrong.nonzero()[0].tolist())
    place = f"[{', '.join(map(str, index))}]" if index else ""
    count = f"{int(wrong.sum())} of {wrong.numel()} elements differ"
    return Difference(
        f"{at(path)}{describe(expected)}, {place} = {_element(wanted[index])}",
        f"{at(path)}{describe(came)}, {place} = {_element(values[index])} ({count})",
    )


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Dense CPU values in float64, or in int64: every dtype that a lesson uses fits in one of the two."""
    tensor = tensor.detach().cpu()
    tensor = tensor.to_dense() if tensor.layout != torch.strided else tensor
    if tensor.dtype.is_complex:
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.dtype == torch.uint64:
        return tensor.view(torch.int64)
    if not tensor.dtype.is_floating_point:
        return tensor.to(torch.int64)
    return tensor.float().double() if tensor.dtype.itemsize < 4 else tensor.double()


def _element(value: torch.Tensor) -> str:
    return f"{value.item():.8g}" if value.dtype == torch.float64 and value.ndim == 0 else str(value.tolist())


def _sequence_difference(
    expected: Sequence, came: Any, path: str, options: dict[str, Any]
) -> Difference | None:
    if isinstance(came, str | bytes) or not isinstance(came, Sequence):
        return differ(expected, came, path)
    if len(expected) != len(came):
        return differ(expected, came, path)
    for n, (wanted, value) in enumerate(zip(expected, came, strict=True)):
        if found := difference(wanted, value, path=f"{path}[{n}]", **options):
            return found
    return None


def _mapping_difference(
    expected: Mapping, came: Any, path: str, options: dict[str, Any]
) -> Difference | None:
    if not isinstance(came, Mapping):
        return differ(expected, came, path)
    if set(expected) != set(came):
        missing, extra = set(expected) - set(came), set(came) - set(expected)
        text = [f"without {describe_keys(missing)}"] * bool(missing)
        text += [f"with {describe_keys(extra)} besides"] * bool(extra)
        return Difference(f"{at(path)}keys {describe_keys(expected)}", f"{at(path)}keys {' and '.join(text)}")
    for key in expected:
        if found := difference(expected[key], came[key], path=f"{path}[{key!r}]", **options):
            return found
    return None


def describe_keys(keys: Iterable[Any]) -> str:
    """Keys of a mapping in a few words.

    Args:
        keys: the keys.

    Returns:
        Their reprs in order, shortened.
    """
    return shorten(", ".join(sorted(map(repr, keys))))


def _fields(instance: Any) -> dict[str, Any]:
    return {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
