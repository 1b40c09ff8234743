"""A time limit for code that may never end."""

import contextlib
import ctypes
import signal
import threading
import time
from collections.abc import Iterator


class TimeLimit(BaseException):
    """Raised inside an answer that runs too long. No Exception: `except Exception` must not swallow it."""


class Stopped(TimeLimit):
    """The process that ran an answer is gone, so nothing more can be asked of it."""


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
    text = f"stopped after {seconds:g} seconds: does a loop never end?"
    if not hasattr(signal, "setitimer"):
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        with _limit_from_outside(seconds, text):
            yield
        return

    def stop(*_: object) -> None:
        raise TimeLimit(text)

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


@contextlib.contextmanager
def _limit_from_outside(seconds: float, text: str) -> Iterator[None]:
    """`time_limit` where no signal arrives, as in a thread of a dask worker: another thread interrupts."""
    thread, over = ctypes.c_ulong(threading.get_ident()), threading.Event()
    kind = type("TimeLimit", (TimeLimit,), {"__str__": lambda self: text})  # Python makes the object itself
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc

    def watch() -> None:
        wait = seconds
        while not over.wait(wait):
            raise_in(thread, ctypes.py_object(kind))
            wait = 1.0

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        try:
            while watching.is_alive():  # an interrupt that is under way arrives here at the latest
                with contextlib.suppress(kind):
                    over.set()
                    watching.join()
        finally:
            over.set()
