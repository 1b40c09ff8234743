"""The engines of the lesson on engines with 1, 4 and 16 sequences side by side."""

from authoring.bench.engines import ONCE as LEFT_OUT  # slow to load or to compile; that bench has them
from course_utils import data, engines, models
from course_utils.engines import table

TITLE = "Engines: tokens per second of 1, 4 and 16 sequences side by side"
BATCHES, THREADS = (1, 4, 16), 2
PROMPT, NEW = 64, 16
COLUMNS = ("engine", "batch", "threads", "prefill (tokens/s)", "decode (tokens/s)", "peak (MB)")


def bench() -> list[dict]:
    """Run each installed engine with each batch.

    Returns:
        A row for each engine and batch; rates count the tokens of all sequences. An engine that reads one
        sequence at a time has the row of batch 1 only.
    """
    _, tokenizer = models.load_lm()
    text = data.wikipedia_tokens(tokenizer, "heldout", 4096).tolist()
    names = [name for name in table.installed() if name not in LEFT_OUT]
    rows = []
    for batch in BATCHES:
        prompt, score = text[2048 : 2048 + PROMPT], text[:32]
        rows += engines.measure_all(names, prompt, NEW, score, THREADS, repeats=3, batch=batch)
    for row in rows:
        if row["note"]:
            print(row["engine"], row["note"])
    return [{column: row[column] for column in COLUMNS} for row in rows if not row["note"]]
