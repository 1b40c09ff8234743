"""GPTQ on the whole model over bits, groups, damping and the amount of calibration text. Takes long.

Each row is kept as soon as it is measured, and rows that the record holds already are not measured again: the
run can be interrupted. The lesson on GPTQ draws its larger tables from the record.
"""

import gc

from authoring.bench import resume
from course_utils import data, measure, models
from course_utils.quantize import gptq, layerwise
from course_utils.quantize.affine import Scheme

TITLE = "GPTQ over bits, groups, damping and calibration text"
HELDOUT_TOKENS, WINDOW = 2048, 512
NAME = "bench_gptq_sweep"

# (method, bits, group, symmetric, order, static groups, damping, calibration tokens, which text)
GPTQ, RTN = "GPTQ", "round to nearest"
_GRIDS = [(4, 64, True), (4, None, True), (4, 32, True), (4, 64, False),
          (3, 64, True), (3, None, True), (3, 32, True), (3, 64, False)]
RUNS = [
    ("FP32", 32, None, True, "", False, 0.0, 0, 0),
    *((RTN, *grid, "", False, 0.0, 0, 0) for grid in _GRIDS),
    *((GPTQ, *grid, "activation", True, 0.2, 4096, 0) for grid in _GRIDS),
    # less text and more, scales of the moved weights
    (GPTQ, 4, 64, True, "activation", True, 0.2, 1024, 0),
    (GPTQ, 4, 64, True, "activation", True, 0.2, 16384, 0),
    (GPTQ, 4, 64, True, "grouped", False, 0.2, 4096, 0),
    # the paper's damping; and the same on two other texts, to see what a difference means
    (GPTQ, 4, 64, True, "activation", True, 0.01, 4096, 0),
    *((GPTQ, 4, 64, True, "activation", True, damping, 4096, text)
      for text in (1, 2) for damping in (0.2, 0.01)),
]
KEYS = ("method", "bits", "group", "symmetric", "order", "static groups", "damping", "calibration tokens",
        "calibration text")


def bench() -> list[dict]:
    """All rows, measuring those that the record does not hold.

    Returns:
        One row for each of `RUNS`.
    """
    return resume(NAME, TITLE, {run: dict(zip(KEYS, run, strict=True)) for run in RUNS}, _measure)


def _measure(method: str, bits: int, group: int | None, symmetric: bool, order: str, static_groups: bool,
             damping: float, tokens: int, text: int) -> dict:
    model, tokenizer = models.load_lm()
    heldout = data.wikipedia_tokens(tokenizer, "heldout", HELDOUT_TOKENS)
    if method == RTN:
        layerwise.round_to_nearest(model, Scheme(bits, group, symmetric))
    elif method == GPTQ:
        calibration = data.wikipedia_tokens(tokenizer, "calibration", (text + 1) * tokens)[-tokens:]
        calibration = data.windows(calibration, WINDOW)
        gptq.quantize_model(model, calibration, Scheme(bits, group, symmetric), order=order, damping=damping,
                            static_groups=static_groups)
    found = measure.perplexity(model, heldout, window=WINDOW)
    del model
    gc.collect()
    return {"perplexity": found.value, "nll": found.nll, "tokens scored": found.tokens, "window": WINDOW}
