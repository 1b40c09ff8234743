"""How waiting threads wait, and what that costs: alone on the machine, and beside other programs.

A parallel piece of work ends when its slowest thread does. Until then the others wait: they spin (look again
and again, on a core that another program may need), or they sleep (and take a while to wake up). Each
candidate below is a set of environment variables. They act when the OpenMP library is loaded, so each one is
measured in processes of its own; the candidates take turns, so that all see the same good and bad minutes.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from course_utils import threads
from course_utils.errors import CourseError

TITLE = "How threads wait: milliseconds on an idle machine and beside one busy process, medians"
ROUNDS, SECONDS, LEAST = 3, 1.5, 3  # turns of each candidate; time for one figure in a turn; samples at least
LOADS = {"idle": 0, "busy": 1}  # processes of our own, each of which keeps a core busy
CACHED, PROMPT, STEPS = 256, 256, 4  # tokens read before; tokens of a prefill; training steps timed as one
DISTURBED, TRIES = 0.1, 4  # cores' worth of work by other programs, from which on a figure is taken again

DEFAULT = "GNU, default"
CANDIDATES = {
    DEFAULT: {threads.SWITCH: threads.OFF},
    "GNU, passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GNU, 1,000 spins": {"GOMP_SPINCOUNT": "1000"},
    "GNU, 5,000 spins": {"GOMP_SPINCOUNT": "5000"},
    "GNU, 10,000 spins": {"GOMP_SPINCOUNT": "10000"},
    "GNU, 30,000 spins": {"GOMP_SPINCOUNT": "30000"},
    "GNU, 1 thread": {"OMP_NUM_THREADS": "1", threads.SWITCH: threads.OFF},
    "the course's": {},
}
BLOCKTIMES = ("0", "200us", "200ms")  # of other libraries: how long a thread spins before it sleeps


def bench() -> list[dict]:
    """One row for each candidate: medians in ms, ratios to the default alone, and the spread."""
    chosen = candidates()
    found = {name: [] for name in chosen}
    for _ in range(ROUNDS):
        for name, variables in chosen.items():
            found[name].append(measured(variables))
    return rows(chosen, found)


def candidates() -> dict[str, dict[str, str]]:
    """{name: environment variables}: CANDIDATES, and other OpenMP libraries that are installed."""
    found = dict(CANDIDATES)
    for name, library in (("LLVM", threads.llvm()), ("Intel", Path(sys.prefix) / "lib" / "libiomp5.so")):
        if library and library.exists():
            found |= {f"{name}, spins {time}": {"LD_PRELOAD": str(library), "KMP_BLOCKTIME": time}
                      for time in BLOCKTIMES}
        else:
            print(f"{name}'s library is left out: its package is not installed")
    return found


def measured(variables: dict[str, str], loads=LOADS, seconds: float = SECONDS) -> dict:
    """What a fresh process with these variables measures.

    Args:
        variables: environment variables for it; all others about waiting are left out.
        loads: {name: number of busy processes beside it}.
        seconds: time for each figure.

    Returns:
        {"seconds": {load: {work: [seconds of one call, ...]}}, "others": cores' worth of work that other
        programs did meanwhile, in the figure that suffered most}.

    Raises:
        CourseError: the process failed.
    """
    request = json.dumps({"loads": dict(loads), "seconds": seconds})
    command = [sys.executable, "-m", "authoring.bench.waiting", request]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(variables))
    if done.returncode:
        raise CourseError(f"measuring with {variables} failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def environment(variables: dict[str, str]) -> dict[str, str]:
    """This process's environment with nothing about waiting in it but these variables."""
    prefixes = ("OMP_", "GOMP_", "KMP_", threads.SWITCH)
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)} | variables


