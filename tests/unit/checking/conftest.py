"""The lesson `sample`, for every test of the checks."""

import sys
import types

import pytest

from course_utils import checking
from tests.unit.checking.sample import EXERCISES


@pytest.fixture(autouse=True)
def lesson(monkeypatch):
    module = types.ModuleType("exercises_of_sample")
    module.EXERCISES = EXERCISES
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(checking.MODULES, "sample", module.__name__)
    monkeypatch.delenv("NBGRADER_EXECUTION", raising=False)
