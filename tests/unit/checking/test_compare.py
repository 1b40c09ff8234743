"""Which values count as the same, and where two that differ are said to part."""

import pytest
import torch

from course_utils import checking
from course_utils.checking import Case, Exercise, judge
from tests.unit.checking.sample import Accumulator, Packed, mean_and_counts, packed, status


def test_right_answer_in_another_dtype_and_order_passes():
    def other(weight, bits=4):
        if not bits > 1:
            raise ValueError
        largest = torch.tensor([max(abs(v) for v in row) for row in weight.tolist()], dtype=torch.float64)
        return largest / (2 ** (bits - 1) - 1)

    assert status("sample.row_scale", other) == "passed"


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
