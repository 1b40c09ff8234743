"""Step 6: decoding with different KV caches at batch, and serving from paged memory."""

import time
from collections.abc import Callable

import torch
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from authoring.gpu import model_13b
from authoring.gpu.plan import Settings
from authoring.gpu.results import Results, attempt, first_line, free, peak_gb
from course_utils import measure, models
from course_utils.kvcache import sizes, trace
from course_utils.kvcache.layers import DynamicLayer, StaticLayer, make_cache
from course_utils.kvcache.paged import KVPool, PagedCache
from course_utils.kvcache.server import Server

TITLE = "Decoding through KV caches at batch, and serving from blocks"
BATCHES = (1, 16, 64)
BATCHES_13B = (1, 16)
PROMPT_TOKENS = 512
NEW_TOKENS = 8  # few: where Python is slow, each takes 0.1 s whatever the cache, and all have 100 s
REQUESTS = {1: 2, 8: 24, 48: 48}  # at once: in all; a rate needs no more


def measure_into(settings: Settings, results: Results) -> None:
    """Add rows "model", "cache", "batch": tokens/s and memory; then a server's, by requests at once.

    Args:
        settings: of the run.
        results: gets the rows.
    """
    prompt, new = (8, 2) if settings.small else (PROMPT_TOKENS, NEW_TOKENS)
    results.note(dtype="bfloat16", **{"prompt tokens": prompt, "new tokens": new})
    device = settings.device
    loaders = {
        "SmolLM2-135M": lambda: models.load_lm(dtype=torch.bfloat16, device=device)[0],
        "13B shape": lambda: model_13b.build("tiny" if settings.small else "13b", "BF16", device),
    }
    if settings.small:
        loaders = {"tiny": loaders["13B shape"]}
    for name, load in loaders.items():
        batches = BATCHES_13B if name == "13B shape" else BATCHES[:2] if settings.small else BATCHES
        loaded = []  # the model, loaded by the first cache that has no rows yet
        for cache in caches(None, 1, 1):
            attempt(results, {"model": name, "cache": cache}, lambda name=name, load=load, loaded=loaded,
                    cache=cache, batches=batches: add_rows(
                        results, name, _once(loaded, load), cache, batches, prompt, new, settings))
        if name != "13B shape":
            for at_once in [*REQUESTS][:2] if settings.small else REQUESTS:
                attempt(results, {"model": name, "cache": "our server, blocks of 16", "batch": at_once},
                        lambda name=name, load=load, loaded=loaded, at_once=at_once: serve(
                            results, name, _once(loaded, load), at_once, settings))
        loaded.clear()
        free()


def _once(loaded: list[PreTrainedModel], load: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    if not loaded:
        loaded.append(load())
    return loaded[0]


def caches(model: PreTrainedModel | None, batch: int, room: int) -> dict[str, Callable[[], Cache]]:
    """The caches that are measured.

    Args:
        model: whose keys and values they hold; None where only the names are wanted.
        batch: sequences.
        room: most tokens of each.

    Returns:
        Name -> function that makes an empty one.
    """

    def paged() -> PagedCache:
        pool = KVPool(model.config, batch * -(-room // 16), 16, model.dtype, model.device)
        return PagedCache(pool, range(batch))

    return {
        "transformers dynamic": lambda: DynamicCache(config=model.config),
        "transformers static": lambda: StaticCache(config=model.config, max_cache_len=room),
        "our dynamic": lambda: make_cache(model.config, DynamicLayer),
        "our static": lambda: make_cache(model.config, StaticLayer, max_tokens=room),
        "our blocks of 16": paged,
    }


@torch.inference_mode()
def add_rows(results: Results, name: str, model: PreTrainedModel, cache: str, batches: tuple[int, ...],
             prompt_tokens: int, new_tokens: int, settings: Settings) -> None:
    """Add one row a batch size. A batch that does not fit is a row with its error.

    Where the cache allows it, the decode step is timed as a CUDA graph, too.

    Args:
        results: gets the rows.
        name: of the model, for the rows.
        model: the model.
        cache: a key of `caches`.
        batches: numbers of sequences.
        prompt_tokens: of each sequence.
        new_tokens: decode steps that are timed.
        settings: of the run.
    """
    for batch in batches:
        free()
        keys = {"model": name, "cache": cache, "batch": batch}
        try:
            room = prompt_tokens + new_tokens + 8
            kept = caches(model, batch, room)[cache]()
            prompt = torch.randint(0, model.config.vocab_size, (batch, prompt_tokens), device=model.device)
            state = model(prompt, past_key_values=kept, logits_to_keep=1)

            def step() -> None:
                nonlocal state
                token = state.logits[:, -1:].argmax(-1)
                state = model(token, past_key_values=kept, logits_to_keep=1)  # noqa: B023 - called in this turn

            decode = measure.latency(step, warmup=2, repeats=new_tokens)
            held = kept.pool if isinstance(kept, PagedCache) else None
            nbytes = (sum(t.nbytes for t in held.keys + held.values) if held else sizes.stored_bytes(kept))
            results.add(**keys, **{"decode (tokens/s)": batch / decode.median,
                                   "decode step (ms)": 1e3 * decode.median, "KV memory (GB)": nbytes / 1e9,
                                   "peak GPU memory (GB)": peak_gb()})
        except torch.OutOfMemoryError as error:
            results.add(**keys, error=first_line(error))
        kept = state = held = None
    if cache == "transformers static" and settings.device != "cpu":
        rows = [row for row in results.rows
                if row["model"] == name and row["cache"] == cache and "error" not in row]
        model_13b.add_graph_steps(results, rows, model, settings.device, prompt_tokens, new_tokens)


def serve(results: Results, name: str, model: PreTrainedModel, at_once: int, settings: Settings) -> None:
    """Serve requests of the paging trace from paged memory, and add a row.

    Args:
        results: gets the row.
        name: of the model, for the row.
        model: the model.
        at_once: most requests at a time, a key of REQUESTS.
        settings: of the run.
    """
    count = min(4, REQUESTS[at_once]) if settings.small else REQUESTS[at_once]
    requests = [(min(prompt, 256), min(new, 16 if settings.small else 48))
                for prompt, new in trace.make_trace(count)]
    blocks = at_once * 20
    server = Server(model, n_blocks=blocks, block_size=16, max_batch=at_once)
    generator = torch.Generator().manual_seed(0)
    for number, (prompt, new) in enumerate(requests):
        ids = torch.randint(0, model.config.vocab_size, (prompt,), generator=generator).tolist()
        server.submit(number, ids, new)
    measure.synchronize()
    started = time.perf_counter()
    answers = server.run()
    seconds = time.perf_counter() - started
    written = sum(map(len, answers.values()))
    pool = sum(t.nbytes for t in server.pool.keys + server.pool.values)
    results.add(model=name, cache="our server, blocks of 16", batch=at_once, **{
        "decode (tokens/s)": written / seconds, "KV memory (GB)": pool / 1e9,
        "peak GPU memory (GB)": peak_gb(),
        "requests": len(requests), "of it": "prompts read one by one are in the time"})
