"""The check framework: what a learner's code may do to it, and what it must say."""

import dataclasses
import re
import sys
import time
import types
import warnings

import numpy as np
import pytest
import torch

from course_utils import checking
from course_utils.checking import Case, Exercise, Mistake, Prediction, check, judge


def row_scale(weight, bits=4):
    """Largest magnitude of each row, divided by the largest signed integer of `bits` bits."""
    if bits < 2:
        raise ValueError("bits must be at least 2")
    return weight.abs().amax(1) / (2 ** (bits - 1) - 1)


def row_scale_cases():
    generator = torch.Generator().manual_seed(0)
    strided = torch.randn(5, 3, generator=generator).T
    return [
        Case(torch.randn(4, 8, generator=generator), label="plain"),
        Case(strided, bits=3, label="strided"),
        Case(torch.randn(2, 2, generator=generator), bits=1, raises=ValueError, label="one bit"),
    ]


def unsigned(weight, bits=4):
    return weight.abs().amax(1) / (2**bits - 1)


def whole_matrix(weight, bits=4):
    return (weight.abs().amax() / (2 ** (bits - 1) - 1)).expand(len(weight))


def never_ends(weight, bits=4):
    while True:
        pass


class Accumulator:
    """Sums."""

    def __init__(self, start):
        self.total = start

    def add(self, value):
        self.total += value
        return self.total


def add_all(cls, start, values):
    accumulator = cls(start)
    return [accumulator.add(value) for value in values]


@dataclasses.dataclass
class Packed:
    words: torch.Tensor
    scale: float


def packed(values):
    return Packed(torch.tensor(values, dtype=torch.int32), 0.5)


def mean_and_counts(values):
    return {"mean": sum(values) / len(values), "counts": (len(values), np.array(values).max())}


def zero_first(values):
    values[0] = 0
    return None


EXERCISES = [
    Exercise(
        reference=row_scale,
        cases=row_scale_cases,
        mistakes=[
            Mistake("the unsigned range.", unsigned),
            Mistake("one scale for the whole matrix.", whole_matrix),
        ],
        hint="think of one row.",
        seconds=1.0,
    ),
    Exercise(reference=Accumulator, call=add_all, cases=lambda: [Case(1, [2, 3]), Case(0, [])]),
    Exercise(reference=packed, cases=lambda: [Case([1, 2])], exact_dtype=True),
    Exercise(reference=mean_and_counts, cases=lambda: [Case([1.0, 2.0])]),
    Exercise(reference=zero_first, cases=lambda: [Case([3, 4]), Case(torch.ones(2))]),
    Exercise(reference=lambda: torch.rand(3), id="noise", cases=lambda: [Case()]),
    Exercise(reference=lambda x: 1 / 0, id="broken", cases=lambda: [Case(1)]),
    Prediction(
        id="bytes", answer=lambda: 538_060_032, unit="bytes", mistakes=[(269e6, "two bytes each.")]
    ),
    Prediction(id="phase", answer="decode", mistakes=[("prefill", "that one is bound by arithmetic.")]),
]


@pytest.fixture(autouse=True)
def lesson(monkeypatch):
    module = types.ModuleType("exercises_of_lesson_91")
    module.EXERCISES = EXERCISES
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(checking.MODULES, "sample", module.__name__)
    monkeypatch.delenv("NBGRADER_EXECUTION", raising=False)


def status(id, answer):
    return judge(id, answer).status


def test_right_answer_passes_with_the_number_of_cases(capsys):
    check("sample.row_scale", row_scale)
    assert capsys.readouterr().out == "sample.row_scale: passed (3 cases)\n"


def test_right_answer_in_another_dtype_and_order_passes():
    def other(weight, bits=4):
        if not bits > 1:
            raise ValueError
        largest = torch.tensor([max(abs(v) for v in row) for row in weight.tolist()], dtype=torch.float64)
        return largest / (2 ** (bits - 1) - 1)

    assert status("sample.row_scale", other) == "passed"


def test_stub_is_not_attempted():
    def stub(weight, bits=4):
        raise NotImplementedError

    assert status("sample.row_scale", stub) == "not attempted"
    assert status("sample.row_scale", None) == "not attempted"
    assert status("sample.Accumulator", type("Accumulator", (), {"__init__": stub})) == "not attempted"


def test_not_implemented_by_torch_is_a_failure_and_not_a_stub():
    def unsupported(weight, bits=4):
        raise NotImplementedError("'abs' is not implemented for this type")

    result = judge("sample.row_scale", unsupported)
    assert result.status == "failed" and "is not implemented for this type" in result.message


class Evil:
    """Raises whatever is done with it."""

    def _fail(self, *_):
        raise OSError("evil")

    __eq__ = __repr__ = __len__ = __iter__ = __getitem__ = __bool__ = __float__ = _fail
    __hash__ = None


class Disguised:
    """Cannot even be asked what it is."""

    @property
    def __class__(self):
        raise OSError("evil")


class EvilError(Exception):
    def __str__(self):
        raise OSError("evil")


def raising(error):
    def answer(weight, bits=4):
        raise error

    return answer


