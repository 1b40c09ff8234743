"""Speculative decoding by llama.cpp's own server code: without a draft, by n-grams of the text, by a model.

Request {"model": gguf, "draft": gguf or null, "ngram": 0 or how many tokens are looked for, "count": tokens
         drafted at most, "prompts": [[ids], ...], "new_tokens": n, "threads": 2, "repeats": 2}
Answer: for each prompt "written" (the text), "seconds" (the fastest repeat, the prompt's reading left
out), "drafted" and "accepted"; and "versions". Greedy; an end-of-text token does not stop it.
"""

import importlib.metadata
import sys

from protocol import answer


def server(request: dict) -> object:
    """A server in this process."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = request["model"]
    settings.n_ctx, settings.n_parallel = 2048, 1
    settings.warmup = True
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = request["threads"]
    kinds, speculative = xllamacpp.common_speculative_type, settings.speculative
    if request.get("draft"):
        speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        speculative.draft.mparams.path = request["draft"]
        speculative.draft.n_max = request["count"]
        for pool in (speculative.draft.cpuparams, speculative.draft.cpuparams_batch):
            pool.n_threads = request["threads"]
    elif request.get("ngram"):
        speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
        speculative.ngram_simple.size_n, speculative.ngram_simple.size_m = request["ngram"], request["count"]
        speculative.ngram_simple.min_hits = 1
    return xllamacpp.Server(settings)


def task(request: dict) -> dict:
    """Write after each prompt; request and answer as at the top of this file."""
    running, found = server(request), []
    for prompt in request["prompts"]:
        question = {"prompt": prompt, "n_predict": request["new_tokens"], "temperature": 0.0,
                    "ignore_eos": True, "cache_prompt": False}
        replies = [running.handle_completions(question) for _ in range(request.get("repeats", 2))]
        times = [reply["timings"] for reply in replies]
        fastest = min(times, key=lambda one: one["predicted_ms"])
        found.append({"written": replies[0]["choices"][0]["text"], "seconds": fastest["predicted_ms"] / 1e3,
                      "drafted": fastest.get("draft_n", 0), "accepted": fastest.get("draft_n_accepted", 0)})
    return {"prompts": found, "versions": {"xllamacpp": importlib.metadata.version("xllamacpp"),
                                           "python": sys.version.split()[0]}}


if __name__ == "__main__":
    answer(task)
