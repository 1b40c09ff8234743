"""What a learner reads: the reason, in words and lines of their own."""

import functools

import numpy as np
import pytest
import torch

from course_utils.checking import Case, Exercise, Mistake, Prediction
from course_utils.checking.cases import gradients, randn
from course_utils.checking.describe import describe, figures
from course_utils.checking.judge import judge
from tests.unit.checking import sample
from tests.unit.checking.sample import own_row_scale, row_scale

COUNT = Exercise(reference=lambda n: 8 * n, id="count", cases=lambda: [Case(3), Case(2880)])
SCALE = Exercise(reference=lambda x: x.abs().max(), id="scale", cases=lambda: [Case(randn(5))])
BOUND = Exercise(reference=lambda a, b: a / b, id="bound", rtol=1e-9, cases=lambda: [Case(20e9, 538_060_032)])
INDEX = Exercise(
    reference=lambda x: x.argmin(0), id="index", exact_dtype=True, cases=lambda: [Case(randn(5, 2))]
)


@pytest.mark.parametrize(
    ("exercise", "answer", "status"),
    [
        (COUNT, lambda n: 8.0 * n, "failed"),
        (COUNT, lambda n: np.float64(8 * n), "failed"),
        (COUNT, lambda n: torch.tensor(8.0 * n), "failed"),
        (COUNT, lambda n: n * 8 + 0j, "failed"),
        (COUNT, lambda n: np.int64(8 * n), "passed"),
        (COUNT, lambda n: torch.tensor(8 * n), "passed"),
        (SCALE, lambda x: x.double().abs().max(), "passed"),
        (SCALE, lambda x: float(x.abs().max()), "passed"),
        (INDEX, lambda x: x.argmin(0), "passed"),
        (INDEX, lambda x: x.argmin(0).int(), "failed"),
        (INDEX, lambda x: x.argmin(0).to(torch.int8), "failed"),
    ],
)
def test_the_kind_always_counts_and_the_dtype_where_it_is_asked_for(exercise, answer, status):
    assert judge(exercise, answer, "types").status == status


@pytest.mark.parametrize(
    ("reference", "answer", "status"),
    [
        (lambda: 5, lambda: np.int64(5), "failed"), (lambda: 5, lambda: 5, "passed"),
        (lambda: 0.5, lambda: np.float64(0.5), "passed"), (lambda: 0.5, lambda: np.float32(0.5), "failed"),
        (lambda: 0.5, lambda: torch.tensor(0.5), "failed"),
        (lambda: torch.tensor(0.5), lambda: 0.5, "failed"), (lambda: 1.0, lambda: 1, "failed"),
        (lambda: np.zeros(2), lambda: np.zeros(2, np.float32), "failed"),
        (lambda: {"a": torch.zeros(2)}, lambda: {"a": torch.zeros(2).half()}, "failed"),
    ],
)  # fmt: skip
def test_exact_types_of_a_single_case(reference, answer, status):
    one = Exercise(reference=reference, id="one", cases=lambda: [Case(exact_dtype=True)])
    assert judge(one, answer, "one").status == status


def test_a_float_for_an_int_is_named():
    message = judge(COUNT, lambda n: 8.0 * n, "count").message
    assert "expected:  24 (int)" in message
    assert "came:      24 (float) (the number is right, but it is no int)" in message


def test_a_scalar_is_printed_once_and_with_the_digits_that_differ():
    message = judge(BOUND, lambda a, b: (torch.tensor(a) / b).item(), "bound").message
    expected, came = (line.split(":")[1].split()[0] for line in message.splitlines()[2:4])
    assert expected != came and float(expected) == pytest.approx(float(came), rel=1e-6)
    message = judge(SCALE, lambda x: x.abs().max() * 1.5, "scale").message
    line = next(line for line in message.splitlines() if "came" in line)
    assert line.count(f"{1.5 * randn(5).abs().max().item():.6g}"[:6]) == 1 and "elements" not in message
    assert figures(0.1, 0.1 + 1e-12) == ("0.1", "0.100000000001")


