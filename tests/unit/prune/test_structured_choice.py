"""course_utils.prune.structured.choice: which heads and neurons are kept."""

import pytest
import torch

from course_utils.prune import structured


def test_choices():
    scores = torch.tensor([[0.1, 0.5, 0.2], [0.9, 0.05, 0.01]])
    assert structured.kept_in_each(scores, 2) == [[1, 2], [0, 1]]
    assert structured.kept_overall(scores, 3) == [[1, 2], [0]]
    assert structured.kept_overall(scores, 4) == [[1], [0]]
    assert structured.kept_overall(scores, 2, at_least=2) == [[1, 2], [0, 1]]
    assert structured.kept_overall(scores, 0) == [[0, 1, 2], [0, 1, 2]]


def test_choices_within_groups():
    scores = torch.tensor([[3.0, 1, 2, 0, 5, 4], [0, 0, 0, 1, 2, 3]])
    assert structured.kept_in_groups(scores, groups=2, keep=2) == [[0, 2, 4, 5], [0, 1, 4, 5]]
    assert structured.kept_in_groups(scores, groups=3, keep=1) == [[0, 2, 4], [0, 3, 5]]
    with pytest.raises(ValueError, match="equal groups"):
        structured.kept_in_groups(scores, groups=4, keep=1)


def test_ties_are_broken_the_same_way_every_time():
    scores = torch.zeros(2, 4)
    assert structured.kept_in_each(scores, 2) == [[0, 1], [0, 1]]
    assert structured.kept_overall(scores, 3) == [[3], [0, 1, 2, 3]]


@pytest.mark.parametrize("call", [
    lambda s: structured.kept_in_each(s, 0), lambda s: structured.kept_in_each(s, 4),
    lambda s: structured.kept_overall(s, 5), lambda s: structured.kept_overall(s, -1),
])
def test_impossible_choices_are_refused(call):
    with pytest.raises(ValueError, match="must be from"):
        call(torch.rand(2, 3))
