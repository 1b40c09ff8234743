"""The advisor: what fits comes first and ranked, what does not says by how much, contradictions are named."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from course_utils import advice, compressed
from course_utils.advice import Option
from course_utils.measure import Perplexity


def perplexity(nll, seed, noise=0.02, windows=16):
    own = torch.randn(windows, generator=torch.Generator().manual_seed(seed)) * noise
    sums = tuple((100 * (nll + torch.linspace(-0.4, 0.4, windows) + own - own.mean())).tolist())
    counts = (100,) * windows
    return Perplexity(math.exp(nll), nll, sum(counts), 100, 100, "cpu", sums, counts, "text")


FULL = Option("full", 500e6, 0.05, perplexity(2.9, 0, 0), 0.0, False, False, {"what": "full"})
ROUNDED = Option("rounded", 200e6, 0.20, perplexity(3.1, 1), 0.1, False, False)
CALIBRATED = Option("calibrated", 180e6, 0.20, perplexity(3.0, 2), 2.0, True, False)
TWIN = Option("twin", 150e6, 0.20, perplexity(3.002, 3), 2.0, True, False)  # not shown to be worse
SHORT = Option("short", 450e6, 0.04, perplexity(3.2, 4), 3.0, True, True)
ALL = [FULL, ROUNDED, CALIBRATED, TWIN, SHORT]


def names(found):
    return [one.option.name for one in found if one.fits]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, ["full", "twin", "calibrated", "rounded", "short"]),
        ({"memory": 210e6}, ["twin", "calibrated", "rounded"]),
        ({"memory": 200e6}, ["twin", "calibrated", "rounded"]),  # at the limit it fits
        ({"memory": 210e6, "data": False}, ["rounded"]),
        ({"latency": 0.1}, ["full", "short"]),
        ({"latency": 0.1, "memory": 460e6}, ["short"]),
        ({"latency": 0.045, "training": 3.0}, ["short"]),
        ({"memory": 460e6, "training": 0}, ["twin", "calibrated", "rounded"]),
    ],
)
def test_what_fits_is_ranked_by_quality_then_memory(limits, expected):
    found = advice.advise(**limits, among=ALL)
    assert names(found) == expected
    assert {one.option.name for one in found} == {option.name for option in ALL}
    assert [one.fits for one in found] == sorted((one.fits for one in found), reverse=True)


@pytest.mark.parametrize(
    ("limits", "nearest", "said"),
    [
        ({"memory": 100e6}, "twin", "150 MB at the peak, 50 more than allowed"),
        ({"latency": 0.03}, "short", "40 ms a token, 10 more than allowed"),
        ({"latency": 0.045, "training": 2}, "full", "50 ms a token, 5 more than allowed"),
        ({"memory": 190e6, "data": False}, "rounded", "200 MB at the peak, 10 more than allowed"),
    ],
)
def test_where_nothing_fits_the_nearest_is_named_with_what_is_missing(limits, nearest, said):
    found = advice.advise(**limits, among=ALL)
    assert names(found) == [] and found[0].option.name == nearest
    text = advice.summary(found)
    assert text.startswith(f"Nothing fits. The nearest is {nearest}: ") and said in text


def test_each_reason_says_what_is_lacking():
    found = {one.option.name: one for one in advice.advise(data=False, training=1, among=ALL)}
    assert "needs text, and there is none" in found["calibrated"].reasons
    assert "trains weights for 3.0 minutes, 2.0 more than there are" in found["short"].reasons
    assert found["full"].fits and found["full"].excess == 0
    assert found["full"].option.row == {"what": "full"}
    assert advice.summary(advice.advise(among=ALL)).splitlines()[0].startswith("1. full: 500 MB at the peak")


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        ({"memory": 0}, "memory must be above 0, not 0"),
        ({"memory": math.nan}, "memory must be above 0"),
        ({"latency": -1.0}, "latency must be above 0"),
        ({"training": -1}, "training must be 0 or more"),
        ({"memory": "2 GB"}, "memory must be a number, not '2 GB'"),
        ({"data": "text"}, "data must be True or False"),
        ({"hardware": "phone"}, "hardware must be 'cpu' or 'gpu'"),
        ({"among": [FULL, FULL]}, "two options have the same name"),
        ({"among": []}, "nothing was measured for 'cpu'"),
    ],
)
def test_bad_demands_are_refused_in_one_line(limits, error):
    with pytest.raises((TypeError, ValueError), match=error) as caught:
        advice.advise(**({"among": ALL} | limits))
    assert "\n" not in str(caught.value)


def test_what_is_hardly_too_much_is_not_called_nothing():
    found = advice.advise(memory=149.9e6, latency=0.0399, training=2.97, among=ALL)
    said = " ".join(str(one) for one in found)
    assert "150 MB at the peak, less than 1 more than allowed" in said and not any(one.fits for one in found)
    assert "trains weights for 3.0 minutes, less than 0.1 more than there are" in said
    over = dataclasses.replace(FULL, memory=2.0)  # 2 / the number below it is 1
    assert not advice.advise(memory=math.nextafter(2.0, 0), among=[over])[0].fits


def test_numbers_of_numpy_are_limits_too_and_no_advice_has_no_summary():
    assert names(advice.advise(memory=np.int64(210_000_000), latency=np.float32(1), among=ALL))[0] == "twin"
    with pytest.raises(ValueError, match="no option was judged"):
        advice.summary([])


@pytest.mark.parametrize("hardware", advice.HARDWARE)
def test_the_options_are_the_records_rows(hardware):
    found = advice.options(hardware)
    assert found and len({option.name for option in found}) == len(found)
    assert {option.name for option in found} <= set(compressed.RECIPES)
    for option in found:
        assert option.row and option.where and option.memory > 0 and option.latency > 0
        assert option.quality.tokens > 16_000
    full = next(option for option in found if option.name == compressed.FP32)
    assert full.memory == max(option.memory for option in found) or hardware == "cpu"


def test_a_budget_below_every_row_of_the_record_fits_nothing():
    smallest = min(option.memory for option in advice.options("cpu"))
    assert names(advice.advise(memory=smallest / 2)) == []
    assert names(advice.advise(memory=smallest)) != []