def recursive(weight, bits=4):
    return recursive(weight, bits)


def changes_its_argument(weight, bits=4):
    if bits < 2:
        raise ValueError
    return weight.abs_().amax(1) / (2 ** (bits - 1) - 1)


def swallows(weight, bits=4):
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            pass


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (raising(ZeroDivisionError("division by zero")), "ZeroDivisionError raised: division by zero"),
        (raising(SystemExit(3)), "SystemExit raised"),
        (raising(EvilError()), "EvilError raised"),
        (raising(GeneratorExit()), "GeneratorExit raised"),
        (recursive, "RecursionError raised"),
        (never_ends, "does a loop never end"),
        (swallows, "does a loop never end"),
        (changes_its_argument, "`weight`.*\n.*in place"),
        (lambda weight, bits=4: None, "None .is a `return` missing"),
        (lambda weight, bits=4: (x for x in [1]), "a generator"),
        (lambda weight, bits=4: Evil(), "an object of type Evil"),
        (lambda weight, bits=4: Disguised(), "an object of type Disguised"),
        (lambda weight, bits=4: weight, "shape"),
        (lambda weight, bits=4: row_scale(weight, max(bits, 2)).numpy(), "float32 array of shape"),
        (lambda weight, bits=4: row_scale(weight, bits).long(), "int64 tensor"),
        (lambda weight, bits=4: row_scale(weight, max(bits, 2)), "ValueError raised"),
        (lambda weight, bits=4: row_scale(weight, bits).to("meta"), "expected"),
        (lambda matrix, *, bits: matrix, "TypeError raised"),
        (7, "the function itself"),
        (Evil(), "the function itself"),
        ("row_scale", "the function itself"),
    ],
)
def test_whatever_an_answer_does_is_a_failure_with_a_reason(answer, reason, capsys):
    assert check("sample.row_scale", answer) is None
    text = capsys.readouterr().out
    assert "sample.row_scale: failed" in text
    assert re.search(reason, text), text


def test_failure_names_case_difference_and_call():
    def last_element_off(weight, bits=4):
        scale = row_scale(weight, bits)
        scale[-1] += 1
        return scale

    message = judge("sample.row_scale", last_element_off).message
    assert "in case 1 of 3 (plain)" in message
    assert "called as: row_scale(<float32 tensor of shape (4, 8)>)" in message
    assert "[3] = " in message and "(1 of 4 elements differ)" in message
    assert "Hint: think of one row." in message


@pytest.mark.parametrize(
    ("answer", "mistake"),
    [
        (lambda weight, bits=4: weight.abs().max(1).values / (2**bits - 1), "the unsigned range"),
        (lambda weight, bits=4: weight.abs().max() / (2 ** (bits - 1) - 1) * torch.ones(len(weight)), "who"),
    ],
)
def test_likely_mistake_is_found_though_the_learner_wrote_it_another_way(answer, mistake):
    def careful(weight, bits=4):
        if bits < 2:
            raise ValueError
        return answer(weight, bits)

    for function in (answer, careful):
        message = judge("sample.row_scale", function).message
        assert f"Likely mistake: {mistake}" in message.replace("one scale for the ", "")


def test_exception_shows_the_learners_line():
    def answer(weight, bits=4):
        return weight[99]

    assert "in the line: return weight[99]" in judge("sample.row_scale", answer).message


def test_integers_are_compared_exactly():
    class OneTooMany(Accumulator):
        def add(self, value):
            return super().add(value) + 1

    assert status("sample.Accumulator", Accumulator) == "passed"
    assert status("sample.Accumulator", OneTooMany) == "failed"
    counting = Exercise(reference=lambda: 134_515_008, cases=lambda: [Case()])
    off = checking._judge(counting, lambda: 134_515_008 - 576, "sample.count")
    assert off.status == "failed"
    assert checking._judge(counting, lambda: torch.tensor(134_515_008), "sample.count").status == "passed"


def test_dataclasses_and_exact_dtypes():
    assert status("sample.packed", packed) == "passed"
    wide = judge("sample.packed", lambda values: Packed(torch.tensor(values), 0.5))
    assert wide.status == "failed" and "['words']: int64 tensor" in wide.message
    assert status("sample.packed", lambda values: (torch.tensor(values, dtype=torch.int32), 0.5)) == "failed"


def test_nested_containers():
    def as_list(values):
        return {"counts": [2, 2.0], "mean": 1.5}

    assert status("sample.mean_and_counts", mean_and_counts) == "passed"
    assert status("sample.mean_and_counts", as_list) == "passed"
    missing = judge("sample.mean_and_counts", lambda values: {"mean": 1.5})
    assert "without 'counts'" in missing.message
    wrong = judge("sample.mean_and_counts", lambda values: {"mean": 1.5, "counts": (2, 3.0)})
    assert "at ['counts'][1]" in wrong.message


def test_a_function_that_is_meant_to_change_its_argument():
    def by_slice(values):
        values[:1] = [0] if isinstance(values, list) else 0

    assert status("sample.zero_first", by_slice) == "passed"
    assert "argument `values`" in judge("sample.zero_first", lambda values: None).message


