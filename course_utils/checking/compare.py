"""Compare a value with what was expected, and say where the two part."""

import dataclasses
import numbers
from collections.abc import Mapping, Sequence, Set
from typing import Any, Literal

import numpy as np
import torch

from course_utils.checking.describe import at, describe, describe_keys, dtype_name, figures, kind_of
from course_utils.checking.scalars import as_number, is_scalar_tensor, numbers_agree

Types = Literal["value", "kind", "exact"]


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
    types: Types = "kind",
    path: str = "",
) -> Difference | None:
    """First difference between two values, or None when they agree.

    Floats agree when ``|came - expected| <= atol + rtol * |expected|`` and NaN agrees with NaN. Integers,
    booleans and texts must be equal. Shapes must be equal. A list counts as a tuple. Containers, dataclasses
    and modules are compared element by element.

    The rule for types: a value must be of the kind that is expected (bool, integer, float, complex), so 2.0
    is no int; where a float is expected, a whole number will do. Which integer, which float does not
    matter: float64 for float32, a 0-dimensional tensor for a number. With `types` = "exact" it does: the
    very dtype, int or float itself (numpy's float64 is a float, its int64 is no int).

    Args:
        expected: the right value.
        came: the value to compare with it.
        rtol: relative tolerance for floats.
        atol: absolute tolerance for floats.
        types: "kind" or "exact", as above; "value": also 2.0 for the int 2.
        path: where the values stand inside a larger one, such as "[0]['mean']"; named in the texts.

    Returns:
        The first difference, or None.
    """
    options = {"rtol": rtol, "atol": atol, "types": types}
    if expected is None or came is None:
        if expected is came:
            return None
        hint = " (is a `return` missing?)" if came is None else ""
        return Difference(at(path) + describe(expected), at(path) + describe(came) + hint)
    if isinstance(expected, bool | np.bool_):
        same = isinstance(came, bool | np.bool_) or (
            is_scalar_tensor(came, torch.bool) and types != "exact")
        return None if same and bool(came) == bool(expected) else differ(expected, came, path)
    if isinstance(expected, numbers.Number) and not isinstance(expected, np.ndarray):
        return _number_difference(expected, came, path, **options)
    if isinstance(expected, torch.Tensor):
        if isinstance(came, numbers.Number) and expected.ndim == 0 and types != "exact":
            return _number_difference(expected.item(), came, path, **options)
        if not isinstance(came, torch.Tensor):
            return differ(expected, came, path)
        return _tensor_difference(expected, came, path, **options)
    if isinstance(expected, np.ndarray):
        return _array_difference(expected, came, path, **options)
    if isinstance(expected, str):
        same = isinstance(came, str) and str.__str__(came) == expected
        return None if same else differ(expected, came, path)
    if isinstance(expected, bytes):
        return None if type(came) is bytes and came == expected else differ(expected, came, path)
    if isinstance(expected, Mapping):
        return _mapping_difference(expected, came, path, options)
    if isinstance(expected, Set):
        same = isinstance(came, Set) and set(came) == set(expected)
        return None if same else differ(expected, came, path)
    if isinstance(expected, Sequence):
        return _sequence_difference(expected, came, path, options)
    if isinstance(expected, torch.nn.Module):
        if type(came).__name__ != type(expected).__name__ or not isinstance(came, torch.nn.Module):
            return differ(expected, came, path)
        return _mapping_difference(expected.state_dict(), came.state_dict(), path, options)
    if dataclasses.is_dataclass(expected):
        if type(came).__name__ != type(expected).__name__ or not dataclasses.is_dataclass(came):
            return differ(expected, came, path)
        return _mapping_difference(_fields(expected), _fields(came), path, options)
    if hasattr(expected, "columns") and hasattr(expected, "to_dict"):  # a pandas table
        if not hasattr(came, "to_dict"):
            return differ(expected, came, path)
        return _mapping_difference(expected.to_dict("list"), came.to_dict("list"), path, options)
    return None if type(came) is type(expected) and came == expected else differ(expected, came, path)


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


def _number_difference(
    expected: Any, came: Any, path: str, *, rtol: float, atol: float, types: Types
) -> Difference | None:
    wanted, number = as_number(expected), as_number(came)
    if number is None or (types == "exact" and not isinstance(came, type(expected))):
        return differ(expected, came, path)
    # Integers count things: a tolerance would let a count that is slightly off pass.
    exact = isinstance(wanted, int)
    wrong_kind = exact and not isinstance(number, int) and types != "value"
    wrong_kind |= isinstance(number, complex) and not isinstance(wanted, complex)
    if not wrong_kind and (number == wanted if exact else numbers_agree(wanted, number, rtol, atol)):
        return None
    if not isinstance(wanted, float) or not isinstance(number, float):
        found = differ(expected, came, path)
        note = " (the number is right, but it is no int)" if wrong_kind and number == wanted else ""
        return Difference(found.expected, found.came + note)
    texts = figures(wanted, number)
    return Difference(f"{at(path)}{texts[0]} (float)", f"{at(path)}{texts[1]} ({_type_name(came)})")


def _type_name(value: Any) -> str:
    return f"{dtype_name(value)} tensor" if isinstance(value, torch.Tensor) else type(value).__name__


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
    expected: torch.Tensor, came: torch.Tensor, path: str, *, rtol: float, atol: float, types: Types
) -> Difference | None:
    wrong_shape = expected.shape != came.shape
    wrong_kind = kind_of(expected) != kind_of(came) or (types == "exact" and expected.dtype != came.dtype)
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
    texts = _elements(wanted[index], values[index])
    parts = [f"{dtype_name(value)} tensor of shape {tuple(value.shape)}" for value in (expected, came)]
    if not index:
        return Difference(f"{at(path)}{parts[0]}: {texts[0]}", f"{at(path)}{parts[1]}: {texts[1]}")
    place = f"[{', '.join(map(str, index))}]"
    count = f"{int(wrong.sum())} of {wrong.numel()} elements differ"
    return Difference(
        f"{at(path)}{parts[0]}, {place} = {texts[0]}",
        f"{at(path)}{parts[1]}, {place} = {texts[1]} ({count})",
    )


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Dense CPU values in float64, or in int64: every dtype that a lesson uses fits in one of the two."""
    tensor = tensor.detach().cpu()
    tensor = tensor.dequantize() if tensor.is_quantized else tensor
    tensor = tensor.to_dense() if tensor.layout != torch.strided else tensor
    if tensor.dtype.is_complex:
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.dtype == torch.uint64:
        return tensor.view(torch.int64)
    if not tensor.dtype.is_floating_point:
        return tensor.to(torch.int64)
    return tensor.float().double() if tensor.dtype.itemsize < 4 else tensor.double()


def _elements(wanted: torch.Tensor, value: torch.Tensor) -> tuple[str, str]:
    if wanted.dtype == torch.float64 and wanted.ndim == 0:
        return figures(wanted.item(), value.item())
    return str(wanted.tolist()), str(value.tolist())


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


def _fields(instance: Any) -> dict[str, Any]:
    return {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
