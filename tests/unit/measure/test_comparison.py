"""Paired comparisons against scipy, against simulation, and where the windows differ in length."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from course_utils import measure
from course_utils.measure.comparison import BETTER, NOT_SHOWN, WORSE


def scored(nll, tokens=None, text="a text"):
    tokens = tokens or [511] * len(nll)
    mean = sum(nll) / sum(tokens)
    return measure.Perplexity(
        math.exp(mean), mean, sum(tokens), 512, 512, "cpu", tuple(nll), tuple(tokens), text
    )


def two_models(windows=12, gap=0.05, noise=0.05, seed=0):
    """Windows differ a lot, the models differ little: what pairing is for."""
    generator = np.random.default_rng(seed)
    hard = generator.normal(3.0, 0.4, windows)
    difference = generator.normal(gap, noise, windows)
    return scored(list(511 * (hard + difference))), scored(list(511 * hard))


def test_equal_windows_are_scipys_paired_t_test():
    a, b = two_models()
    compared = measure.compare(a, b)
    theirs = stats.ttest_rel(np.array(a.window_nll) / 511, np.array(b.window_nll) / 511)
    interval = theirs.confidence_interval(0.95)
    assert compared.difference == pytest.approx(a.nll - b.nll)
    assert compared.difference / compared.error == pytest.approx(theirs.statistic)
    assert (compared.low, compared.high) == pytest.approx((interval.low, interval.high))
    assert compared.shown == (theirs.pvalue < 0.05)


def test_pairing_finds_what_two_separate_errors_cannot():
    a, b = two_models(noise=0.02)
    alone = [np.std(np.array(p.window_nll) / 511, ddof=1) / math.sqrt(12) for p in (a, b)]
    compared = measure.compare(a, b)
    assert compared.verdict == WORSE and measure.compare(b, a).verdict == BETTER
    assert compared.error < 0.2 * math.hypot(*alone)
    assert abs(compared.difference) < 2 * math.hypot(*alone)


def test_the_error_is_the_spread_of_the_difference_over_many_texts():
    """Windows of unlike length, tokens of a window alike: the error is what repetition shows it to be."""
    generator, found, errors = np.random.default_rng(1), [], []
    for _ in range(2000):
        tokens = generator.integers(100, 600, 16)
        gaps = tokens * generator.normal(0.03, 0.05, 16) + generator.normal(0, 1, 16)
        difference, error = measure.paired_difference(list(gaps), [0.0] * 16, list(tokens))
        found.append(difference)
        errors.append(error)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(found), rel=0.1)


def test_no_difference_is_claimed_about_one_time_in_twenty():
    claimed = [measure.compare(*two_models(6, gap=0.0, seed=seed)).shown for seed in range(1000)]
    assert 0.03 < np.mean(claimed) < 0.07


def test_many_comparisons_together_claim_a_difference_about_one_time_in_twenty():
    """Nine models, none of which differs: at least one of nine plain intervals leaves zero far more often."""
    def any_shown(seed, comparisons):
        return any(measure.compare(*two_models(32, gap=0.0, seed=9 * seed + i), comparisons=comparisons).shown
                   for i in range(9))

    assert 0.02 < np.mean([any_shown(seed, 9) for seed in range(400)]) < 0.08
    assert np.mean([any_shown(seed, 1) for seed in range(400)]) > 0.25


def test_an_interval_for_many_is_scipys_at_the_level_left_for_each():
    a, b = two_models()
    compared = measure.compare(a, b, comparisons=9)
    theirs = stats.ttest_rel(np.array(a.window_nll) / 511, np.array(b.window_nll) / 511)
    interval = theirs.confidence_interval(1 - 0.05 / 9)
    assert (compared.low, compared.high) == pytest.approx((interval.low, interval.high))
    assert "(95 % for all 9: " in compared.figures() and "(95 %: " in measure.compare(a, b).figures()
    runs = measure.compare(list(a.window_nll), list(b.window_nll), comparisons=9)
    plain = measure.compare(list(a.window_nll), list(b.window_nll))
    assert runs.low < plain.low and runs.high > plain.high


def test_of_many_accuracies_each_needs_more_examples_that_differ():
    labels = torch.ones(20, dtype=torch.long)
    few, more = (measure.accuracy([1] * right + [0] * (20 - right), labels) for right in (6, 12))
    assert measure.compare(more, few).verdict == BETTER
    assert measure.compare(more, few, comparisons=9).verdict == NOT_SHOWN


def test_fewer_than_one_comparison_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        measure.compare(*two_models(), comparisons=0)


def test_one_window_shows_nothing():
    compared = measure.compare(scored([1600.0]), scored([1500.0]))
    assert compared.verdict == NOT_SHOWN and math.isnan(compared.error)


def test_the_same_result_twice_is_no_difference():
    a, _ = two_models()
    compared = measure.compare(a, a)
    assert (compared.difference, compared.error, compared.verdict) == (0, 0, NOT_SHOWN)


@pytest.mark.parametrize("ruined", [math.nan, math.inf])
def test_a_ruined_model_is_worse(ruined):
    fine = scored([1500.0, 1600.0])
    broken = dataclasses.replace(fine, nll=ruined, value=ruined, window_nll=(1500.0, ruined))
    assert measure.compare(broken, fine).verdict == WORSE
    assert measure.compare(fine, broken).verdict == BETTER
    assert measure.compare(broken, broken).verdict == NOT_SHOWN


def test_accuracies_are_compared_by_mcnemars_exact_test():
    labels = torch.zeros(200, dtype=torch.long)
    a, b = labels.clone(), labels.clone()
    a[:4] = 1  # four that only a gets wrong, 16 that only b does, 30 that both do
    b[4:20] = 1
    a[20:50] = b[20:50] = 1
    compared = measure.compare(measure.accuracy(a, labels), measure.accuracy(b, labels))
    assert compared.difference == pytest.approx(6.0) and compared.verdict == BETTER
    values = (a == labels).double() - (b == labels).double()
    assert compared.error == pytest.approx(100 * values.std().item() / math.sqrt(200))
    b[7:20] = 0  # four against three
    assert measure.compare(measure.accuracy(a, labels), measure.accuracy(b, labels)).verdict == NOT_SHOWN


def test_an_answer_more_can_decide_the_exact_test():
    """6 of 6 has p = 0.031, 5 of 5 has p = 0.0625."""
    labels = torch.zeros(50, dtype=torch.long)
    for wrong, verdict in ((6, BETTER), (5, NOT_SHOWN)):
        b = labels.clone()
        b[:wrong] = 1
        assert (
            measure.compare(measure.accuracy(labels, labels), measure.accuracy(b, labels)).verdict == verdict
        )


def test_runs_are_paired_by_seed():
    compared = measure.compare([0.81, 0.83, 0.82], [0.80, 0.81, 0.81], higher_is_better=True, unit="accuracy")
    theirs = stats.ttest_rel([0.81, 0.83, 0.82], [0.80, 0.81, 0.81])
    assert compared.difference / compared.error == pytest.approx(theirs.statistic)
    assert (compared.what, compared.pairs, compared.shown) == ("runs", 3, theirs.pvalue < 0.05)
    assert measure.compare([1.0, 1.1, 1.2], [2.0, 2.1, 2.3]).verdict == BETTER  # lower is better


def test_a_perplexity_read_back_from_json_can_be_paired():
    a, b = two_models()
    back = measure.Perplexity(**json.loads(json.dumps(dataclasses.asdict(a))))
    assert measure.compare(back, b) == measure.compare(a, b)


def test_what_was_not_measured_on_one_text_is_refused():
    a, b = two_models()
    with pytest.raises(ValueError, match="same tokens"):
        measure.compare(a, dataclasses.replace(b, text="another"))
    with pytest.raises(ValueError, match="same tokens"):
        measure.compare(*(dataclasses.replace(p, text="") for p in (a, b)))
    one, other = (measure.accuracy([0, 1], labels) for labels in ([0, 1], [1, 1]))
    with pytest.raises(ValueError, match="same examples"):
        measure.compare(one, other)
    with pytest.raises(ValueError, match="2 runs do not pair with 3"):
        measure.compare([1.0, 2.0], [1.0, 2.0, 3.0])
    for wrong in ((a, one), (1.0, 2.0), ("ab", "cd")):
        with pytest.raises(TypeError, match="cannot pair"):
            measure.compare(*wrong)
    for sums in (([1.0], [1.0, 2.0], [5]), ([1.0], [1.0], [5, 6])):
        with pytest.raises(ValueError, match="zip"):
            measure.paired_difference(*sums)


def test_the_sentence_ranks_only_what_is_shown():
    a, b = two_models(noise=0.01)
    assert measure.compare(a, b).sentence("GPTQ", "rounding").startswith("GPTQ is worse than rounding: +0.0")
    assert measure.compare(b, a).sentence("GPTQ", "rounding").startswith("GPTQ is better than rounding: -0.0")
    nothing = measure.compare(a, a).sentence("GPTQ", "rounding")
    assert (
        nothing.startswith("No difference is shown between GPTQ and rounding: ") and "12 windows" in nothing
    )


def test_a_ranking_compares_each_result_with_the_reference():
    a, b = two_models(noise=0.01)
    shown = measure.ranking({"full": b, "rounded": a}, "full")
    assert list(shown["verdict"]) == ["the reference", WORSE]
    assert float(shown.loc["rounded", "difference (nats a token)"]) == pytest.approx(a.nll - b.nll, abs=1e-4)
    with pytest.raises(ValueError, match="no result 'none'"):
        measure.ranking({"full": b}, "none")