def test_a_likely_mistake_explains_the_case_that_is_shown():
    """`unsigned` is right where bits is 1; an answer that is wrong there, too, is something else."""
    exercise = Exercise(
        reference=lambda x, flip=False: -x if flip else x, id="flip", hint="look at flip.",
        cases=lambda: [Case(2), Case(3, flip=True)],
        mistakes=[Mistake("flip forgotten.", lambda x, flip=False: x)],
    )  # fmt: skip
    assert "Likely mistake: flip forgotten." in judge(exercise, lambda x, flip=False: x + 0, "flip").message
    message = judge(exercise, lambda x, flip=False: x if flip else x + 1, "flip").message
    assert "case 1 of 2" in message and "Hint: look at flip." in message and "forgotten" not in message


def test_a_forgotten_return_is_named_wherever_the_exercise_looks():
    def unpacks(function, x):
        first, second = function(x)
        return {"first": first, "second": second}

    pair = Exercise(reference=lambda x: (x, -x), id="pair", call=unpacks, cases=lambda: [Case(randn(2))])
    message = judge(pair, lambda x: None, "pair").message
    assert "came:      None (is a `return` missing?)" in message and "unpack" not in message
    message = judge(pair, lambda x: (x + 1, -x), "pair").message
    assert "at first: float32 tensor" in message and "{" not in message and "['" not in message

    def call(function, x):
        x = x.detach().requires_grad_()
        return gradients(function(x), x=x)

    slope = Exercise(reference=lambda x: 2 * x, id="slope", call=call, cases=lambda: [Case(randn(2))])
    assert "came:      None (is a `return` missing?)" in judge(slope, lambda x: None, "slope").message
    assert "at gradient of x: " in judge(slope, lambda x: 2 * x.detach(), "slope").message


def test_a_stub_that_was_left_in_finished_code_is_named():
    def above(weight, bits=4):
        """Docs."""
        raise NotImplementedError
        if bits < 2:
            raise ValueError
        return weight.abs().amax(1) / (2 ** (bits - 1) - 1)

    def below(weight, bits=4):
        if bits < 2:
            raise ValueError
        weight.abs().amax(1) / (2 ** (bits - 1) - 1)
        raise NotImplementedError

    def stub(weight, bits=4):
        """Docs."""
        # About 3 lines.
        raise NotImplementedError()

    message = judge(sample.EXERCISES[0], above, "row_scale").message
    assert "failed" in message and "is still there, so the code below it never runs: delete" in message
    message = judge(sample.EXERCISES[0], below, "row_scale").message
    assert "failed" in message and "is still there, and your code runs into it: delete that line" in message
    assert judge(sample.EXERCISES[0], stub, "row_scale").status == "not attempted"


def test_a_missing_property_and_missing_brackets_are_named():
    message = judge(SCALE, lambda x: x.abs().max, "scale").message
    assert "are the brackets missing" in message

    class Answer:
        def total(self):
            return 1

    one = type("Total", (), {"total": 1})
    total = Exercise(reference=one, call=lambda cls: cls().total, cases=lambda: [Case()])
    assert "is `@property` missing above `def total`" in judge(total, Answer, "total").message


def test_a_function_where_a_class_is_asked_for():
    message = judge(sample.EXERCISES[1], lambda start: None, "Accumulator").message
    assert "expected:  an object of a class Accumulator" in message and "came:      None" in message


def test_tensors_in_containers_are_shown_by_their_shape():
    text = describe({"weight": torch.ones(2, 3), "rows": [np.ones(2)]})
    assert "<float32 tensor of shape (2, 3)>" in text and "<float64 array of shape (2,)>" in text
    assert "<float32 tensor of shape (1,)>" in describe([torch.nn.Parameter(torch.ones(1))])


