"""All installed engines, each as a process, in rounds: speed, memory, bytes read and what they allow."""

from statistics import median

from course_utils import costs, data, engines, measure, models
from course_utils.engines import table

TITLE = "Engines: prefill, decode, memory and bytes read a token, in rounds"
BASE = "llama.cpp Q4_1"
# Slow to load or to compile, and far from the front: measured in the first round only.
ONCE = ("torch BF16", "torch.compile FP32", "torchao INT8", "torchao INT8, compiled", "bitsandbytes INT8",
        "vLLM FP32")
PROMPT, NEW, SCORED, ROUNDS, THREADS = 256, 32, 16, 2, 2
TIMEOUT = 180  # seconds for an engine, compiling included
RATES = ("prefill (tokens/s)", "decode (tokens/s)", "decode (tokens/CPU s)")
# `engines_agreement` measures these, on more positions.
LEFT_OUT = ("top-1 match", "KL (nats)", "top-1 by window", "KL by window")


def bench() -> list[dict]:
    """A row for each installed engine: medians of the rounds, the rest of the first.

    In rounds, so that all engines see the same good and bad minutes of the machine. An engine without a
    figure has a row with its name and a note that says why. Each row has its own limit: the bandwidth, the
    highest of those measured between the rounds, divided by the bytes of weights that this engine reads for a
    token.
    """
    _, tokenizer = models.load_lm()
    text = data.wikipedia_tokens(tokenizer, "heldout", 4096).tolist()
    names = [BASE, *(name for name in table.installed() if name != BASE)]
    runs = {name: [] for name in names}
    bandwidths = [measure.bandwidth().read]
    for number in range(ROUNDS):
        chosen = [name for name in names if number == 0 or name not in ONCE]
        prompt, score = text[2048 : 2048 + PROMPT], text[:SCORED]
        for row in engines.measure_all(chosen, prompt, NEW, score, THREADS, repeats=2,
                                       timeout=TIMEOUT):
            runs[row["engine"]].append(row)
        bandwidths.append(measure.bandwidth().read)
    return _summary(runs, max(bandwidths))


def _summary(runs: dict[str, list[dict]], bandwidth: float) -> list[dict]:
    """One row for each engine out of its rows of all rounds, with its limit at `bandwidth` bytes a second."""
    rows = []
    for name, found in runs.items():
        good = [row for row in found if not row["note"]]
        if not good:
            rows.append({"engine": name, "note": found[0]["note"]})
            continue
        decode = [row["decode (tokens/s)"] for row in good]
        limit = costs.decode_bound(good[0]["read (MB)"] * 1e6, bandwidth)
        row = {column: value for column, value in good[0].items() if column not in LEFT_OUT}
        rows.append(row | {rate: median(row[rate] for row in good) for rate in RATES} | {
            "slowest decode": min(decode), "fastest decode": max(decode), "rounds": len(good),
            "bandwidth (GB/s)": bandwidth / 1e9, "limit (tokens/s)": limit})
    for row in (row for row in rows if not row["note"]):
        row["share of the limit"] = row["decode (tokens/s)"] / row["limit (tokens/s)"]
    return rows
