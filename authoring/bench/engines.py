"""All installed engines of lesson 11, each as a process, with 1 and 2 threads; llama.cpp's Q4 comes first."""

from course_utils import data, engines, models
from course_utils.engines import table

TITLE = "Engines: decode, prefill, memory and agreement with FP32; ratio to llama.cpp Q4_1 on 1 thread"
RATIO_OF = "decode (tokens/s)"
BASE = "llama.cpp Q4_1"
PROMPT, NEW, SCORED = 256, 32, 128


def bench() -> list[dict]:
    """A row for each installed engine and number of threads; those without a figure are printed, not kept."""
    _, tokenizer = models.load_lm()
    text = data.wikipedia_tokens(tokenizer, "heldout", 4096).tolist()
    names = [BASE, *(name for name in table.installed() if name != BASE)]
    rows = []
    for threads in (1, 2):
        rows += engines.measure_all(names, text[2048 : 2048 + PROMPT], NEW, text[:SCORED], threads)
    for row in rows:
        if row["note"]:
            print(row["engine"], row["threads"], row["note"])
    return [row for row in rows if not row["note"]]
