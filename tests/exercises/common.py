"""Helpers for the tests of exercises: planted wrong answers, and right answers written another way."""

import re

from course_utils import checking


def assert_rejects(id, wrong, match):
    """The check must reject `wrong` with a message in which the regular expression `match` is found."""
    result = checking.judge(id, wrong)
    assert result.status == checking.FAILED, f"a wrong answer got: {result.message}"
    assert re.search(match, result.message), f"rejected, but not for the reason {match!r}:\n{result.message}"


def assert_accepts(id, right):
    """The check must accept `right`."""
    result = checking.judge(id, right)
    assert result.status == checking.PASSED, result.message
