"""Sparsity against perplexity, by method: the lesson on pruning draws its picture from it. Takes long.

Rows that the record holds already are not measured again, so the run can be interrupted. Perplexities hold on
any machine within rounding; no time is measured here.
"""

import gc
from collections.abc import Iterator

import torch
from torch import nn

from authoring.bench import resume
from course_utils import data, measure, models
from course_utils.prune import sparsegpt, unstructured

TITLE = "Sparsity against perplexity, by method"
NAME = "bench_pruning"
HELDOUT_TOKENS, CALIBRATION_TOKENS, WINDOW = 2048, 4096, 512
DAMPING = 0.1
SHARES = (0.5, 0.3, 0.7, 0.6, 0.4, 0.2, 0.1)  # the most telling first

RANDOM, LAYER, GLOBAL, WANDA, SPARSEGPT = (
    "random", "magnitude, per layer", "magnitude, global", "Wanda", "SparseGPT")
METHODS = (RANDOM, LAYER, GLOBAL, WANDA, SPARSEGPT)


def runs() -> Iterator[tuple[str, float | tuple[int, int], float | None]]:
    """All rows.

    Yields:
        (method, sparsity, damping) of a row. Sparsity is the share of zeros from 0 to 1, or a pattern such as
        (2, 4).
    """
    yield "dense", 0.0, None
    for damping in (0.01, DAMPING, 1.0):
        yield SPARSEGPT, 0.5, damping
    for method in METHODS:
        if method != GLOBAL:  # a pattern in each layer leaves no choice between layers
            yield method, (2, 4), DAMPING if method == SPARSEGPT else None
    for sparsity in SHARES:
        for method in METHODS:
            if (method, sparsity) != (SPARSEGPT, 0.5):
                yield method, sparsity, DAMPING if method == SPARSEGPT else None


def bench() -> list[dict]:
    """All rows, measuring those that the record does not hold.

    Returns:
        One row for each of `runs`.
    """
    names = {run: {"method": run[0], "sparsity": unstructured.describe(run[1]), "damping": run[2]}
             for run in runs()}
    return resume(NAME, TITLE, names, _measure)


def _measure(method: str, sparsity: float | tuple[int, int], damping: float | None) -> dict:
    model, tokenizer = models.load_lm()
    text = data.windows(data.wikipedia_tokens(tokenizer, "calibration", CALIBRATION_TOKENS), WINDOW)
    heldout = data.wikipedia_tokens(tokenizer, "heldout", HELDOUT_TOKENS)
    prune(model, method, sparsity, text, damping)
    found = measure.perplexity(model, heldout, window=WINDOW)
    zeros = unstructured.share_of_zeros(model)
    del model
    gc.collect()
    fitted = method in (WANDA, SPARSEGPT)
    return {"perplexity": found.value, "nll": found.nll, "zeros": zeros, "tokens scored": found.tokens,
            "window": WINDOW, "calibration tokens": text.numel() if fitted else 0}


def prune(model: nn.Module, method: str, sparsity: float | tuple[int, int], text: torch.Tensor,
          damping: float | None) -> None:
    """Prune a model in place.

    Args:
        model: a causal language model.
        method: one of `METHODS`; "dense" leaves the model as it is.
        sparsity: share of zeros from 0 to 1, or a pattern such as (2, 4).
        text: int64 [windows, tokens], for the methods that look at inputs.
        damping: of SparseGPT; None for the other methods.
    """
    generator = torch.Generator().manual_seed(0)
    scores = {RANDOM: lambda _, weight: unstructured.random_score(weight, generator)}
    if method == WANDA:
        unstructured.wanda_model(model, text, sparsity)
    elif method == SPARSEGPT:
        sparsegpt.sparsegpt_model(model, text, sparsity, damping=damping)
    elif method != "dense":
        score = scores.get(method, lambda _, weight: unstructured.magnitude_score(weight))
        unstructured.prune_model(model, score, sparsity, per="model" if method == GLOBAL else "layer")
