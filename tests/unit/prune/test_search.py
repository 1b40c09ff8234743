"""Searching for what to cut: every plan fits, cuts what it says, and the search finds what is there."""

import random

import pytest
import torch

from course_utils.prune import search, structured
from tests.unit.kvcache.common import tiny_llama, tokens


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def ranked(model):
    importance = structured.neuron_importance(model, lambda: model.base_model(tokens()))
    return importance.argsort(dim=1, descending=True)


def space(blocks=8, drops=3, room=0.8):
    return search.Space(blocks, 24, 2, 10, 300, 1000 + 300 * blocks, int(1000 + room * 300 * blocks), drops)


def left(plan, s):
    return search.parameters_left(plan, s.whole, s.block, s.neuron, s.width)


@pytest.mark.parametrize("plan", [(48, 48), (48, 0), (0, 48), (17, 48), (5, 9)])
def test_a_plan_cuts_what_it_says(model, ranked, plan):
    s = search.space_of(model, 20_000, step=4, drops=1)
    ids = tokens()
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with structured.putting_back(model):
            search.cut(model, plan, ranked)
            assert sum(parameter.numel() for parameter in model.parameters()) == left(plan, s)
            changed = not torch.equal(model(input_ids=ids).logits, before)
            widths = [layer.in_features for layer in structured.mlp_outputs(model)]
        assert torch.equal(model(input_ids=ids).logits, before)
    assert changed == (plan != (48, 48)) and widths == [kept for kept in plan if kept]


def test_a_cut_of_neurons_is_the_cut_of_the_lesson_on_structured_pruning(model, ranked):
    kept = [sorted(row[:20].tolist()) for row in ranked]
    answers = []
    for cut in (lambda: search.cut(model, (20, 20), ranked), lambda: structured.keep_neurons(model, kept)):
        with structured.putting_back(model), torch.no_grad():
            cut()
            answers.append(model(input_ids=tokens()).logits)
    assert torch.equal(*answers)


def test_every_plan_fits_and_no_step_more_would():
    s, chance = space(), random.Random(0)
    plan = search.random_plan(s, chance)
    for _ in range(300):
        for candidate in (plan, search.random_plan(s, chance)):
            room = s.budget - left(candidate, s)
            assert 0 <= room and candidate.count(0) <= s.drops
            whole = all(kept == 0 or kept > s.width - s.step for kept in candidate)
            assert room < s.step * s.neuron or whole
            assert all(0 <= kept <= s.width for kept in candidate)
        plan = search.mutated(plan, s, chance)


def test_a_budget_that_needs_blocks_to_go():
    s = space(blocks=3, drops=2, room=0.25)
    plan = search.fit((24, 24, 24), s, random.Random(0))
    assert 0 in plan and left(plan, s) <= s.budget


def test_both_searches_try_as_many_plans_and_repeat_themselves():
    def score(plan):
        return sum((kept - 24) ** 2 * (i + 1) for i, kept in enumerate(plan))

    for found in (search.by_chance, search.evolve):
        history = found(space(), score, 40, seed=5)
        assert len(history) == 40 and history == found(space(), score, 40, seed=5)
        assert all(value == score(plan) for plan, value in history)
        assert search.lowest(history)[1] == min(value for _, value in history)


def test_evolution_keeps_what_it_begins_with():
    start = search.random_plan(space(), random.Random(9))
    history = search.evolve(space(), lambda plan: float(plan != start), 20, seed=0, start=[start])
    assert history[0] == (start, 0.0) and search.lowest(history) == (start, 0.0)


def test_evolution_goes_down_where_the_lot_does_not():
    """Blocks weigh 1, 2, 3, ...: the first ones must become narrow. Eight seeds, all lower than by lot."""
    def score(plan):
        return sum((24 - kept) * (i + 1) ** 2 for i, kept in enumerate(plan))

    s = space(drops=0)
    for seed in range(8):
        lot, evolved = (search.lowest(found(s, score, 150, seed))[1]
                        for found in (search.by_chance, search.evolve))
        assert evolved < lot


def test_refused(model, ranked):
    with pytest.raises(ValueError, match="cannot be reached"):
        search.space_of(model, 100, step=4, drops=1)
    with pytest.raises(ValueError, match="3 blocks does not fit"):
        search.cut(model, (48, 48, 48), ranked)
    with pytest.raises(ValueError, match="all 2 blocks"):
        search.cut(model, (0, 0), ranked)
