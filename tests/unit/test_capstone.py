"""The capstone's score and its leaderboard."""

import math
from types import SimpleNamespace

import pytest
import torch

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


HEADER = ",".join(capstone.COLUMNS)


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "a,b\n", "my notes", "\0", '"',
                                  HEADER + "\nx,much,1,1,1,1,True\n", HEADER + "\nx,1,1,1,1,1,perhaps\n"])
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


def test_what_a_spreadsheet_makes_of_a_leaderboard_is_read(tmp_path):
    path = tmp_path / "class.csv"
    capstone.enter(score("a"), path)
    kept = capstone.read(path)
    path.write_text("\ufeff" + path.read_text().replace("True", "TRUE") + "\n", encoding="utf-8")
    assert capstone.read(path) == kept and kept[0]["counts"] is True


@pytest.mark.parametrize("name", ["", "a\nb", "a\rb", " a", "=1+1", "\0", "\ud800", None, 3])
def test_a_name_that_would_spoil_the_file_is_refused(tmp_path, name):
    with pytest.raises((TypeError, ValueError), match="name") as caught:
        capstone.enter(score(name), tmp_path / "class.csv")
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_a_folder_in_the_files_place_or_none_above_it_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "none" / "class.csv"):
        with pytest.raises(ValueError, match="no leaderboard|is no folder"):
            capstone.enter(score("a"), path)


def test_a_ruined_model_does_not_count_and_comes_last(tmp_path):
    for name, nll in (("nan", math.nan), ("b", 3.0), ("inf", math.inf), ("a", 2.0)):
        board = capstone.enter(score(name, nll=nll), tmp_path / "class.csv")
    assert list(board["name"]) == ["a", "b", "inf", "nan"] and list(board["counts"]) == [1, 1, 0, 0]


@pytest.mark.parametrize("hide", [lambda t: t, lambda t: [t], lambda t: {"w": t.numpy()}])
def test_weights_outside_of_parameters_and_buffers_are_refused(hide):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    capstone._check_counted(model)
    model[0].register_buffer("counted", torch.zeros(5000))
    model[0].again = [model[0].counted[:4000]]  # counted already
    capstone._check_counted(model)
    model[0].stored = hide(torch.zeros(5000))
    with pytest.raises(ValueError, match=r"0.*stored.* holds 0.0 MB that are not counted"):
        capstone._check_counted(model)


class Peeking(torch.nn.Module):
    """Scores of the next token, taken from the text."""

    def __init__(self, ahead):
        super().__init__()
        self.ahead, self.weight = ahead, torch.nn.Parameter(torch.ones(1))

    def forward(self, input_ids):
        return SimpleNamespace(logits=torch.nn.functional.one_hot(input_ids.roll(-self.ahead, 1), 50).float())


def test_a_model_that_sees_what_it_should_predict_is_refused():
    text = torch.arange(40)
    capstone._check_order(Peeking(0), text)
    with pytest.raises(ValueError, match="looks at later tokens"):
        capstone._check_order(Peeking(1), text)
