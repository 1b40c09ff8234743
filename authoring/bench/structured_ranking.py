"""Heads, neurons or blocks: what costs the language model least at equal parameters?

Each cut is paired with a cut of neurons that removes as many parameters, on the same text. Three stretches of
calibration text choose what goes, so that a lucky choice shows.
"""

from collections.abc import Callable
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor

from authoring.bench import resume
from course_utils import data, measure, models
from course_utils.prune import depth, structured

TITLE = "SmolLM2 without heads, neurons or blocks, at equal parameters: perplexity on 16,384 held-out tokens"
HELDOUT_TOKENS, WINDOW = 16_384, 512
TEXTS, WINDOWS, LENGTH = 3, 4, 256  # calibration texts, windows in each, tokens of a window
GROUPS, BLOCKS = "1 of 3 key-value heads", "3 of 30 blocks"
NEURONS = "neurons, as many parameters as "


def bench() -> list[dict]:
    """Make each cut with each calibration text, measure, undo it.

    Returns:
        One row for each: its perplexity with all windows, and the parameters that are left.
    """
    model, tokenizer = models.load_lm()
    heldout = data.wikipedia_tokens(tokenizer, "heldout", HELDOUT_TOKENS)
    pieces = data.windows(data.wikipedia_tokens(tokenizer, "calibration", TEXTS * WINDOWS * 1024), 1024)
    cuts: dict[tuple, Callable[[], None]] = {("nothing", 0): lambda: None}
    for text in range(1, TEXTS + 1):
        windows = pieces[(text - 1) * WINDOWS : text * WINDOWS, :LENGTH]
        cuts |= {(name, text): cut for name, cut in _cuts(model, windows).items()}

    def scored(name: str, text: int) -> dict:
        measure.release_memory()
        with structured.putting_back(model):
            cuts[name, text]()
            return {"parameters": model.num_parameters(),
                    "result": asdict(measure.perplexity(model, heldout, WINDOW))}

    runs = {run: dict(zip(("what", "calibration text"), run, strict=True)) for run in cuts}
    return resume("bench_structured_ranking", TITLE, runs, scored)


def _cuts(model: torch.nn.Module, windows: Tensor) -> dict[str, Callable[[], None]]:
    """Name -> function that makes the cut, chosen on this text."""
    texts = list(windows.split(1))

    def loss(tokens: Tensor) -> Tensor:
        logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    kv_heads = model.config.num_key_value_heads
    groups = structured.kept_in_each(structured.head_gradient(model, texts, loss), kv_heads - 1)
    neurons = structured.neuron_importance(model, lambda: [model.base_model(text) for text in texts])
    lowest = depth.influences(model, windows).argsort(stable=True).tolist()[:3]
    cuts = {
        GROUPS: lambda: structured.keep_heads(model, groups),
        BLOCKS: lambda: depth.remove_blocks(model, lowest),
    }
    for name, cut in list(cuts.items()):
        keep = _neurons_left(model, cut)
        cuts[NEURONS + name] = lambda keep=keep: structured.keep_neurons(
            model, structured.kept_in_each(neurons, keep))
    return cuts


def _neurons_left(model: torch.nn.Module, cut: Callable[[], None]) -> int:
    """How many neurons stay in each block if as many parameters go by neurons as by this cut.

    A neuron is a row of gate and of up and a column of down.
    """
    config, whole = model.config, model.num_parameters()
    with structured.putting_back(model):
        cut()
        gone = whole - model.num_parameters()
    return config.intermediate_size - round(gone / (3 * config.hidden_size * config.num_hidden_layers))
