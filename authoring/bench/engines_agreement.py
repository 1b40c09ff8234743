"""How far each installed engine is from the FP32 model, on 2,048 positions in windows of 128."""

from course_utils import data, engines, models, records
from course_utils.engines import table

TITLE = "Engines: agreement with FP32 on 2,048 positions"
POSITIONS, WINDOW, THREADS, AT_ONCE = 2048, 128, 2, 4
COLUMNS = ("engine", "read (MB)", "top-1 match", "KL (nats)", "top-1 by window", "KL by window")
# Scores come from the model itself; vLLM gives them as 49,152 Python objects a position.
LEFT_OUT = ("torch FP32", "torch.compile FP32", "torchao INT8, compiled", "vLLM FP32")


def bench() -> list[dict]:
    """Score one text with each engine. What the record holds is not measured again; delete it to start anew.

    Returns:
        A row for each engine: what it agrees in, in all and by window. All rows are of the same windows.
    """
    _, tokenizer = models.load_lm()
    text = data.wikipedia_tokens(tokenizer, "heldout", POSITIONS).tolist()
    kept = records.load("bench_engines_agreement")
    rows = {row["engine"]: row for row in kept["results"]["rows"]} if kept else {}
    missing = [name for name in table.installed() if name not in (*LEFT_OUT, *rows)]
    for start in range(0, len(missing), AT_ONCE):  # the reference runs once for each piece
        names = missing[start : start + AT_ONCE]
        for row in engines.measure_all(names, text[:16], 2, text, THREADS, repeats=1, window=WINDOW):
            if row["note"]:
                print(row["engine"], row["note"])
            else:
                rows[row["engine"]] = {column: row[column] for column in COLUMNS}
        records.save("bench_engines_agreement", {"title": TITLE, "rows": list(rows.values())})
    return list(rows.values())
