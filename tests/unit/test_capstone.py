"""The capstone's score and its leaderboard."""

import math

import pytest

from course_utils import capstone, measure
from course_utils.measure import Perplexity


def score(name, nbytes=90_000_000, seconds=10.0, nll=3.0, against=None):
    windows = (95 * nll, 105 * nll), (100, 100)
    quality = Perplexity(math.exp(nll), nll, 200, 100, 100, "cpu", *windows, "text")
    return capstone.Score(name, nbytes, seconds, quality,
                          measure.compare(quality, against.quality) if against else None)


def test_over_the_budget_or_late_an_entry_does_not_count():
    assert score("a").problems == [] and "it counts" in str(score("a"))
    assert score("a", capstone.BUDGET).problems == []
    late = score("b", capstone.BUDGET + 1_500_000, capstone.SECONDS + 6)
    assert late.problems == ["1.5 MB over the budget of 100 MB", "6 s over the limit of 240 s"]


def test_a_leaderboard_keeps_one_entry_a_name_and_those_that_count_first(tmp_path):
    path = tmp_path / "class.csv"
    base = score("reference")
    for entry in (base, score("worse", nll=3.5, against=base), score("better", nll=2.9, against=base),
                  score("large", 200_000_000, nll=2.0, against=base), score("worse", nll=3.2, against=base)):
        board = capstone.enter(entry, path)
    assert list(board["name"]) == ["better", "reference", "worse", "large"]
    assert list(board["counts"]) == [True, True, True, False]
    assert board.set_index("name").loc["worse", "nats above the reference"] == pytest.approx(0.2)
    assert capstone.read(path) == board.to_dict("records")
    assert [file.name for file in tmp_path.iterdir()] == ["class.csv"]


@pytest.mark.parametrize("text", ["a,b\n1,2\n", ",".join(capstone.COLUMNS) + "\nx,much,1,1,1,1,True\n"])
def test_another_file_is_refused_and_stays(tmp_path, text):
    path = tmp_path / "notes.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match="notes.csv"):
        capstone.enter(score("a"), path)
    assert path.read_text() == text


def test_an_entry_that_returns_no_model_is_refused():
    with pytest.raises(TypeError, match="compress must return the model, not NoneType"):
        capstone.check(lambda model, windows: None)


def test_the_recorded_strategies_count_and_are_compared_with_the_reference():
    reference, *others = capstone.recorded()
    assert reference.against is None and reference.problems == []
    assert len(others) >= 3 and all(entry.problems == [] and entry.against.pairs == 8 for entry in others)
