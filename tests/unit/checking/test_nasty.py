"""A result for everything: a hundred nasty objects as answers, as what an answer returns, as predictions."""

import collections
import decimal
import enum
import fractions
import itertools
import math
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from course_utils import checking
from course_utils.checking import FAILED, NOT_ATTEMPTED, PASSED, Exercise, Result
from course_utils.checking.judge import judge
from tests.unit.checking.sample import EXERCISES, Disguised, Evil


class LyingInt(int):
    __eq__ = __lt__ = __gt__ = __le__ = __ge__ = lambda self, other: True
    __hash__ = int.__hash__


class LyingFloat(float):
    __eq__ = lambda self, other: True  # noqa: E731
    __hash__ = float.__hash__
    __float__ = lambda self: "no float"  # noqa: E731


class LyingStr(str):
    def __str__(self):
        raise OSError

    def strip(self, *_):
        return 5


class LyingList(list):
    def __len__(self):
        return 10**9

    def __repr__(self):
        raise SystemExit(1)


class LyingDict(dict):
    def keys(self):
        return 7

    __getitem__ = __iter__ = keys


class Endless:
    def __repr__(self):
        while True:
            pass


class Numeric:
    __float__ = __int__ = __index__ = lambda self: 1


class SymbolLike:
    """As sympy's: comparisons give something that is neither true nor false."""

    __eq__ = __lt__ = __add__ = __sub__ = __mul__ = __abs__ = lambda self, *_: SymbolLike()
    __hash__ = None

    def __bool__(self):
        raise TypeError("cannot determine truth value")


class Color(enum.IntEnum):
    RED = 4


class BrokenTensor(torch.Tensor):
    @classmethod
    def __torch_function__(cls, *args, **kwargs):
        raise OSError("broken")


def recursive():
    found = [1, {}]
    found[1]["again"] = found
    return found


MAKERS = [
    lambda: None, lambda: ..., lambda: NotImplemented, lambda: True, lambda: np.True_,
    lambda: torch.tensor(True),
    lambda: 0, lambda: -1, lambda: 10**5000, lambda: -(10**400), lambda: 0.0, lambda: math.nan,
    lambda: math.inf,
    lambda: -math.inf, lambda: 5e-324, lambda: 1.7e308, lambda: 1j, lambda: complex(math.nan, math.inf),
    lambda: complex(1.7e308, 1.7e308), lambda: fractions.Fraction(1, 3),
    lambda: fractions.Fraction(10**600, 7),
    lambda: decimal.Decimal("0.5"), lambda: decimal.Decimal("NaN"), lambda: decimal.Decimal("sNaN"),
    lambda: decimal.Decimal("Infinity"), lambda: decimal.Decimal("1e9999"), lambda: np.float32(0.5),
    lambda: np.float16(60000), lambda: np.longdouble(2), lambda: np.int8(5), lambda: np.uint64(2**64 - 1),
    lambda: np.complex64(1j), lambda: np.datetime64("2020"), lambda: np.timedelta64(5, "D"),
    lambda: np.str_("decode"), lambda: np.bytes_(b"decode"), lambda: np.void(b"abc"), lambda: LyingInt(3),
    lambda: LyingFloat(3), lambda: LyingStr("decode"), lambda: LyingList([1, 2]), lambda: LyingDict(a=1),
    Numeric, SymbolLike, Evil, Disguised, lambda: Color.RED, lambda: Color, object, lambda: type,
    lambda: "", lambda: "x" * 10**6, lambda: b"decode", lambda: bytearray(b"1"), lambda: memoryview(b"1"),
    list, dict, set, tuple, lambda: [[]], lambda: {1: {2: {3: {}}}}, lambda: {"mean": 1.5, "counts": 5},
    recursive, lambda: [Evil()], lambda: {"mean": Evil(), "counts": Evil()}, lambda: {Color.RED: 1},
    lambda: [10**5000], lambda: list(range(10**5)), lambda: collections.deque([1]), lambda: range(10**9),
    lambda: (n for n in range(3)), lambda: iter([1]), itertools.count, lambda: map(str, [1]), lambda: zip,
    lambda: len, lambda: print, lambda: (lambda: 5), lambda: [].append, lambda: "".join, lambda: sys,
    lambda: types.SimpleNamespace(a=1), lambda: slice(1), lambda: ValueError("x"), lambda: ValueError,
    lambda: torch.tensor(0.5), lambda: torch.tensor(5, dtype=torch.int8), lambda: torch.zeros(0),
    lambda: torch.zeros(0, 4), lambda: torch.zeros(4), lambda: torch.zeros(4, requires_grad=True),
    lambda: torch.zeros(4, requires_grad=True) * 2, lambda: torch.zeros(4, device="meta"),
    lambda: torch.tensor(0.5, device="meta"), lambda: torch.zeros(4).to_sparse(),
    lambda: torch.zeros(4, 4).to_sparse_csr(),
    lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
    lambda: torch.quantize_per_tensor(torch.tensor(1.0), 0.1, 0, torch.quint8), lambda: torch.zeros(4) + 1j,
    lambda: torch.zeros(4).half(), lambda: torch.zeros(4).to(torch.float8_e4m3fn),
    lambda: torch.zeros(1).expand(4),
    lambda: torch.full((4,), math.nan), lambda: torch.zeros(4, dtype=torch.uint64),
    lambda: torch.zeros(4).numpy(),
    lambda: np.array(None), lambda: np.array(["a", Evil()], dtype=object), lambda: np.zeros((0, 4)),
    lambda: np.zeros(2, dtype=[("a", "i4")]), lambda: np.ma.masked, lambda: np.array(5),
    lambda: np.arange(4)[::-1],
    lambda: torch.zeros(4).as_subclass(BrokenTensor), lambda: nn.Parameter(torch.zeros(4)),
    lambda: nn.Linear(2, 2),
    lambda: nn.Linear(2, 2).weight, lambda: nn.Linear, lambda: torch.float32, lambda: torch.Size([4]),
    lambda: torch.device("cpu"), lambda: torch.Generator(),
    lambda: torch.nested.nested_tensor([torch.zeros(2)]),
]  # fmt: skip
KINDS = [exercise for exercise in EXERCISES if exercise.name != "broken"]
CLASS = KINDS[1]


