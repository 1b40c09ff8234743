"""The engines that need a GPU, one sequence and sixteen side by side."""

from course_utils import data, engines, models
from course_utils.engines import environment

TITLE = "Engines on a GPU: prefill, decode and agreement with FP32"
BATCHES = (1, 16)


def bench() -> list[dict]:
    """A row for each GPU engine that is installed and each batch; none without an NVIDIA GPU."""
    if not environment.has_gpu():
        print("engines_gpu: there is no NVIDIA GPU here, so nothing was measured.")
        return []
    _, tokenizer = models.load_lm()
    text = data.wikipedia_tokens(tokenizer, "heldout", 4096).tolist()
    names = [name for name, variant in engines.VARIANTS.items() if engines.find(variant.engine).gpu]
    rows = []
    for batch in BATCHES:  # TensorRT compiles for minutes the first time
        rows += engines.measure_all(names, text[2048:2304], 32, text[:128], timeout=3600, batch=batch)
    for row in rows:
        if row["note"]:
            print(row["engine"], row["note"])
    return [row for row in rows if not row["note"]]