def rows(chosen: dict[str, dict[str, str]], found: dict[str, list[dict]]) -> list[dict]:
    """The record's rows from what `measured` gave for each candidate, turn by turn."""
    table = []
    for name, variables in chosen.items():
        shown = {key: Path(value).name if key == "LD_PRELOAD" else value for key, value in variables.items()}
        row = {"candidate": name, "variables": shown, "spread": {}, "ratio to the default alone": {},
               "cores of other programs": max(turn["others"] for turn in found[name])}
        for work in found[name][0]["seconds"]["idle"]:
            base = statistics.median(_pooled(found[DEFAULT], "idle", work))
            for load in found[name][0]["seconds"]:
                samples = _pooled(found[name], load, work)
                figure, median = f"{work}, {load}", statistics.median(samples)
                row[figure] = 1e3 * median
                row["ratio to the default alone"][figure] = median / base
                turns = [turn["seconds"][load][work] for turn in found[name]]
                row["spread"][figure] = _spread(samples, turns)
        table.append(row)
    return table


def _pooled(turns: list[dict], load: str, work: str) -> list[float]:
    return [sample for turn in turns for sample in turn["seconds"][load][work]]


def _spread(samples: list[float], turns: list[list[float]]) -> dict:
    """In ms: quartiles, mean and slowest of all samples, and the median of each turn."""
    low, _, high = statistics.quantiles(samples, n=4)
    return {"q25": 1e3 * low, "q75": 1e3 * high, "mean": 1e3 * statistics.fmean(samples),
            "slowest": 1e3 * max(samples), "samples": len(samples),
            "turns": [1e3 * statistics.median(turn) for turn in turns]}


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
    def read(first: int, last: int, cache) -> float:
        start = time.perf_counter()
        model(text[:, first:last], past_key_values=cache, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - start

    kept = DynamicCache(config=model.config)
    read(0, CACHED, kept)

    def after_the_cache(tokens: int) -> float:
        seconds = read(CACHED, CACHED + tokens, kept)
        kept.crop(-tokens)
        return seconds

    return {
        "1 token": lambda: after_the_cache(1),
        "5 tokens": lambda: after_the_cache(5),
        f"prefill {PROMPT}": lambda: read(0, PROMPT, DynamicCache(config=model.config)),
        "training step": lambda: finetune.train(encoder, words, examples, steps=STEPS).seconds / STEPS,
    }


def main(request: dict) -> dict:
    """The answer of `measured`."""
    answer, made = {"seconds": {}, "others": 0.0}, works()
    for load, processes in request["loads"].items():
        answer["seconds"][load] = {}
        with busy(processes) as started:
            for name, work in made.items():
                samples, others = _figure(work, request["seconds"], [psutil.Process(), *started])
                answer["seconds"][load][name] = samples
                answer["others"] = max(answer["others"], others)
    return answer


def _figure(
    work: Callable[[], float], seconds: float, ours: list[psutil.Process]
) -> tuple[list[float], float]:
    """Samples of one figure and how many cores other programs took; the least disturbed of a few tries."""
    tries = []
    while len(tries) < TRIES and (not tries or tries[-1][1] > DISTURBED):
        before, start = _others(ours), time.perf_counter()
        samples = _samples(work, seconds)
        tries.append((samples, (_others(ours) - before) / (time.perf_counter() - start)))
    return min(tries, key=lambda found: found[1])


def _others(ours: list[psutil.Process]) -> float:
    """CPU seconds so far of all programs but these; what the host took away from a virtual machine counts."""
    spent = psutil.cpu_times()
    idle = spent.idle + getattr(spent, "iowait", 0.0)
    mine = sum(process.cpu_times().user + process.cpu_times().system for process in ours)
    # guest time is part of user time already
    return sum(spent) - idle - getattr(spent, "guest", 0.0) - getattr(spent, "guest_nice", 0.0) - mine


def _samples(work: Callable[[], float], seconds: float) -> list[float]:
    work()
    start, found = time.perf_counter(), []
    while len(found) < LEAST or time.perf_counter() - start < seconds:
        found.append(work())
    return found


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