def is_result(result):
    assert isinstance(result, Result) and result.status in (PASSED, FAILED, NOT_ATTEMPTED)
    assert type(result.message) is str and len(result.message) < 5000


@pytest.mark.parametrize("make", MAKERS)
def test_every_object_gets_a_result(make):
    for exercise in KINDS:
        is_result(judge(exercise, make(), "nasty"))  # as the answer, or the prediction
        if isinstance(exercise, Exercise):
            is_result(judge(exercise, lambda *args, **kwargs: make(), "nasty"))
            is_result(judge(exercise, lambda *args, **kwargs: [make(), {"words": make()}], "nasty"))
    methods = {"__init__": lambda self, *args: None, "add": lambda *args: make()}
    is_result(judge(CLASS, type("Nasty", (), methods), "nasty"))


def test_a_repr_that_never_ends_is_stopped():
    one = Exercise(reference=lambda: 5, cases=lambda: [checking.Case()])
    is_result(judge(one, Endless(), "endless"))
    is_result(judge(one, Endless, "endless"))


OVERWRITE = [
    lambda x: setattr(x, "data", 5), lambda x: x.__setitem__(0, 5), lambda x: x.__delitem__(0),
    lambda x: x.clear(), lambda x: x.append(x), lambda x: setattr(x, "grad", 5),
    lambda x: x.__dict__.clear(),
    lambda x: x.update(a=x), lambda x: x.pop("a"), lambda x: x.__setitem__("a", 5), lambda x: x.resize_(0),
    lambda x: x.data.set_(), lambda x: setattr(x, "a", Evil()), lambda x: delattr(x, "a"),
    lambda x: x.__setitem__("a", Evil()), lambda x: x.__setitem__(0, Evil()),
    lambda x: x.__setitem__(Color.RED, 1),
    lambda x: x.resize(0, refcheck=False), lambda x: setattr(x, "__class__", Evil),
    lambda x: setattr(x, "weight", None),
]  # fmt: skip


@pytest.mark.parametrize("change", OVERWRITE)
@pytest.mark.parametrize("raises", [None, ValueError])
def test_whatever_is_done_to_an_argument_gets_a_result(change, raises):
    def reference(*args, **kwargs):
        if raises:
            raise raises
        return 1

    def answer(*args, **kwargs):
        for value in (*args, *kwargs.values()):
            try:
                change(value)
            except (AttributeError, TypeError, ValueError, KeyError, IndexError, RuntimeError):
                pass
        return reference()

    def cases():
        values = [torch.ones(3), [torch.ones(2), 1], {"a": torch.ones(2)}, np.ones(3), nn.Linear(2, 2),
                  types.SimpleNamespace(a=1), {1, 2}]  # fmt: skip
        named = checking.Case(name=[1], raises=raises)
        return [*(checking.Case(value, raises=raises) for value in values), named]

    for gradients in (False, True):
        is_result(judge(Exercise(reference=reference, cases=cases, gradients=gradients), answer, "nasty"))


# Makers, not values: hypothesis asks what it draws for its class, which some of these do not survive.
PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text(max_size=5)
    | st.fractions() | st.decimals() | st.binary(max_size=3)
)  # fmt: skip
MADE_UP = st.recursive(
    PLAIN.map(lambda value: lambda: value) | st.sampled_from(MAKERS),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda makers: lambda: [make() for make in makers])
        | st.tuples(inner, inner).map(lambda makers: lambda: tuple(make() for make in makers))
        | st.dictionaries(st.text(max_size=2), inner, max_size=3).map(
            lambda makers: lambda: {name: make() for name, make in makers.items()}
        )
    ),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(make=MADE_UP)
def test_made_up_values_get_a_result(make):
    for exercise in KINDS:
        is_result(judge(exercise, make(), "made up"))
        if isinstance(exercise, Exercise):
            is_result(judge(exercise, lambda *args, **kwargs: make(), "made up"))


@pytest.mark.parametrize("value", ["Fraction(1, 2)", "Decimal('0.5')", "np.float32(0.5)", "torch.tensor(.5)"])
def test_numbers_of_every_kind_are_numbers(value):
    half = checking.Prediction(id="half", answer=0.5)
    names = {"Fraction": fractions.Fraction, "Decimal": decimal.Decimal, "np": np, "torch": torch}
    assert judge(half, eval(value, names), "half").status == PASSED
