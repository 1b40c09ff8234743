"""A window, first tokens kept, fewer bits: what each costs the model, on 16,384 held-out tokens."""

from collections.abc import Callable
from dataclasses import asdict

import torch
import torch.nn.functional as F
from transformers import Cache, PreTrainedModel

from authoring.bench import resume
from course_utils import data, measure, models
from course_utils.kvcache import decoding, layers
from course_utils.kvcache.layers import DynamicLayer, make_cache
from course_utils.kvcache.quantized import QuantizedLayer

TITLE = "SmolLM2 read through caches that forget or round: perplexity on 16,384 held-out tokens"
HELDOUT_TOKENS, WINDOW, CHUNK, RECENT = 16_384, 512, 64, 32
EXACT = "exact"
WINDOWS = {"window 64": (64, 0), "window 60 and 4 first tokens": (60, 4), "window 192": (192, 0)}
ROUNDED = {
    f"{bits} bit, keys by {by}": (bits, by)
    for bits, by in ((8, "channel"), (4, "channel"), (2, "channel"), (2, "token"))
}


def bench() -> list[dict]:
    """The exact cache and each other one.

    Returns:
        One row for each, with the perplexity of all windows.
    """
    model, tokenizer = models.load_lm()
    heldout = data.wikipedia_tokens(tokenizer, "heldout", HELDOUT_TOKENS)

    def scored(name: str) -> dict:
        if name in WINDOWS:
            found = windowed_perplexity(model, heldout, *WINDOWS[name])
        else:
            found = decoding.cached_perplexity(model, heldout, _maker(model, name), WINDOW, CHUNK)
        return {"result": asdict(found)}

    return resume("bench_kv_cache_ranking", TITLE,
                  {(name,): {"cache": name} for name in (EXACT, *WINDOWS, *ROUNDED)}, scored)


def _maker(model: PreTrainedModel, name: str) -> Callable[[], Cache]:
    if name == EXACT:
        return lambda: make_cache(model.config, DynamicLayer)
    bits, by = ROUNDED[name]
    return lambda: make_cache(model.config, QuantizedLayer, bits=bits, group=32, recent=RECENT, keys_by=by)


def windowed_perplexity(model: PreTrainedModel, tokens: torch.Tensor, window: int,
                        sinks: int) -> measure.Perplexity:
    """Perplexity when each token sees the newest tokens and the first ones, by a mask in one pass.

    Args:
        model: a causal language model.
        tokens: int64 [n], a multiple of the bench's window.
        window: so many of the newest tokens are seen, the token itself among them.
        sinks: so many first tokens are seen besides.

    Returns:
        The perplexity with its windows.
    """
    mask = layers.window_mask(WINDOW, window, sinks, model.dtype)
    sums = []
    for row in data.windows(tokens, WINDOW):
        with torch.no_grad():
            logits = model(input_ids=row[None], attention_mask=mask, use_cache=False).logits[0, :-1]
        sums.append(F.cross_entropy(logits.float(), row[1:], reduction="sum").item())
    counts = [WINDOW - 1] * len(sums)
    return measure.perplexity_of_windows(sums, counts, tokens, WINDOW, WINDOW, "cpu")
