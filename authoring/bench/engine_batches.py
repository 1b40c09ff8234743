"""The engines of lesson 11 with 1, 4 and 16 sequences side by side, in rounds."""

from statistics import median

from course_utils import data, engines, models
from course_utils.engines import table

TITLE = "Engines: tokens per second of 1, 4 and 16 sequences side by side"
BATCHES, ROUNDS, THREADS = (1, 4, 16), 2, 2
PROMPT, NEW = 64, 16
# Slow to load or to compile; lesson 11's first record has them.
LEFT_OUT = ("torch BF16", "torch.compile FP32", "torchao INT8", "bitsandbytes INT8")
RATES = ("prefill (tokens/s)", "decode (tokens/s)")


def bench() -> list[dict]:
    """A row for each installed engine and batch: medians of the rounds, of all sequences together.

    An engine that reads one sequence at a time has the row of batch 1 only.
    """
    _, tokenizer = models.load_lm()
    text = data.wikipedia_tokens(tokenizer, "heldout", 4096).tolist()
    names = [name for name in table.installed() if name not in LEFT_OUT]
    found = {}
    for _ in range(ROUNDS):
        for batch in BATCHES:
            for row in engines.measure_all(names, text[2048 : 2048 + PROMPT], NEW, text[:32], THREADS,
                                           repeats=2, batch=batch):
                if row["note"]:
                    print(row["engine"], row["note"])
                else:
                    found.setdefault((row["engine"], batch), []).append(row)
    rows = []
    for (name, batch), each in found.items():
        rates = {rate: median(row[rate] for row in each) for rate in RATES}
        rows.append({"engine": name, "batch": batch, "threads": THREADS, **rates,
                     "peak (MB)": max(row["peak (MB)"] for row in each)})
    return rows
