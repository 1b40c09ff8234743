"""Requests that come when they come: how long until the first token, and how long from token to token?

A server whose requests all wait at the start is easily judged: by how much it does in a minute. People who
wait in front of a screen look at other times. W. Kwon et al. (arXiv 2309.06180, section 6.1) draw the time of
each request from a Poisson process, as is done here.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from course_utils.kvcache.server import Server


def arrival_times(requests: int, rate: float, seed: int = 0) -> list[float]:
    """Moments at which requests come if each comes independently of the others (a Poisson process).

    Args:
        requests: how many.
        rate: requests a second, on average.
        seed: of the random numbers.

    Returns:
        Seconds from the start, in order; the first request comes at 0.

    Raises:
        ValueError: there is no request, or the rate is not positive.
    """
    if requests < 1 or not rate > 0:
        raise ValueError(f"at least one request and a positive rate, not {requests} and {rate}")
    gaps = np.random.default_rng(seed).exponential(1 / rate, requests - 1)
    return [0.0, *np.cumsum(gaps).tolist()]


@dataclass
class Waiting:
    """When the tokens of each request came.

    Attributes:
        arrived: request -> seconds at which it came.
        tokens: request -> seconds at which each of its tokens was there.
    """

    arrived: dict[Hashable, float] = field(default_factory=dict)
    tokens: dict[Hashable, list[float]] = field(default_factory=dict)

    def first(self) -> list[float]:
        """Time to the first token.

        Returns:
            Seconds from arrival to first token, one for each request, in the order of arrival.
        """
        return [self.tokens[name][0] - moment for name, moment in self.arrived.items()]

    def between(self) -> list[float]:
        """Time between tokens.

        Returns:
            Seconds from each token of a request to its next one, all requests together.
        """
        return [gap for moments in self.tokens.values() for gap in np.diff(moments).tolist()]

    def row(self) -> dict[str, float]:
        """The figures as a row of `measure.table`, in milliseconds.

        Returns:
            Column -> value: the median and the longest of both times.
        """
        return {f"{what}, {which} (ms)": round(1000 * float(function(values)))
                for what, values in (("first token", self.first()), ("next token", self.between()))
                for which, function in (("median", np.median), ("longest", max))}  # fmt: skip


def serve_arrivals(server: Server, requests: Sequence[tuple[Sequence[int], int]], times: Sequence[float],
                   clock: Callable[[], float] = time.perf_counter) -> Waiting:
    """Serve requests that come at given moments, and note when each token is there.

    Args:
        server: a fresh one.
        requests: pairs (prompt's token ids, tokens of the answer). Their names are 0, 1, 2 ...
        times: seconds from the start at which they come, in order.
        clock: tells the time in seconds. While nobody is there, the server waits for the next one.

    Returns:
        When everything came.

    Raises:
        ValueError: a request can never be served, or there are not as many times as requests.
    """
    seen = Waiting()
    coming = list(zip(range(len(requests)), requests, times, strict=True))[::-1]
    start = clock()
    while coming or server.scheduler.waiting or server.scheduler.running:
        idle = not (server.scheduler.waiting or server.scheduler.running)
        while coming and (idle or coming[-1][2] <= clock() - start):
            name, (prompt, new_tokens), moment = coming.pop()
            while clock() - start < moment:
                time.sleep(0.001)
            server.submit(name, prompt, new_tokens)
            seen.arrived[name], seen.tokens[name] = moment, []
            idle = False
        server.step()
        now = clock() - start
        for name, moments in seen.tokens.items():
            moments.extend([now] * (server.written(name) - len(moments)))
    return seen
