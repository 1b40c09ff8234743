"""All installed engines, each as a process, with 1 and 2 threads, in rounds."""

from statistics import median

from course_utils import data, engines, models
from course_utils.engines import table

TITLE = "Engines: prefill, decode, memory and agreement with FP32, in rounds"
BASE = "llama.cpp Q4_1"
# Slow to load or to compile, and far from the front: measured in the first round only.
ONCE = ("torch BF16", "torch.compile FP32", "torchao INT8", "bitsandbytes INT8")
PROMPT, NEW, SCORED, ROUNDS = 256, 32, 128, 2
RATES = ("prefill (tokens/s)", "decode (tokens/s)", "decode (tokens/CPU s)")


def bench() -> list[dict]:
    """A row for each installed engine and number of threads: medians of the rounds, the rest of the first.

    In rounds, so that all engines see the same good and bad minutes of the machine. Engines without a figure
    are printed, not kept.
    """
    _, tokenizer = models.load_lm()
    text = data.wikipedia_tokens(tokenizer, "heldout", 4096).tolist()
    names = [BASE, *(name for name in table.installed() if name != BASE)]
    rows = []
    for threads in (1, 2):
        runs = {name: [] for name in names}
        for number in range(ROUNDS):
            chosen = [name for name in names if number == 0 or name not in ONCE]
            prompt, score = text[2048 : 2048 + PROMPT], text[:SCORED]
            for row in engines.measure_all(chosen, prompt, NEW, score, threads, repeats=2):
                runs[row["engine"]].append(row)
        rows += _summary(runs)
    return rows


def _summary(runs: dict[str, list[dict]]) -> list[dict]:
    """One row for each engine out of its rows of all rounds, with decoding against BASE's."""
    rows = []
    for name, found in runs.items():
        good = [row for row in found if not row["note"]]
        if not good:
            print(name, found[0]["note"])
            continue
        decode = [row["decode (tokens/s)"] for row in good]
        rows.append(good[0] | {rate: median(row[rate] for row in good) for rate in RATES} | {
            "slowest decode": min(decode), "fastest decode": max(decode), "rounds": len(good)})
    base = next((row for row in rows if row["engine"] == BASE), None)
    for row in rows if base else []:
        row[f"decode, {BASE} = 1"] = row["decode (tokens/s)"] / base["decode (tokens/s)"]
    return rows
