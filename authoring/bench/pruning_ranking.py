"""Which pruning method leaves the better language model at 50 %? Each measured on 16,384 held-out tokens.

The sweep over sparsities (bench pruning) has less text for each of its many points.
"""

from dataclasses import asdict

from authoring.bench import resume
from authoring.bench.pruning import (
    CALIBRATION_TOKENS,
    DAMPING,
    LAYER,
    RANDOM,
    SPARSEGPT,
    WANDA,
    WINDOW,
    prune,
)
from course_utils import data, measure, models
from course_utils.prune import unstructured

TITLE = "SmolLM2, half of the weights zero: perplexity on 16,384 held-out tokens"
HELDOUT_TOKENS = 16_384


def bench() -> list[dict]:
    """The dense model, and each method at 50 % anywhere and at 2:4.

    Returns:
        One row for each, with the perplexity of all windows.
    """
    tried = [("dense", 0.0), (RANDOM, 0.5)]
    tried += [(method, sparsity) for sparsity in (0.5, (2, 4)) for method in (LAYER, WANDA, SPARSEGPT)]
    runs = {run: {"method": run[0], "sparsity": unstructured.describe(run[1])} for run in tried}
    return resume("bench_pruning_ranking", TITLE, runs, _measure)


def _measure(method: str, sparsity: float | tuple[int, int]) -> dict:
    measure.release_memory()
    model, tokenizer = models.load_lm()
    text = data.windows(data.wikipedia_tokens(tokenizer, "calibration", CALIBRATION_TOKENS), WINDOW)
    prune(model, method, sparsity, text, DAMPING if method == SPARSEGPT else None)
    heldout = data.wikipedia_tokens(tokenizer, "heldout", HELDOUT_TOKENS)
    return {"zeros": unstructured.share_of_zeros(model),
            "result": asdict(measure.perplexity(model, heldout, WINDOW))}
