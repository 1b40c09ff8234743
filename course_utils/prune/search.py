"""Searching for what to cut: which blocks go and how many MLP neurons each of the others keeps.

    space = space_of(model, budget, step=64)
    plan, score, history = evolve(space, lambda plan: proxy(plan), evaluations=64, seed=0)
    with structured.putting_back(model):
        cut(model, plan, ranked)

A plan is a tuple with one number a block: the neurons it keeps, or 0: the whole block goes, its attention
too. Blocks of unequal width run as they are, but no config says them: such a model is not saved.

Sources: E. Real et al., "Regularized Evolution for Image Classifier Architecture Search", arXiv 1802.01548,
for the tournament (there the oldest dies, here the one with the highest score); S. Muralidharan et al.,
"Compact Language Models via Pruning and Knowledge Distillation", arXiv 2407.14679, who search over depth and
width under a budget of parameters and then distill.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from course_utils.prune import depth
from course_utils.prune.structured import keep_columns, keep_rows, mlp_outputs
from course_utils.prune.structured.layout import MLP, family_of
from course_utils.quantize.layerwise import find_blocks

Plan = tuple[int, ...]
History = list[tuple[Plan, float]]


@dataclass(frozen=True)
class Space:
    """What may be cut, and how much must go.

    Attributes:
        blocks: of the whole model.
        width: neurons of each of its MLPs.
        step: neurons that are taken or given back at once.
        neuron: parameters of one neuron.
        block: parameters of one block with all its neurons.
        whole: parameters of the whole model.
        budget: a plan may leave so many parameters at most.
        drops: so many blocks may go at most.
    """

    blocks: int
    width: int
    step: int
    neuron: int
    block: int
    whole: int
    budget: int
    drops: int


def space_of(model: nn.Module, budget: int, step: int, drops: int) -> Space:
    """The space of a model.

    Args:
        model: a decoder of the Llama architecture, not cut yet.
        budget: parameters that may be left.
        step: neurons that are taken or given back at once.
        drops: so many blocks may go at most.

    Returns:
        The space.

    Raises:
        ValueError: the budget cannot be met, or the model is built in another way.
    """
    outputs, blocks = mlp_outputs(model), [block for _, block in find_blocks(model)]
    width = outputs[0].in_features
    neuron = sum(blocks[0].get_submodule(name).in_features for name in MLP[family_of(model)][0])
    neuron += outputs[0].out_features
    whole = sum(parameter.numel() for parameter in model.parameters())
    block = sum(parameter.numel() for parameter in blocks[0].parameters())
    space = Space(len(blocks), width, step, neuron, block, whole, budget, min(drops, len(blocks) - 1))
    smallest = (0,) * space.drops + (step,) * (len(blocks) - space.drops)
    least = parameters_left(smallest, whole, block, neuron, width)
    if not 0 < step < width or least > budget:
        raise ValueError(f"{budget:,} parameters cannot be reached: without {space.drops} blocks and with "
                         f"{step} of {width} neurons in the others {least:,} are left")
    return space


def parameters_left(plan: Plan, whole: int, block: int, neuron: int, width: int) -> int:
    """Parameters of a model that is cut to a plan.

    Args:
        plan: neurons that each block keeps; 0: the whole block goes.
        whole: parameters of the whole model.
        block: parameters of one block with all its neurons.
        neuron: parameters of one neuron.
        width: neurons of a whole block.

    Returns:
        Their number.
    """
    gone = sum(block if kept == 0 else (width - kept) * neuron for kept in plan)
    return whole - gone


def exchange(plan: Plan, giver: int, taker: int, step: int, width: int) -> Plan:
    """A plan of the same size: one block gives neurons to another.

    Nothing changes when the giver would keep none, when the taker would have more than the whole model's, or
    when one of them is a block that goes.

    Args:
        plan: neurons that each block keeps; 0: the whole block goes.
        giver: number of the block that loses them.
        taker: number of the block that gets them, another one.
        step: how many.
        width: neurons of a whole block.

    Returns:
        A new plan.
    """
    if plan[giver] <= step or plan[taker] == 0 or plan[taker] + step > width:
        return plan
    changes = {giver: plan[giver] - step, taker: plan[taker] + step}
    return tuple(changes.get(block, kept) for block, kept in enumerate(plan))


def fit(plan: Plan, space: Space, chance: random.Random) -> Plan:
    """Change a plan, step by step in blocks chosen by lot, until it just fits the budget.

    No block comes back by this. One more goes only where the others, as narrow as can be, are too many.

    Args:
        plan: any plan.
        space: with the budget.
        chance: where the lots come from.

    Returns:
        The plan within the budget to which no step can be added.
    """
    kept, room = list(plan), space.budget - _size(plan, space)
    while room < 0:
        wide = [i for i, width in enumerate(kept) if width > space.step]
        if not wide:
            gone = chance.choice([i for i, width in enumerate(plan) if width > 0])
            return fit(tuple(0 if i == gone else width for i, width in enumerate(plan)), space, chance)
        kept[chance.choice(wide)] -= space.step
        room += space.step * space.neuron
    while room >= space.step * space.neuron:
        narrow = [i for i, width in enumerate(kept) if 0 < width <= space.width - space.step]
        if not narrow:
            break
        kept[chance.choice(narrow)] += space.step
        room -= space.step * space.neuron
    return tuple(kept)


def random_plan(space: Space, chance: random.Random) -> Plan:
    """A plan by lot: how many blocks go and which, how wide the others are.

    Args:
        space: with the budget.
        chance: where the lots come from.

    Returns:
        A plan that fits.
    """
    gone = chance.sample(range(space.blocks), chance.randint(0, space.drops))
    steps = space.width // space.step
    widths = [space.width - space.step * chance.randint(0, steps // 2) for _ in range(space.blocks)]
    return fit(tuple(0 if i in gone else width for i, width in enumerate(widths)), space, chance)


def mutated(plan: Plan, space: Space, chance: random.Random) -> Plan:
    """A plan that differs a little: neurons move, a block goes, one comes back, or two change places.

    Args:
        plan: one that fits.
        space: with the budget.
        chance: where the lots come from.

    Returns:
        Another plan that fits, or now and then the same.
    """
    gone = [i for i, width in enumerate(plan) if width == 0]
    there = [i for i, width in enumerate(plan) if width > 0]
    changed, kind = list(plan), chance.choice(("neurons", "neurons", "drop", "return", "swap"))
    if kind == "drop" and len(gone) < space.drops:
        changed[chance.choice(there)] = 0
    elif kind == "return" and gone:
        changed[chance.choice(gone)] = space.width
    elif kind == "swap" and gone:
        changed[chance.choice(gone)], changed[chance.choice(there)] = space.width, 0
    elif len(there) > 1:
        giver, taker = chance.sample(there, 2)
        changed = exchange(plan, giver, taker, space.step * chance.randint(1, 4), space.width)
    return fit(tuple(changed), space, chance)


def by_chance(space: Space, score: Callable[[Plan], float], evaluations: int, seed: int) -> History:
    """Try plans that are drawn by lot.

    Args:
        space: with the budget.
        score: the lower, the better.
        evaluations: plans to try.
        seed: of the lots.

    Returns:
        Each plan with its score, in the order of trying.
    """
    chance = random.Random(seed)
    plans = [random_plan(space, chance) for _ in range(evaluations)]
    return [(plan, score(plan)) for plan in plans]


def evolve(space: Space, score: Callable[[Plan], float], evaluations: int, seed: int,
           start: Sequence[Plan] = (), population: int = 8, tournament: int = 3) -> History:
    """Try plans that descend from the better ones tried before.

    Args:
        space: with the budget.
        score: the lower, the better.
        evaluations: plans to try, those of the beginning included.
        seed: of the lots.
        start: plans to begin with; others by lot until the population is complete.
        population: so many plans live, those with the lowest scores so far.
        tournament: of so many living plans, chosen by lot, the one with the lowest score has the next child.

    Returns:
        As `by_chance`.
    """
    chance = random.Random(seed)
    first = [*start, *(random_plan(space, chance) for _ in range(population - len(start)))]
    history = [(plan, score(plan)) for plan in first[:evaluations]]
    while len(history) < evaluations:
        living = sorted(history, key=lambda tried: tried[1])[:population]
        parent, _ = min(chance.sample(living, min(tournament, len(living))), key=lambda tried: tried[1])
        child = mutated(parent, space, chance)
        history.append((child, score(child)))
    return history


def lowest(history: History) -> tuple[Plan, float]:
    """The plan with the lowest score.

    Args:
        history: of a search.

    Returns:
        The plan and its score.
    """
    return min(history, key=lambda tried: tried[1])


def cut(model: nn.Module, plan: Plan, ranked: Tensor) -> None:
    """Cut a model to a plan, in place. `structured.putting_back` undoes it.

    Args:
        model: a decoder of the Llama architecture, not cut yet.
        plan: for each of its blocks.
        ranked: integer [blocks, neurons], each block's neurons, the most important first.

    Raises:
        ValueError: the plan is of another number of blocks, or none would be left.
    """
    blocks = [block for _, block in find_blocks(model)]
    if len(plan) != len(blocks):
        raise ValueError(f"a plan for {len(plan)} blocks does not fit a model with {len(blocks)}")
    rows, columns = MLP[family_of(model)]
    depth.remove_blocks(model, [i for i, kept in enumerate(plan) if kept == 0])
    for block, kept, order in zip(blocks, plan, ranked, strict=True):
        if 0 < kept < ranked.shape[1]:
            neurons = sorted(order[:kept].tolist())
            for name in rows:
                block.set_submodule(name, keep_rows(block.get_submodule(name), neurons))
            block.set_submodule(columns, keep_columns(block.get_submodule(columns), neurons))


def _size(plan: Plan, space: Space) -> int:
    return parameters_left(plan, space.whole, space.block, space.neuron, space.width)
