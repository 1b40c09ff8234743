"""How waiting threads wait, and what that costs: alone on the machine, and beside other programs.

A parallel piece of work ends when its slowest thread does. Until then the others wait: they spin (look again
and again, on a core that another program may need), or they sleep (and take a while to wake up). Each
candidate below is a set of environment variables. They act when the OpenMP library is loaded, so each one has
a process of its own. For each figure the processes take turns, a second each while the others sleep, so that
all see the same good and bad seconds of the machine. They need 1.5 GB of memory each.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from course_utils import threads
from course_utils.errors import CourseError

TITLE = "How threads wait: milliseconds on an idle machine and beside one busy process, medians"
ROUNDS, SECONDS, LEAST = 3, 1.0, 2  # turns; seconds of a candidate's turn at one figure; samples in it
LOADS = {"idle": 0, "busy": 1}  # processes of our own beside it, each of which keeps a core busy
CACHED, PROMPT, STEPS = 256, 256, 2  # tokens read before; tokens of a prefill; training steps timed as one
WORKS = ("1 token", "5 tokens", f"prefill {PROMPT}", "training step")
DISTURBED, TRIES = 0.1, 3  # cores' worth of work by other programs, from which on a turn is taken again
PATIENCE = 10.0  # seconds to wait for other programs to become quiet before a turn

DEFAULT = "GNU, default"
CANDIDATES = {
    DEFAULT: {threads.SWITCH: threads.OFF},
    "GNU, passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GNU, 1,000 spins": {"GOMP_SPINCOUNT": "1000"},
    "GNU, 5,000 spins": {"GOMP_SPINCOUNT": "5000"},
    "GNU, 10,000 spins": {"GOMP_SPINCOUNT": "10000"},
    "GNU, 1 thread": {"OMP_NUM_THREADS": "1", threads.SWITCH: threads.OFF},
}
# Of other libraries: how long a thread spins before it sleeps. They take GNU's place when they are preloaded.
BLOCKTIMES = ("0", "200us", "1ms")
LIBRARIES = {"LLVM": ("cmeel-libomp", "cmeel.prefix/lib/libomp.so"), "Intel": ("intel-openmp", "libiomp5.so")}


def bench() -> list[dict]:
    """One row for each candidate: medians in ms, ratios to the default alone, and the spread."""
    chosen = candidates()
    return rows(chosen, measured(chosen))


def candidates() -> dict[str, dict[str, str]]:
    """{name: environment variables}: CANDIDATES, and other OpenMP libraries that are installed."""
    found = dict(CANDIDATES)
    for name, (package, file) in LIBRARIES.items():
        try:
            listed = metadata.distribution(package).files or ()
        except metadata.PackageNotFoundError:
            print(f"{name}'s library is left out: to see it, pip install {package}")
            continue
        library = next(entry.locate() for entry in listed if str(entry).endswith(file))
        found |= {f"{name}, spins {time}": {"LD_PRELOAD": str(library), "KMP_BLOCKTIME": time}
                  for time in BLOCKTIMES}
    return found


def measured(chosen: dict[str, dict[str, str]], rounds: int = ROUNDS, seconds: float = SECONDS) -> dict:
    """{candidate: {(work, load): [turn, ...]}}, each turn a `Turn`.

    Args:
        chosen: {candidate: environment variables}; all others about waiting are left out.
        rounds: turns of each candidate at each figure.
        seconds: time of a turn.

    Raises:
        CourseError: a process failed.
    """
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(variables)) for name, variables in chosen.items()}
        found = {name: {} for name in chosen}
        for load, processes in [*LOADS.items()] * rounds:
            with busy(processes) as started:
                for work in WORKS:
                    for name, worker in workers.items():
                        turn = worker.turn(work, seconds, started)
                        found[name].setdefault((work, load), []).append(turn)
    return found


@dataclass(frozen=True)
class Turn:
    """seconds: of each call. others: how many cores other programs took meanwhile, the host's included."""

    seconds: list[float]
    others: float


class Worker:
    """A fresh process with these environment variables that does a work when it is told to."""

    def __init__(self, variables: dict[str, str]) -> None:
        command = [sys.executable, "-m", "authoring.bench.waiting"]
        self.process = psutil.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                    stderr=subprocess.DEVNULL, text=True, env=environment(variables))
        for work in WORKS:  # the first call pays for memory and for starting the threads
            self.ask(work, 0)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, work: str, seconds: float) -> list[float]:
        """Seconds of each call of the work, done for so many seconds."""
        try:
            self.process.stdin.write(json.dumps([work, seconds]) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            raise CourseError(f"a measuring process ended at {work!r}; try authoring/bench/waiting.py alone "
                              "to see why") from None

    def turn(self, work: str, seconds: float, beside: list[psutil.Process]) -> Turn:
        """The least disturbed of a few tries, each when other programs have become quiet."""
        ours, tries = [psutil.Process(), self.process, *beside], []
        while len(tries) < TRIES and (not tries or tries[-1].others > DISTURBED):
            _wait_until_quiet(ours)
            before, start = cpu_of_others(ours), time.perf_counter()
            samples = self.ask(work, seconds)
            tries.append(Turn(samples, (cpu_of_others(ours) - before) / (time.perf_counter() - start)))
        return min(tries, key=lambda turn: turn.others)


def environment(variables: dict[str, str]) -> dict[str, str]:
    """This process's environment with nothing about waiting in it but these variables."""
    prefixes = ("OMP_", "GOMP_", "KMP_", threads.SWITCH)
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)} | variables