def test_random_numbers_are_the_same_and_the_learners_stay():
    torch.manual_seed(5)
    wanted = torch.rand(2)
    torch.manual_seed(5)
    assert status("sample.noise", lambda: torch.rand(3)) == "passed"
    assert torch.equal(torch.rand(2), wanted)


def test_special_values():
    special = Exercise(
        reference=lambda: torch.tensor([float("nan"), float("inf"), -0.0, 3.0]), cases=lambda: [Case()]
    )
    same = torch.tensor([float("nan"), float("inf"), 0.0, 3.00001])
    assert checking._judge(special, lambda: same, "sample.special").status == "passed"
    assert checking._judge(special, lambda: -same, "sample.special").status == "failed"
    empty = Exercise(reference=lambda: torch.zeros(0, 3), cases=lambda: [Case()])
    assert checking._judge(empty, lambda: torch.zeros(3, 0), "sample.empty").status == "failed"
    assert checking._judge(empty, lambda: torch.zeros(0, 3), "sample.empty").status == "passed"


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "uint8", "complex64", "bool"]
)
def test_every_dtype_compares(dtype):
    value = torch.tensor([0, 1, 1]).to(getattr(torch, dtype))
    other = torch.tensor([0, 1, 0]).to(getattr(torch, dtype))
    exercise = Exercise(reference=lambda: value, cases=lambda: [Case()])
    assert checking._judge(exercise, value.clone, "sample.dtype").status == "passed"
    result = checking._judge(exercise, lambda: other, "sample.dtype")
    assert result.status == "failed" and "1 of" in result.message


def test_a_broken_exercise_is_not_blamed_on_the_learner():
    with pytest.raises(RuntimeError, match="exercise sample.broken is broken.*ZeroDivisionError"):
        judge("sample.broken", lambda x: x)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (538e6, "passed"),
        (np.float32(530e6), "passed"),
        (torch.tensor(540_000_000), "passed"),
        (None, "not attempted"),
        (..., "not attempted"),
        (600e6, "failed"),
        (float("nan"), "failed"),
        (float("inf"), "failed"),
        (True, "failed"),
        ("538 MB", "failed"),
        (0, "failed"),
        (-538e6, "failed"),
        pytest.param(10**400, "failed", id="huge"),
        (lambda: 538e6, "failed"),
        ([538e6], "failed"),
        (538e6 + 0j, "failed"),
        (Evil(), "failed"),
    ],
)
def test_predictions(value, expected, capsys):
    check("sample.bytes", value)
    assert f"sample.bytes: {expected}" in capsys.readouterr().out


def test_prediction_explains_without_giving_the_answer_away():
    for value, reason in [
        (269.03e6, "Likely mistake: two bytes each."),
        (538.06, "Likely mistake: the unit (it is asked in bytes)"),
        (4.3e9, "Likely mistake: the unit"),
        (100e6, "too low, by less than a factor of 10"),
        (700e6, "too high, by less than a factor of 2"),
    ]:
        message = judge("sample.bytes", value).message
        assert reason in message
        assert "538,060,032" not in message


@pytest.mark.parametrize(
    "value", [float("inf"), -float("inf"), 1e-300, -1, pytest.param(10**400, id="huge")]
)
def test_predictions_of_zero(value):
    zero = Prediction(id="zero", answer=0)
    assert checking._judge(zero, value, "sample.zero").status == "failed"
    assert checking._judge(zero, 0.0, "sample.zero").status == "passed"


def test_a_prediction_that_cannot_be_asked_what_it_is():
    assert status("sample.bytes", Disguised()) == "failed"


def test_choices():
    assert status("sample.phase", " Decode") == "passed"
    assert "bound by arithmetic" in judge("sample.phase", "prefill").message
    assert status("sample.phase", 3) == "failed"


def test_under_nbgrader_a_check_raises(monkeypatch, capsys):
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    check("sample.row_scale", row_scale)
    with pytest.raises(AssertionError, match="likely|Likely"):
        check("sample.row_scale", unsigned)
    with pytest.raises(AssertionError, match="not attempted"):
        check("sample.bytes", None)


def test_nbgrader_gets_nothing_on_stderr(capsys):
    def warns(weight, bits=4):
        warnings.warn("careful", stacklevel=1)
        print("debug", file=sys.stderr)
        return row_scale(weight, bits)

    check("sample.row_scale", warns)
    output = capsys.readouterr()
    assert output.err == "" and "debug" in output.out and "passed" in output.out


@pytest.mark.parametrize("id", ["sample.row_scales", "sample.", "sample", "77.row_scale", "", "x/y.z", 5])
def test_unknown_id_is_a_clear_error(id):
    with pytest.raises(ValueError, match="no exercise"):
        check(id, row_scale)


def test_unknown_id_names_near_ones():
    with pytest.raises(ValueError, match="Near it: sample.row_scale"):
        check("sample.rowscale", row_scale)


def test_two_exercises_of_one_name_are_refused():
    EXERCISES.append(EXERCISES[0])
    try:
        with pytest.raises(ValueError, match="two exercises named 'row_scale'"):
            checking.load("sample")
    finally:
        EXERCISES.pop()
