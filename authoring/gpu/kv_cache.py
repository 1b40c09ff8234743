"""Step 6: decoding with different KV caches at batch, and serving from paged memory."""

import time

import torch
from transformers import DynamicCache, StaticCache

from authoring.gpu import model_13b
from authoring.gpu.results import attempt, first_line, free, peak_gb
from course_utils import measure, models
from course_utils.kvcache import sizes, trace
from course_utils.kvcache.layers import DynamicLayer, StaticLayer, make_cache
from course_utils.kvcache.paged import KVPool, PagedCache
from course_utils.kvcache.server import Server

TITLE = "Decoding through KV caches at batch, and serving from blocks"
BATCHES = (1, 16, 64)
REQUESTS, AT_ONCE = 48, (1, 8, 48)


def measure_into(settings, results):
    """Rows "model", "cache", "batch": tokens per second and memory; then a server's, by requests at once."""
    prompt, new = (8, 2) if settings.small else (512, 16)
    results.note(dtype="bfloat16", **{"prompt tokens": prompt, "new tokens": new})
    device = settings.device
    loaders = {
        "SmolLM2-135M": lambda: models.load_lm(dtype=torch.bfloat16, device=device)[0],
        "13B shape": lambda: model_13b.build("tiny" if settings.small else "13b", "BF16", device),
    }
    if settings.small:
        loaders = {"tiny": loaders["13B shape"]}
    for name, load in loaders.items():
        loaded = []  # the model, loaded by the first cache that has no rows yet
        for cache in caches(None, 1, 1):
            attempt(results, {"model": name, "cache": cache}, lambda name=name, load=load, loaded=loaded,
                    cache=cache: add_rows(results, name, _once(loaded, load), cache, prompt, new, settings))
        if name != "13B shape":
            for at_once in AT_ONCE[:2] if settings.small else AT_ONCE:
                attempt(results, {"model": name, "cache": "our server, blocks of 16", "batch": at_once},
                        lambda name=name, load=load, loaded=loaded, at_once=at_once: serve(
                            results, name, _once(loaded, load), at_once, settings))
        loaded.clear()
        free()


def _once(loaded, load):
    if not loaded:
        loaded.append(load())
    return loaded[0]


def caches(model, batch, room):
    """Name -> function that makes an empty cache for `batch` sequences of at most `room` tokens."""

    def paged():
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
def add_rows(results, name, model, cache, prompt_tokens, new_tokens, settings):
    """One row a batch size. A batch that does not fit is a row with its error."""
    for batch in BATCHES[:2] if settings.small else BATCHES:
        free()
        keys = {"model": name, "cache": cache, "batch": batch}
        try:
            room = prompt_tokens + new_tokens + 8
            kept = caches(model, batch, room)[cache]()
            prompt = torch.randint(0, model.config.vocab_size, (batch, prompt_tokens), device=model.device)
            state = model(prompt, past_key_values=kept, logits_to_keep=1)

            def step():
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


def serve(results, name, model, at_once, settings):
    """Serve requests of the paging trace from paged memory, `at_once` at a time."""
    count = 4 if settings.small else REQUESTS
    requests = [(min(prompt, 256), min(new, 16 if settings.small else 48))
                for prompt, new in trace.make_trace(count)]
    if at_once == 1:
        requests = requests[: max(2, count // 12)]  # one at a time takes long, and a rate needs no more
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
