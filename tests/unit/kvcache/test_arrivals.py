"""Moments at which requests come, and what is noted of their tokens."""

import numpy as np
import pytest
from scipy import stats

from course_utils.kvcache.arrivals import Waiting, arrival_times, serve_arrivals
from course_utils.kvcache.server import Server
from tests.unit.kvcache.common import assert_refused
from tests.unit.kvcache.test_server import alone, prompts


def test_gaps_are_exponential():
    times = arrival_times(4000, 2.0)
    assert times[0] == 0 and times == sorted(times)
    assert stats.kstest(np.diff(times), "expon", args=(0, 0.5)).pvalue > 0.01
    assert arrival_times(3, 1.0, seed=1) == arrival_times(3, 1.0, seed=1) != arrival_times(3, 1.0, seed=2)


def test_what_is_no_rate_is_refused():
    assert_refused({"positive rate": lambda: arrival_times(3, 0),
                    "one request": lambda: arrival_times(0, 1.0),
                    "positive": lambda: arrival_times(2, float("nan"))})


class CountedClock:
    """A clock that moves by one second for each look at it: the same times on every machine."""

    def __init__(self):
        self.now = -1.0

    def __call__(self):
        self.now += 1.0
        return self.now


@pytest.mark.parametrize("budget", [None, 4], ids=["whole prompts", "in pieces"])
def test_every_token_is_noted_once_and_after_its_request_came(model, budget):
    requests = [(prompt, 2 + 3 * i) for i, prompt in enumerate(prompts(5))]
    server = Server(model, 40, block_size=4, max_batch=4, budget=budget)
    seen = serve_arrivals(server, requests, [0.0, 3.0, 3.5, 20.0, 500.0], CountedClock())
    assert server.answers == {i: alone(model, prompt, n) for i, (prompt, n) in enumerate(requests)}
    assert {name: len(moments) for name, moments in seen.tokens.items()} == {i: n for i, (_, n) in
                                                                              enumerate(requests)}
    assert min(seen.first()) > 0 and min(seen.between()) >= 0
    assert all(moments == sorted(moments) for moments in seen.tokens.values())


def test_times_to_the_first_and_to_the_next_token():
    seen = Waiting({"a": 1.0, "b": 2.0}, {"a": [1.5, 1.75], "b": [4.0]})
    assert seen.first() == [0.5, 2.0] and seen.between() == [0.25]
    assert seen.row() == {"first token, median (ms)": 1250, "first token, longest (ms)": 2000,
                          "next token, median (ms)": 250, "next token, longest (ms)": 250}


def test_times_must_fit_the_requests(model):
    with pytest.raises(ValueError):
        serve_arrivals(Server(model, 8), [([1], 1)], [0.0, 1.0])
