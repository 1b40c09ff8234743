"""An answer is run without a trace in the notebook that asked for it."""

import sys
import warnings

import torch

from course_utils.checking import check
from tests.unit.checking.sample import row_scale, status


def test_random_numbers_are_the_same_and_the_learners_stay():
    torch.manual_seed(5)
    wanted = torch.rand(2)
    torch.manual_seed(5)
    assert status("sample.noise", lambda: torch.rand(3)) == "passed"
    assert torch.equal(torch.rand(2), wanted)


def test_nbgrader_gets_nothing_on_stderr(capsys):
    def warns(weight, bits=4):
        warnings.warn("careful", stacklevel=1)
        print("debug", file=sys.stderr)
        return row_scale(weight, bits)

    check("sample.row_scale", warns)
    output = capsys.readouterr()
    assert output.err == "" and "debug" in output.out and "passed" in output.out
