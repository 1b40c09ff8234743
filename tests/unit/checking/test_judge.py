"""What is said about an answer, whatever a learner's code may do."""

import re
import threading
import time

import pytest
import torch

from course_utils import checking
from course_utils.checking import Case, Exercise, check, judge
from tests.unit.checking.sample import Disguised, Evil, never_ends, row_scale, status


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


def test_a_function_that_is_meant_to_change_its_argument():
    def by_slice(values):
        values[:1] = [0] if isinstance(values, list) else 0

    assert status("sample.zero_first", by_slice) == "passed"
    assert "argument `values`" in judge("sample.zero_first", lambda values: None).message


class TooSmall(ValueError):
    pass


@pytest.mark.parametrize(
    ("wanted", "raised", "passes"),
    [(TooSmall, TooSmall, True), (TooSmall, ValueError, False), (ValueError, TooSmall, True),
     ((ValueError, KeyError), KeyError, True), ((ValueError, KeyError), TypeError, False)],
)  # fmt: skip
def test_the_error_that_is_asked_for_or_a_subclass_of_it(wanted, raised, passes):
    one = wanted[0] if isinstance(wanted, tuple) else wanted
    exercise = Exercise(reference=raising(one("no")), id="error", cases=lambda: [Case(1, raises=wanted)])
    result = checking._judge(exercise, raising(raised("no")), "error")
    assert (result.status == "passed") is passes
    assert passes or ("TooSmall raised" if wanted is TooSmall else "ValueError or KeyError") in result.message


def test_arguments_that_cannot_be_copied_are_the_exercises_fault():
    exercise = Exercise(reference=lambda x: 1, id="lock", cases=lambda: [Case(threading.Lock())])
    with pytest.raises(RuntimeError, match="exercise lock is broken.*cannot be copied"):
        checking._judge(exercise, lambda x: 1, "lock")


def test_a_broken_exercise_is_not_blamed_on_the_learner():
    with pytest.raises(RuntimeError, match="exercise sample.broken is broken.*ZeroDivisionError"):
        judge("sample.broken", lambda x: x)
