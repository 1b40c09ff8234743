"""`check` and the exercises that it finds by their id."""

import pytest

from course_utils import checking
from course_utils.checking import check
from tests.unit.checking.sample import EXERCISES, own_row_scale, row_scale, unsigned


def test_right_answer_passes_with_the_number_of_cases(capsys):
    check("sample.row_scale", own_row_scale)
    assert capsys.readouterr().out == "sample.row_scale: passed (3 cases)\n"


def test_under_nbgrader_a_check_raises(monkeypatch, capsys):
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    check("sample.row_scale", own_row_scale)
    with pytest.raises(AssertionError, match="likely|Likely"):
        check("sample.row_scale", unsigned)
    with pytest.raises(AssertionError, match="not attempted"):
        check("sample.bytes", None)


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
