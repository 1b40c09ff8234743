"""Our caches beside those of transformers: the same prompt in turns, perplexity through each."""

import statistics
from collections.abc import Callable

import torch
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from course_utils import data, measure, models
from course_utils.kvcache import decoding, sizes
from course_utils.kvcache.layers import DynamicLayer, StaticLayer, make_cache
from course_utils.kvcache.paged import KVPool, PagedCache
from course_utils.kvcache.quantized import QuantizedLayer

TITLE = "Greedy decoding through a KV cache: transformers' and ours, in turns"
RATIO_OF = "median (s)"
PROMPT, NEW_TOKENS, ROUNDS = 256, 32, 5
ROOM = PROMPT + NEW_TOKENS
HELDOUT, WINDOW, CHUNK = 2048, 512, 32
RECENT = 32


def kinds(model: PreTrainedModel) -> dict[str, Callable[[], Cache]]:
    """What is compared.

    Args:
        model: the model that the caches are for.

    Returns:
        Name -> zero-argument callable that makes an empty cache with room for a window.
    """
    config = model.config
    return {
        "transformers DynamicCache": lambda: DynamicCache(config=config),
        "transformers StaticCache": lambda: StaticCache(config=config, max_cache_len=WINDOW),
        "ours, dynamic": lambda: make_cache(config, DynamicLayer),
        "ours, static": lambda: make_cache(config, StaticLayer, max_tokens=WINDOW),
        "ours, paged": lambda: PagedCache(KVPool(config, WINDOW // 16, 16, model.dtype), ["text"]),
    } | {
        f"ours, {bits} bit, keys by {by}": lambda bits=bits, by=by: make_cache(
            config, QuantizedLayer, bits=bits, group=32, recent=RECENT, keys_by=by)
        for bits, by in ((8, "channel"), (4, "channel"), (2, "channel"), (4, "token"), (2, "token"))
    }


def bench() -> list[dict]:
    """Decode through each kind of cache.

    Returns:
        One row for each kind: seconds of a greedy continuation, MB held, perplexity through it.
    """
    model, tokenizer = models.load_lm()
    heldout = data.wikipedia_tokens(tokenizer, "heldout", HELDOUT)
    prompt = heldout[None, :PROMPT]
    made = kinds(model)
    expected = decoding.greedy(model, prompt, NEW_TOKENS, DynamicCache(config=model.config))
    seconds, held, same = {name: [] for name in made}, {}, {}
    for _ in range(ROUNDS):  # in turns, so that all see the same good and bad seconds of the machine
        for name, make in made.items():
            cache, texts = make(), []

            def run(cache: Cache = cache, texts: list[torch.Tensor] = texts) -> None:
                texts.append(decoding.greedy(model, prompt, NEW_TOKENS, cache))

            seconds[name].append(measure.latency(run, warmup=0, repeats=1).median)
            held[name] = sizes.stored_bytes(cache)
            same[name] = int((texts[0] == expected)[0, PROMPT:].long().cumprod(0).sum())
    rows = []
    for name, make in made.items():
        quality = decoding.cached_perplexity(model, heldout, make, WINDOW, CHUNK)
        rows.append({
            "cache": name, "median (s)": statistics.median(seconds[name]), "fastest (s)": min(seconds[name]),
            "slowest (s)": max(seconds[name]), f"MB held at {ROOM} tokens": held[name] / 1e6,
            "new tokens alike": same[name], "perplexity": quality.value,
            "tokens scored": quality.tokens, "window": WINDOW, "tokens a pass": CHUNK,
            "threads": torch.get_num_threads(),
        })
    return rows
