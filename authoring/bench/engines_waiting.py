"""Decoding with each way in which OpenMP's threads can wait: does one variable change who is ahead?"""

import os
import random
import statistics

from course_utils import data, models, records, threads
from course_utils.engines import table

TITLE = "Decoding with two threads, by how OpenMP's threads wait"
ENGINES = ("llama.cpp Q4_0", "ONNX Runtime INT4, groups of 64", "OpenVINO INT4", "torch FP32")
WAYS = {"as the course sets it": threads.SETTINGS, "as it comes": {},
        "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"}}
PROMPT, NEW, ROUNDS, THREADS = 64, 64, 5, 2


def bench() -> list[dict]:
    """Let each engine write in each way, in rounds, each in another order.

    Returns:
        A row for each engine and way: tokens a second of each round.
    """
    _, tokenizer = models.load_lm()
    prompt = data.wikipedia_tokens(tokenizer, "heldout", 4096)[2048 : 2048 + PROMPT].tolist()
    request = {"prompt": prompt, "new_tokens": NEW, "threads": THREADS, "repeats": 1}
    runs = [(name, way) for name in ENGINES if name in table.installed() for way in WAYS]
    rows = {run: {"engine": run[0], "waiting": run[1], "rates": []} for run in runs}
    order = random.Random(0)
    before = {name: os.environ.get(name) for name in threads.CHOICES}
    try:
        for _ in range(ROUNDS):
            for name, way in order.sample(runs, len(runs)):
                _set({choice: None for choice in threads.CHOICES} | WAYS[way])
                answer = table.call(name, request)
                if not answer:
                    raise RuntimeError(str(answer))
                rows[name, way]["rates"].append(answer.values["decode_rate"])
            for row in rows.values():
                row["decode (tokens/s)"] = statistics.median(row["rates"])
            records.save("bench_engines_waiting", {"title": TITLE, "rows": list(rows.values())})
    finally:
        _set(before)
    return list(rows.values())


def _set(values: dict[str, str | None]) -> None:
    """Set variables of this process, which the engines' processes inherit; None removes one."""
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
