"""A time limit for code that may never end."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator


class TimeLimit(BaseException):
    """Raised inside an answer that runs too long. No Exception: `except Exception` must not swallow it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeLimit` in the block after some time, where the platform has interval timers.

    Args:
        seconds: how long the block may take.

    Yields:
        Nothing.

    Raises:
        TimeLimit: inside the block, and again every second in case that it was swallowed.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise TimeLimit(f"stopped after {seconds:g} seconds: does a loop never end?")

    before = signal.signal(signal.SIGALRM, stop)
    started = time.monotonic()
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if remaining:  # a timer of somebody else, such as a test's
            signal.setitimer(
                signal.ITIMER_REAL, max(remaining - (time.monotonic() - started), 0.001), interval
            )