def rows(chosen: dict[str, dict[str, str]], found: dict[str, dict]) -> list[dict]:
    """The record's rows from what `measured` gave for the candidates."""
    base = {work: statistics.median(_pooled(found[DEFAULT][work, "idle"])) for work in WORKS}
    table = []
    for name, variables in chosen.items():
        shown = {key: Path(value).name if key == "LD_PRELOAD" else value for key, value in variables.items()}
        medians = {figure: statistics.median(_pooled(turns)) for figure, turns in found[name].items()}
        table.append(
            {"candidate": name, "variables": shown}
            | {", ".join(figure): 1e3 * median for figure, median in medians.items()}
            | {"ratio to the default alone": {", ".join(figure): median / base[figure[0]]
                                              for figure, median in medians.items()},
               "spread": {", ".join(figure): _spread(turns) for figure, turns in found[name].items()}}
        )
    return table


def _pooled(turns: list[Turn]) -> list[float]:
    return [sample for turn in turns for sample in turn.seconds]


def _spread(turns: list[Turn]) -> dict:
    """In ms: quartiles, mean and slowest of all samples, the median of each turn; the most others took."""
    samples = _pooled(turns)
    low, _, high = statistics.quantiles(samples, n=4)
    return {"q25": 1e3 * low, "q75": 1e3 * high, "mean": 1e3 * statistics.fmean(samples),
            "slowest": 1e3 * max(samples), "samples": len(samples),
            "turns": [1e3 * statistics.median(turn.seconds) for turn in turns],
            "cores of other programs": max(turn.others for turn in turns)}


@contextmanager
def busy(processes: int) -> Iterator[list[psutil.Process]]:
    """So many processes that compute all the time, one core each. They end with the block or this process."""
    program = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    sum(range(10**6))"
    command = [sys.executable, "-c", program, str(os.getpid())]
    started = [psutil.Popen(command) for _ in range(processes)]
    try:
        if started:
            time.sleep(0.3)  # until they have started
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def _wait_until_quiet(ours: list[psutil.Process]) -> None:
    """Wait until other programs leave the machine alone, PATIENCE at most."""
    end, pause = time.perf_counter() + PATIENCE, 0.2
    while time.perf_counter() < end:
        before = cpu_of_others(ours)
        time.sleep(pause)
        if cpu_of_others(ours) - before < DISTURBED * pause:
            return


def cpu_of_others(ours: list[psutil.Process]) -> float:
    """CPU seconds so far of all programs but these and their ended children.

    What the host took away from a virtual machine counts as others' work.
    """
    spent = psutil.cpu_times()
    idle = spent.idle + getattr(spent, "iowait", 0.0)
    mine = sum(sum(process.cpu_times()[:4]) for process in ours)  # user, system, the same of children
    # guest time is part of user time already
    return sum(spent) - idle - getattr(spent, "guest", 0.0) - getattr(spent, "guest_nice", 0.0) - mine


# ---- in the process that is measured ----------------------------------------------------------------------


def works() -> dict[str, Callable[[], float]]:
    """{name: call that does the work once and returns its seconds}."""
    import torch
    from transformers import DynamicCache

    from course_utils import data, finetune, models

    model, tokenizer = models.load_lm()
    text = data.wikipedia_tokens(tokenizer, "heldout", CACHED + PROMPT)[None]
    encoder, words = models.load_encoder(num_labels=2)
    examples = data.reviews("train", "movie")[: 16 * finetune.CHUNK]

    @torch.inference_mode()
    def read(first: int, last: int, cache: DynamicCache | None) -> float:
        start = time.perf_counter()
        model(text[:, first:last], past_key_values=cache, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - start

    kept = DynamicCache(config=model.config)
    read(0, CACHED, kept)

    def after_the_cache(tokens: int) -> float:
        seconds = read(CACHED, CACHED + tokens, kept)
        kept.crop(-tokens)
        return seconds

    calls = (
        lambda: after_the_cache(1),
        lambda: after_the_cache(5),
        lambda: read(0, PROMPT, DynamicCache(config=model.config)),
        lambda: finetune.train(encoder, words, examples, steps=STEPS).seconds / STEPS,
    )
    return dict(zip(WORKS, calls, strict=True))


def main() -> None:
    """Do what is asked on standard input, a line each: [work, seconds]; answer with a line of seconds."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    made = works()
    for line in sys.stdin:
        work, seconds = json.loads(line)
        answers.write(json.dumps(_samples(made[work], seconds)) + "\n")
        answers.flush()


def _samples(work: Callable[[], float], seconds: float) -> list[float]:
    start, found = time.perf_counter(), []
    while len(found) < LEAST or time.perf_counter() - start < seconds:
        found.append(work())
    return found


if __name__ == "__main__":
    main()
