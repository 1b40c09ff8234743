"""Compare an answer with what was expected, and say where the two part."""

import dataclasses
import math
import numbers
import reprlib
from collections.abc import Mapping, Sequence, Set
from types import GeneratorType

import numpy as np
import torch


@dataclasses.dataclass(frozen=True)
class Difference:
    """What was expected and what came, as short texts for a learner."""

    expected: str
    came: str


def difference(expected, came, *, rtol=1e-5, atol=1e-8, exact_dtype=False, path=""):
    """First difference between two values, or None when they agree.

    Floats agree when ``|came - expected| <= atol + rtol * |expected|`` and NaN agrees with NaN. Integers,
    booleans and texts must be equal. Tensors and arrays must have the same shape and the same kind of dtype
    (bool, integer, float, complex), or the very same dtype with `exact_dtype`. A 0-dimensional tensor counts
    as a number, and a list as a tuple. Containers and dataclasses are compared element by element.

    Returns:
        `Difference` or None.
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


def describe(value) -> str:
    """A value in a few words: shape and dtype for tensors, a shortened repr for the rest. Never raises."""
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
    """`text` on one line, cut in the middle to at most `limit` characters."""
    text = " ".join(text.split())
    half = (limit - 5) // 2
    return text if len(text) <= limit else f"{text[:half]} ... {text[-half:]}"


def dtype_name(value) -> str:
    """'float32' for a torch or numpy array of that dtype."""
    return str(value.dtype).removeprefix("torch.")


def kind_of(value) -> str:
    """The kind of dtype of a tensor or array: bool, integer, float, complex or other."""
    if isinstance(value, np.ndarray):
        return {"b": "bool", "i": "integer", "u": "integer", "f": "float", "c": "complex"}.get(
            value.dtype.kind, "other"
        )
    if value.dtype == torch.bool:
        return "bool"
    if value.dtype.is_complex:
        return "complex"
    return "float" if value.dtype.is_floating_point else "integer"


def is_scalar_tensor(value, dtype=None) -> bool:
    """True for a 0-dimensional tensor (of `dtype`, if given)."""
    return isinstance(value, torch.Tensor) and value.ndim == 0 and dtype in (None, value.dtype)


def at(path: str) -> str:
    return f"at {path}: " if path else ""


def differ(expected, came, path="") -> Difference:
    """The `Difference` of two values that disagree as a whole."""
    return Difference(at(path) + describe(expected), at(path) + describe(came))


def as_number(value):
    """`value` as a Python number, or None when it is none (a bool is none)."""
    if is_scalar_tensor(value) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Number):
        return None
    return value


def numbers_agree(expected, came, rtol: float, atol: float) -> bool:
    """|came - expected| <= atol + rtol * |expected|, for real or complex numbers; NaN agrees with NaN."""
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


def _number_difference(expected, came, rtol, atol, path):
    wanted, number = as_number(expected), as_number(came)
    if number is None:
        return differ(expected, came, path)
    # Integers count things: a tolerance would let a count that is slightly off pass.
    exact = isinstance(wanted, int)
    agree = number == wanted if exact else numbers_agree(wanted, number, rtol, atol)
    return None if agree else differ(wanted, number, path)


def _array_difference(expected, came, path, **options):
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


def _from_numpy(array):
    return torch.from_numpy(np.array(array))  # a copy: torch has no negative strides and no read-only arrays


def _tensor_difference(expected, came, path, *, rtol, atol, exact_dtype):
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


def _plain(tensor):
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


def _element(value) -> str:
    return f"{value.item():.8g}" if value.dtype == torch.float64 and value.ndim == 0 else str(value.tolist())


def _sequence_difference(expected, came, path, options):
    if isinstance(came, str | bytes) or not isinstance(came, Sequence):
        return differ(expected, came, path)
    if len(expected) != len(came):
        return differ(expected, came, path)
    for n, (wanted, value) in enumerate(zip(expected, came, strict=True)):
        if found := difference(wanted, value, path=f"{path}[{n}]", **options):
            return found
    return None


def _mapping_difference(expected, came, path, options):
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


def describe_keys(keys) -> str:
    return shorten(", ".join(sorted(map(repr, keys))))


def _fields(instance) -> dict:
    return {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
