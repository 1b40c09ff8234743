"""An answer is used twice: what it keeps between calls, and what it does to what it returned before."""

import pytest
import torch
from torch import nn

from course_utils.checking import Case, Exercise
from course_utils.checking.cases import error_of, randn, read_twice
from course_utils.checking.judge import judge

ROWS = Exercise(
    reference=lambda x: x.sum(1), id="rows", hint="sum.",
    cases=lambda: [Case(randn(3, 4)), Case(randn(2, 5, seed=1)), Case(randn(3, 4, seed=2))],
)  # fmt: skip


def counting():
    calls = []

    def answer(x):
        calls.append(x)
        return x.sum(1) * (1 if len(calls) <= 3 else 2)

    return answer


def with_default_list(x, seen=[]):  # noqa: B006
    seen.append(1)
    return x.sum(1) + (len(seen) > 3)


def one_buffer():
    buffers = {}

    def answer(x):
        buffer = buffers.setdefault(len(x), torch.empty(len(x)))
        return torch.sum(x, 1, out=buffer)

    return answer


def cached_by_shape():
    cache = {}

    def answer(x):
        return cache.setdefault(x.shape, x.sum(1)).clone()

    return answer


@pytest.mark.parametrize("make", [counting, lambda: with_default_list], ids=["closure", "default argument"])
def test_what_is_kept_between_calls_is_found(make):
    result = judge(ROWS, make(), "rows")
    assert result.status == "failed"
    assert "the second call with the same arguments gives something else" in result.message
    assert ", called again" in result.message


def test_a_buffer_that_is_used_again_is_found():
    result = judge(ROWS, one_buffer(), "rows")
    assert result.status == "failed" and "changed what this one had returned" in result.message


def test_a_cache_by_shape_is_found_by_two_cases_of_one_shape():
    result = judge(ROWS, cached_by_shape(), "rows")
    assert result.status == "failed" and "in case 3 of 3" in result.message


def test_a_module_that_is_right_each_time_passes():
    assert judge(ROWS, lambda x: torch.einsum("ij->i", x), "rows").status == "passed"


class Mean:
    def __init__(self):
        self.total, self.rows = 0, 0

    def add(self, x):
        if x.ndim != 2:
            raise ValueError("a matrix is needed")
        self.total, self.rows = self.total + x.sum(0), self.rows + len(x)

    @property
    def value(self):
        return self.total / self.rows


class ScaledWhenRead(Mean):
    @property
    def value(self):
        self.total = self.total / self.rows
        return self.total


class CountedBeforeChecked(Mean):
    def add(self, x):
        self.rows += len(x)
        if x.ndim != 2:
            raise ValueError("a matrix is needed")
        self.total = self.total + x.sum(0)


class NoProperty(Mean):
    def value(self):
        return self.total / self.rows


def drive(cls, x, wrong):
    mean = cls()
    mean.add(x)
    said = error_of(mean.add, wrong)
    return {"the second add": said, "value": read_twice(lambda: mean.value, "value")}


MEAN = Exercise(reference=Mean, call=drive, cases=lambda: [Case(randn(4, 3), randn(3))])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(ScaledWhenRead, "another value the second time"), (CountedBeforeChecked, "at value: "),
     (NoProperty, "is `@property` missing above `def value`")],
)
def test_an_object_is_read_twice_and_looked_at_after_an_error(answer, reason):
    message = judge(MEAN, answer, "Mean").message
    assert reason in message, message
    assert "{" not in message  # not the dict of `drive`


def test_a_right_class_passes():
    class Running:
        def __init__(self):
            self.value, self.rows = None, 0

        def add(self, x):
            if x.dim() != 2:
                raise ValueError
            before, self.rows = self.rows, self.rows + x.shape[0]
            self.value = x.mean(0) if not before else (self.value * before + x.sum(0)) / self.rows

    assert judge(MEAN, Running, "Mean").status == "passed"


def test_settings_of_torch_are_put_back_and_do_not_matter():
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    try:
        def careless(x):
            torch.set_default_dtype(torch.float16)
            return nn.functional.linear(x, torch.ones(1, x.shape[1], dtype=x.dtype))[:, 0]

        assert judge(ROWS, careless, "rows").status == "passed"
        assert torch.get_default_dtype() == torch.float64 and not torch.is_grad_enabled()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
