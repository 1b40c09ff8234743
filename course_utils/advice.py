"""Which technique when? Options that fit what you have, ranked, each with reasons and its measured row.

The rows are records, made once (`course bench before_after`, on a GPU `course gpu-run`): the options are
those that were measured, and the figures are of that model on that machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from statistics import median
from typing import Any

from course_utils import compressed, measure, records
from course_utils.measure import Perplexity

HARDWARE = ("cpu", "gpu")
# What the formats of the GPU's record are called in the table of the CPU, where quality was measured.
ON_GPU = {"FP32": "FP32", "BF16": "BF16", "INT8 (bitsandbytes)": "INT8, bitsandbytes",
          "NF4 (bitsandbytes)": "NF4, bitsandbytes"}  # fmt: skip


@dataclass(frozen=True)
class Option:
    """One technique as it was measured.

    Attributes:
        name: of the technique.
        memory: bytes that model and computing take at the peak of generating, without Python and PyTorch.
        latency: seconds a token when decoding, one sequence. On the CPU: FP32's, times the ratio that was
            measured in turns with FP32. Rows of different minutes cannot be compared by the clock.
        quality: perplexity on held-out text, with its windows.
        minutes: that making it took; 0 where nothing is to be made.
        needs_data: whether it needs text.
        needs_training: whether weights are trained.
        row: the measured row.
        where: what the row is of: model and machine.
    """

    name: str
    memory: float
    latency: float
    quality: Perplexity
    minutes: float
    needs_data: bool
    needs_training: bool
    row: Mapping[str, Any] = field(repr=False, default_factory=dict)
    where: str = ""


@dataclass(frozen=True)
class Advice:
    """An option, judged by what somebody has.

    Attributes:
        option: the option.
        fits: whether all demands are met.
        reasons: for each demand in words whether it is met, with the measured figure.
        excess: how far it is from meeting them. 0 when it fits; otherwise a sum over the demands not met:
            log2(figure / limit) for memory and latency, 1 for each other.
    """

    option: Option
    fits: bool
    reasons: tuple[str, ...]
    excess: float

    def __str__(self) -> str:
        return f"{self.option.name}: {'; '.join(self.reasons)}"


# ---- what was measured -------------------------------------------------------------------------------------


def options(hardware: str) -> list[Option]:
    """What was measured for one kind of machine.

    Args:
        hardware: "cpu": the course's model on two cores, in PyTorch. "gpu": LLaMA-13B's shape on a recorded
            GPU; its weights are random, so quality is that of the course's model in the same format.

    Returns:
        The options in the order of the recipes; [] before anything was recorded.

    Raises:
        ValueError: hardware is of another kind.
    """
    if hardware not in HARDWARE:
        raise ValueError(f"hardware must be 'cpu' or 'gpu', not {hardware!r}: nothing else was measured")
    kept = records.load("bench_before_after")
    rows = {row["what"]: row for row in kept["results"]["rows"]} if kept else {}
    on_cpu = [_of_cpu(rows[name], rows["FP32"], kept) for name in compressed.RECIPES if name in rows]
    if hardware == "cpu":
        return on_cpu
    of_gpu, by_name = records.load("gpu_13b"), {option.name: option for option in on_cpu}
    rows = of_gpu["results"]["rows"] if of_gpu else []
    return [_of_gpu(row, by_name[ON_GPU[row["format"]]], of_gpu) for row in rows
            if row["batch"] == 1 and ON_GPU.get(row["format"]) in by_name]


def _of_cpu(row: Mapping[str, Any], full: Mapping[str, Any], record: Mapping[str, Any]) -> Option:
    ratios = [a / b for a, b in zip(row["decode (s)"], row["decode (s) of FP32"], strict=True)]
    latency = median(full["decode (s) of FP32"]) * median(ratios)
    recipe = compressed.RECIPES[row["what"]]
    memory = 1e6 * (row["peak (MB)"] - row["process without it (MB)"])
    return Option(row["what"], memory, latency, Perplexity(**row["result"]),
                  row["seconds to make"] / 60, recipe.text != compressed.NO_TEXT, recipe.trains, row,
                  f"SmolLM2-135M, {record['provenance']['cpu']}, threads: {record['provenance']['threads']}")


def _of_gpu(row: Mapping[str, Any], same: Option, record: Mapping[str, Any]) -> Option:
    where = f"13B parameters, {record['provenance']['gpu']}; quality of SmolLM2-135M"
    return Option(same.name, 1e9 * row["peak GPU memory (GB)"], row["decode step (ms)"] / 1e3, same.quality,
                  0.0, False, False, row, where)


# ---- advice ------------------------------------------------------------------------------------------------


def advise(memory: float = math.inf, latency: float = math.inf, data: bool = True, training: float = math.inf,
           hardware: str = "cpu", among: Sequence[Option] | None = None) -> list[Advice]:
    """Rank the techniques for what somebody has.

    Those that fit come first, by quality; where no difference in quality is shown, the smaller memory decides
    (`ranked`). Those that do not fit follow, the nearest first.

    Args:
        memory: bytes that the model may take at the peak of generating, beside Python and PyTorch.
        latency: seconds that a token may take.
        data: whether there is text of the kind that the model will read.
        training: minutes there are for training; 0 rules out all that trains weights.
        hardware: "cpu" or "gpu", see `options`.
        among: the options; None: those measured on that hardware.

    Returns:
        All options, judged. The first one fits, or nothing does.

    Raises:
        TypeError: a limit is no number, or data is neither True nor False.
        ValueError: a limit is negative or NaN, or memory or latency 0; hardware is of another kind; or
            nothing was measured, or two options have the same name.
    """
    for name, value, least in (("memory", memory, "above 0"), ("latency", latency, "above 0"),
                               ("training", training, "0 or more")):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, not {value!r}")
        if not (value > 0 or value == 0 and name == "training"):
            raise ValueError(f"{name} must be {least}, not {value!r}")
    if not isinstance(data, bool):
        raise TypeError(f"data must be True or False, not {data!r}: is there text of the right kind?")
    known = options(hardware)
    among = known if among is None else list(among)
    if len({option.name for option in among}) < len(among):
        raise ValueError("two options have the same name: give each its own")
    if not among:
        raise ValueError(f"nothing was measured for {hardware!r}: `course bench before_after` measures")
    judged = {option.name: judge(option, memory, latency, data, training) for option in among}
    fitting = {name: one.option for name, one in judged.items() if one.fits}
    order = ranked({name: option.quality for name, option in fitting.items()},
                   {name: option.memory for name, option in fitting.items()})
    rest = sorted((one for one in judged.values() if not one.fits), key=lambda one: one.excess)
    return [judged[name] for name in order] + rest


def judge(option: Option, memory: float, latency: float, data: bool, training: float) -> Advice:
    """Does an option meet the demands?

    Args:
        option: the option.
        memory: as for `advise`.
        latency: as for `advise`.
        data: as for `advise`.
        training: as for `advise`.

    Returns:
        The verdict with its reasons.
    """
    limits = [(option.memory, memory, "{:,.0f} MB at the peak", 1e6),
              (option.latency, latency, "{:,.0f} ms a token", 1e-3)]  # fmt: skip
    reasons, excess, fits = [], 0.0, True
    for figure, limit, words, unit in limits:
        said = words.format(figure / unit)
        if figure > limit:
            excess, fits = excess + math.log2(figure / limit), False
            said += f", {_more((figure - limit) / unit)} than allowed"
        reasons.append(said)
    if option.needs_data:
        excess, fits = excess + (not data), fits and data
        reasons.append("needs text" + ("" if data else ", and there is none"))
    if option.needs_training:
        short = option.minutes > training
        excess, fits = excess + short, fits and not short
        reasons.append(f"trains weights for {option.minutes:.1f} minutes"
                       + (f", {_more(option.minutes - training, 1)} than there are" if short else ""))
    reasons.append(f"perplexity {option.quality.value:.2f}")
    return Advice(option, fits, tuple(reasons), excess)


def _more(figure: float, digits: int = 0) -> str:
    """A figure above 0 in words: one that would be rounded to 0 is not none."""
    least = 10**-digits
    return f"less than {least:g} more" if figure < least else f"{figure:,.{digits}f} more"


def summary(advice: Sequence[Advice]) -> str:
    """The advice in a few lines.

    Args:
        advice: what `advise` returned.

    Returns:
        The best option and the next two, or that nothing fits and what comes nearest.

    Raises:
        ValueError: there is no advice.
    """
    if not advice:
        raise ValueError("no option was judged: give what `advise` returned")
    fitting = [one for one in advice if one.fits]
    if not fitting:
        return f"Nothing fits. The nearest is {advice[0]} ({advice[0].option.where})."
    lines = [f"{place}. {one}" for place, one in enumerate(fitting[:3], start=1)]
    return "\n".join([*lines, f"({fitting[0].option.where})"])


def ranked(quality: Mapping[str, Perplexity], cost: Mapping[str, float]) -> list[str]:
    """Order models by quality, and by cost where no difference in quality is shown.

    The best of those left is the one with the lowest perplexity. It and all that are not shown to be worse
    form a group, ordered by cost. Then the same with the rest.

    Args:
        quality: name -> perplexity, all on the same windows.
        cost: name -> what is better small, such as bytes.

    Returns:
        All names, the best first. Where two cost the same, the order of `quality` stays.

    Raises:
        ValueError: two perplexities are of different texts.
    """
    left, order = quality, []
    while left:
        best = min(left, key=lambda name: left[name].nll)
        group = [name for name in left if not measure.compare(left[name], left[best]).shown]
        order += sorted(group, key=lambda name: cost[name])
        left = {name: result for name, result in left.items() if name not in group}
    return order


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The points that no other point beats: where less of one thing means more of the other.

    A point is beaten when another one is at most as large in both numbers and smaller in one.

    Args:
        points: name -> two numbers that are better small, such as (bytes, perplexity).

    Returns:
        The names of those that are not beaten, by their first number, then by their second. Equal points stay
        or go together, in the order in which they came.
    """
    front = [name for name, (x, y) in points.items()
             if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points.values())]
    return sorted(front, key=lambda name: points[name])