def test_only_lines_of_the_learner_are_shown():
    from course_utils import costs
    from course_utils.checking import find

    bound = find("engines.decode_bound")
    message = judge(bound, lambda *a: 1 / 0, "engines.decode_bound").message
    assert "in the line: message = judge(bound, lambda *a: 1 / 0" in message
    message = judge(bound, functools.partial(costs.bytes_at_bits, bits="x"), "engines.decode_bound").message
    assert "TypeError raised" in message and "in the line" not in message
    message = judge(bound, lambda weights: 1, "engines.decode_bound").message
    assert "TypeError raised" in message and "in the line" not in message


@pytest.mark.parametrize(
    ("answer", "library"),
    [
        (row_scale, True),
        (functools.partial(row_scale), True),
        (lambda weight, bits=4: row_scale(weight, bits), True),
        (lambda *args, **kwargs: row_scale(*args, **kwargs).clone(), True),
        (own_row_scale, False),
    ],
)
def test_the_librarys_own_function_passes_and_is_told_apart(answer, library):
    result = judge(sample.EXERCISES[0], answer, "row_scale")
    assert result.status == "passed" and result.library is library
    assert ("passed, with the library's own function (3 cases)" in result.message) is library


def test_the_librarys_own_class_is_told_apart_too():
    class Own:
        def __init__(self, start):
            self.sum = start

        def add(self, value):
            self.sum += value
            return self.sum

    accumulator = sample.EXERCISES[1]
    assert judge(accumulator, sample.Accumulator, "a").library
    assert judge(accumulator, type("Same", (sample.Accumulator,), {}), "a").library
    assert not judge(accumulator, Own, "a").library and judge(accumulator, Own, "a").status == "passed"


def prediction(answer, unit="", rtol=0.05, mistakes=()):
    return Prediction(id="p", answer=answer, unit=unit, rtol=rtol, mistakes=list(mistakes), hint="think.")


@pytest.mark.parametrize(
    ("asked", "value", "reason"),
    [
        (prediction(188.7, "MB", 0.01), 188.7 / 1.048576, "MiB have 2^20 bytes, MB have 10^6."),
        (prediction(188.7, "MB", 0.01), 188.7 * 1.048576, "MiB have 2^20 bytes, MB have 10^6."),
        (prediction(52.06, "GB", 0.03), 52.06e9 / 2**30, "GiB have 2^30 bytes, GB have 10^9."),
        (prediction(52.06, "GB", 0.03), 52.06e9 / 2**20, "MiB have 2^20 bytes, MB have 10^6."),
        (prediction(538e6, "bytes"), 538e6 / 2**20, "MiB have 2^20 bytes, MB have 10^6."),
        (prediction(538e6, "bytes"), 538.0, "the unit (it is asked in bytes); the digits are right"),
        (prediction(538e6, "bytes"), 8 * 538e6, "the unit (it is asked in bytes): a byte has 8 bits."),
        (prediction(40, "tokens/s"), 320, "Hint: think."),
        (prediction(40, "tokens/s", mistakes=[(1, "bits, not bytes.")]), 320, "a byte has 8 bits."),
        (prediction(40, "tokens/s"), 4000, "Hint: think."),
        (prediction(40, "percent"), 0.4, "a share or a percentage; the digits are right."),
        (prediction(4, "times"), 4000, "Hint: think."),
        (prediction(16), 2, "Hint: think."),
        (prediction(538e6, "bytes", 0.005), 545.0, "Hint: think."),
    ],
)
def test_a_unit_is_blamed_only_where_it_can_be_the_unit(asked, value, reason):
    assert reason in judge(asked, value, "p").message


@pytest.mark.parametrize(
    ("rtol", "words"), [(0.005, "within 0.5 % of"), (0.001, "within 0.1 % of"), (0, "the exact number"),
                        (0.05, "within 5 % of"), (0.15, "within 15 % of")]
)  # fmt: skip
def test_the_accuracy_is_stated(rtol, words):
    assert f"(accepted: {words}" in judge(prediction(100, rtol=rtol), 7, "p").message
