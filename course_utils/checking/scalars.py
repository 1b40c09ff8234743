"""Single numbers, of whatever type they are."""

import math
import numbers
from typing import Any

import numpy as np
import torch


def is_scalar_tensor(value: Any, dtype: torch.dtype | None = None) -> bool:
    """Whether a value is a 0-dimensional tensor.

    Args:
        value: any value.
        dtype: if given, the tensor must have it.

    Returns:
        True when it is.
    """
    return isinstance(value, torch.Tensor) and value.ndim == 0 and dtype in (None, value.dtype)


def as_number(value: Any) -> int | float | complex | None:
    """A value as a Python number.

    Args:
        value: any value; numbers of numpy, fractions, decimals and 0-dimensional tensors and arrays count.

    Returns:
        The number, or None when the value is none (a bool is none).
    """
    if is_scalar_tensor(value) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Number):
        return None
    for kind, convert in ((int, int.__int__), (float, float.__float__), (complex, complex.__complex__)):
        if isinstance(value, kind):  # of a subclass, which may have a == of its own, the plain number
            return convert(value)
    try:
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    except OverflowError:  # a fraction of huge numbers
        return math.inf if value > 0 else -math.inf
    except Exception:  # a number that has no float
        return None


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
        apart = complex(came) - complex(expected)
        size = math.hypot(expected.real, expected.imag)
        return math.hypot(apart.real, apart.imag) <= atol + rtol * size < math.inf
    if math.isnan(expected) or math.isnan(came):
        return math.isnan(expected) and math.isnan(came)
    if math.isinf(expected) or math.isinf(came):
        return False
    return abs(came - expected) <= atol + rtol * abs(expected)
