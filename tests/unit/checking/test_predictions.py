"""Predicted numbers and choices: what passes, and what is said about the others."""

import numpy as np
import pytest
import torch

from course_utils import checking
from course_utils.checking import Prediction, check, judge
from tests.unit.checking.sample import Disguised, Evil, status


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
