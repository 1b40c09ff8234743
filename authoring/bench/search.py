"""Which blocks go, and how many neurons stay in the others? By lot, by evolution and by hand, at one budget.

A cheap proxy, the loss on 512 calibration tokens, judges each plan. What each search found is then measured
once, on held-out text. Three seeds a search, because a search by lot can be lucky. All in BF16: it is three
times as fast as FP32 on processors that have it, and every plan is rounded alike.
"""

from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor
from transformers import PreTrainedModel

from authoring.bench import resume
from course_utils import data, measure, models
from course_utils.prune import depth, search, structured
from course_utils.prune.search import Plan, Space

TITLE = "SmolLM2 in BF16, three blocks' worth of parameters less, by search and by hand: 16,384 tokens"
HELDOUT_TOKENS, WINDOW = 16_384, 512
RANKING, LENGTH = 4, 256  # calibration windows that rank neurons and blocks, and their tokens
PROXY, PROXY_LENGTH = 8, 64  # other windows of calibration text, for the proxy
BLOCKS, STEP, DROPS = 3, 64, 6
EVALUATIONS, SEEDS = 64, (1, 2, 3)
NOTHING, BY_BLOCKS, BY_NEURONS = "nothing", "3 of 30 blocks", "neurons, the same number in each block"
LOT, EVOLUTION, FROM_HAND = "by lot", "evolution", "evolution that begins with the hand-made plans"


def bench() -> list[dict]:
    """Make each plan, measure it.

    Returns:
        One row for each: the plan, its parameters, its proxy, the trace of the search, its perplexity.
    """
    model, tokenizer = models.load_lm()
    pieces = data.windows(data.wikipedia_tokens(tokenizer, "calibration", (RANKING + PROXY) * 1024), 1024)
    heldout = data.wikipedia_tokens(tokenizer, "heldout", HELDOUT_TOKENS)
    space, ranked, by_hand = _by_hand(model, pieces[:RANKING, :LENGTH])
    proxy = _proxy(model.to(torch.bfloat16), pieces[RANKING:, :PROXY_LENGTH].flatten(), ranked)

    def row(how: str, seed: int) -> dict:
        measure.release_memory()
        start = [by_hand[BY_BLOCKS], by_hand[BY_NEURONS]] if how == FROM_HAND else []
        if how in by_hand:
            history = [(by_hand[how], proxy(by_hand[how]))]
        elif how == LOT:
            history = search.by_chance(space, proxy, EVALUATIONS, seed)
        else:
            history = search.evolve(space, proxy, EVALUATIONS, seed, start)
        plan, score = search.lowest(history)
        with structured.putting_back(model):
            search.cut(model, plan, ranked)
            return {"plan": list(plan), "parameters": model.num_parameters(), "proxy": score,
                    "trace": [value for _, value in history],
                    "result": asdict(measure.perplexity(model, heldout, WINDOW))}

    tried = [(how, 0) for how in by_hand]
    tried += [(how, seed) for seed in SEEDS for how in (LOT, EVOLUTION, FROM_HAND)]
    runs = {run: dict(zip(("how", "seed"), run, strict=True)) for run in tried}
    return resume("bench_search", TITLE, runs, row)


def _by_hand(model: PreTrainedModel, windows: Tensor) -> tuple[Space, Tensor, dict[str, Plan]]:
    """What may be cut, the ranked neurons, and the plans that nobody searched for."""
    texts = windows.split(1)
    importance = structured.neuron_importance(model, lambda: [model.base_model(text) for text in texts])
    lowest = depth.influences(model, windows).argsort(stable=True).tolist()[:BLOCKS]
    n, width = importance.shape
    by_blocks = tuple(0 if i in lowest else width for i in range(n))
    with structured.putting_back(model):
        depth.remove_blocks(model, lowest)
        budget = model.num_parameters()
    space = search.space_of(model, budget, STEP, DROPS)
    each = width - -(-(space.whole - budget) // (space.neuron * n))
    ranked = importance.argsort(dim=1, descending=True, stable=True)
    return space, ranked, {NOTHING: (width,) * n, BY_BLOCKS: by_blocks, BY_NEURONS: (each,) * n}


def _proxy(model: PreTrainedModel, text: Tensor, ranked: Tensor) -> Callable[[Plan], float]:
    """Plan -> loss on a little text, in nats a token."""
    def score(plan: Plan) -> float:
        with structured.putting_back(model):
            search.cut(model, plan, ranked)
            return measure.perplexity(model, text, PROXY_LENGTH).nll

    return score
