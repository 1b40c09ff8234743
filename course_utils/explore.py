"""Pictures to play with: sliders where somebody sits at the notebook, a still picture everywhere else.

A function `draw_...` draws one state of something into a matplotlib axes and says in one sentence what is
seen. `explore` puts sliders around such a function. A notebook that runs by itself (nbval, papermill), the
web site and viewers get a still picture of several states, with the sentences as its alt text.
"""

import base64
import html
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import torch
from IPython import get_ipython
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from course_utils import formats, plots
from course_utils.kvcache import trace
from course_utils.kvcache.block_tables import BlockAllocator
from course_utils.quantize import affine

if TYPE_CHECKING:
    from ipywidgets import VBox

Draw = Callable[..., str]  # draw(axes, **state) -> one sentence that says what is seen
HEIGHT = 2.6  # inches of one state's picture
WIDGET = "application/vnd.jupyter.widget-view+json"


def explore(draw: Draw, still: Sequence[Mapping[str, Any]], **controls: Sequence[Any]) -> None:
    """Show a picture with a slider for each of its settings; a still picture where nobody can move them.

    Args:
        draw: draws one state into the axes that it gets first, and returns a sentence about it.
        still: the states of the still picture; the sliders begin with the first one.
        controls: setting -> the values it may take, those of the states among them. A list of words is
            chosen from a menu, anything else by a slider.

    Raises:
        ValueError: a state sets something else than the controls, or to a value they do not offer.
    """
    for state in still:
        if wrong := [name for name in {*state, *controls}
                     if name not in state or state[name] not in controls.get(name, ())]:
            raise ValueError(f"the state {dict(state)} and the controls do not agree on {sorted(wrong)}")
    fig, sentences = still_picture(draw, still)
    if somebody_is_here():
        # The same output holds both: the still one is what viewers show of a notebook saved with sliders.
        data, metadata = plots.bundle(fig, " ".join(sentences))
        plt.close(fig)
        data[WIDGET] = {"version_major": 2, "version_minor": 0,
                        "model_id": with_sliders(draw, still[0], controls).model_id}
        display(data, metadata=metadata, raw=True)
    else:
        plots.show(fig, " ".join(sentences))


def somebody_is_here() -> bool:
    """Whether this kernel was started for a person at a notebook: by Jupyter's server, VS Code or Colab.

    Returns:
        False for a notebook that runs by itself, and outside of notebooks.
    """
    shell = get_ipython()
    if not hasattr(shell, "kernel"):
        return False
    # Jupyter's server tells the kernel which notebook it belongs to; nbclient, nbval and papermill do not.
    return ("JPY_SESSION_NAME" in os.environ or "google.colab" in sys.modules
            or "__vsc_ipynb_file__" in shell.user_ns)


def still_picture(draw: Draw, states: Sequence[Mapping[str, Any]]) -> tuple[Figure, list[str]]:
    """Several states, one above the other.

    Args:
        draw: as of `explore`.
        states: what to draw.

    Returns:
        The figure, and what each state's sentence says.
    """
    fig, axes = plt.subplots(len(states), 1, figsize=(7.5, HEIGHT * len(states)), squeeze=False)
    return fig, [draw(ax, **state) for ax, state in zip(axes.flat, states, strict=True)]


def with_sliders(draw: Draw, first: Mapping[str, Any], controls: Mapping[str, Sequence[Any]]) -> "VBox":
    """The picture of one state under the controls that change it.

    Args:
        draw: as of `explore`.
        first: the state to begin with.
        controls: as of `explore`.

    Returns:
        A widget.
    """
    import ipywidgets as widgets

    def control(name: str, values: Sequence[Any]) -> widgets.Widget:
        words = all(isinstance(value, str) for value in values)
        kind = widgets.Dropdown if words else widgets.SelectionSlider
        return kind(options=[(str(value), value) for value in values], value=first[name],
                    description=name.replace("_", " "), style={"description_width": "initial"})

    chosen = {name: control(name, values) for name, values in controls.items()}
    picture = widgets.HTML()

    def redraw(change: object = None) -> None:
        picture.value = as_html(draw, {name: widget.value for name, widget in chosen.items()})

    for widget in chosen.values():
        widget.observe(redraw, names="value")
    redraw()
    return widgets.VBox([*chosen.values(), picture])


def as_html(draw: Draw, state: Mapping[str, Any]) -> str:
    """The picture of one state as HTML, its sentence as alt text and below it.

    Args:
        draw: as of `explore`.
        state: what to draw.

    Returns:
        An img element and a paragraph.
    """
    fig, (sentence,) = still_picture(draw, [state])
    data, said = base64.b64encode(plots.png(fig)).decode(), html.escape(sentence)
    plt.close(fig)
    return (f'<img alt="{said}" src="data:image/png;base64,{data}" style="max-width: 100%">'
            f'<p aria-live="polite">{said}</p>')


# --- a number and its bits ----------------------------------------------------------------------------------

FIELDS = {"sign": plots.PALETTE["orange"], "exponent": plots.PALETTE["sky"],
          "mantissa": plots.PALETTE["yellow"]}  # fmt: skip


def draw_number(ax: Axes, format: str, number: float, flip: int) -> str:
    """Draw the bits of the nearest number that a format has, and that number between its neighbours.

    Args:
        ax: is drawn into.
        format: name of a format in `formats.FLOATS`.
        number: what is rounded.
        flip: which bit is turned over after that, counted from the left; 0, or more than there are: none.

    Returns:
        The bits, the number that they mean, and its neighbours.
    """
    layout = formats.FLOATS[format]
    code = int(formats.encode(torch.tensor(float(number)), layout))
    flipped = 1 <= flip <= layout.bits
    if flipped:
        code ^= 1 << (layout.bits - flip)
    value = number_of(code, layout)
    near = neighbours(code, layout)
    digits = max(6, 3 + round(0.3 * layout.mantissa_bits))  # enough to tell neighbours apart

    names = ["sign", *["exponent"] * layout.exponent_bits, *["mantissa"] * layout.mantissa_bits]
    wide, inside = 1 / max(layout.bits, 12), {"transform": ax.transAxes, "ha": "center"}
    for place, (name, bit) in enumerate(zip(names, f"{code:0{layout.bits}b}", strict=True), start=1):
        edge = 3 if flipped and place == flip else 0.8
        ax.add_patch(Rectangle(((place - 1) * wide, 0.7), wide, 0.3, transform=ax.transAxes,
                               edgecolor="black", facecolor=FIELDS[name], linewidth=edge, clip_on=False))
        ax.text((place - 0.5) * wide, 0.85, bit, va="center", **inside)
    for name in dict.fromkeys(names):
        ax.text((names.index(name) + names.count(name) / 2) * wide, 0.58, name, fontsize=9, **inside)
    ax.set(yticks=[], ylim=(0, 1), xlabel="numbers of the format; dot: the number that was rounded")
    ax.spines["left"].set_visible(False)
    ax.grid(visible=False)
    if near:
        ax.vlines(near, 0, 0.4, color=plots.PALETTE["blue"], linewidth=1.2)
        ax.vlines(value, 0, 0.4, color=plots.PALETTE["vermilion"], linewidth=4)
        if min(near) <= number <= max(near):
            ax.plot(number, 0.2, "o", color="black", markersize=5)
    else:
        ax.set(xticks=[], xlabel="no number, so no neighbours")
    bits = formats.bit_string(code, layout)
    ax.set_title(f"{number:g} in {format}" + f", bit {flip} turned over" * flipped + f": {value:.{digits}g}")
    below = [other for other in near if other < value][-1:]
    above = [other for other in near if other > value][:1]
    beside = " and ".join(f"{other:.{digits}g}" for other in below + above)
    return (f"{number:g} in {format}" + f", bit {flip} turned over," * flipped + f" is {bits}, which means "
            f"{value:.{digits}g}" + f"; beside it lie {beside}" * bool(beside) + ".")


def number_of(code: int, layout: formats.FloatFormat) -> float:
    """What the bits of one number mean.

    Args:
        code: its bits.
        layout: the format.

    Returns:
        The number, which float32 holds exactly.
    """
    return formats.decode(torch.tensor(code), layout).item()


def neighbours(code: int, layout: formats.FloatFormat, count: int = 4) -> list[float]:
    """The numbers of a format around one of them.

    Args:
        code: its bits.
        layout: the format.
        count: how many numbers on each side; fewer where the format ends.

    Returns:
        Numbers in rising order, with the one itself; [] when the bits mean infinity or NaN.
    """
    minus = 1 << (layout.bits - 1)  # sign and magnitude: the codes of negative numbers run backwards
    place = minus - code if code >= minus else code
    if abs(place) > layout.largest_code:
        return []
    places = range(max(place - count, -layout.largest_code), min(place + count, layout.largest_code) + 1)
    return [number_of(minus - other if other < 0 else other, layout) for other in places]


# --- a matrix in few bits -----------------------------------------------------------------------------------


def draw_rounding(ax: Axes, weight: Tensor, bits: int, group: int) -> str:
    """Draw the first weights of a matrix before and after rounding, and say what it does to all of them.

    Args:
        ax: is drawn into.
        weight: [out, in].
        bits: of each integer.
        group: neighbours in a row that share a scale.

    Returns:
        The error of the whole matrix, and the bits that a weight takes with its share of the scale.
    """
    scheme = affine.Scheme(bits, group)
    rounded = affine.fake_quantize(weight, scheme)
    error = 100 * ((rounded - weight).norm() / weight.norm()).item()
    takes = affine.bits_per_weight(scheme, weight.shape[1], len(weight))
    before, after = weight[0, :64].cpu(), rounded[0, :64].cpu()
    places = range(len(before))
    ax.vlines(places, before, after, color=plots.PALETTE["vermilion"], linewidth=1.5)
    ax.plot(places, before, "o", markersize=4, color=plots.PALETTE["blue"], label="weight")
    ax.plot(places, after, "_", markersize=7, color="black", label="rounded")
    ax.set(xlabel="weight of the first row", title=f"{bits} bits, groups of {group}: error {error:.1f} %")
    ax.legend(fontsize=9, loc="upper right", ncols=2)
    return (f"{bits} bits in groups of {group}: {takes:.3f} bits a weight with the scales, and an error of "
            f"{error:.1f} % of the matrix.")


# --- blocks of a serving memory -----------------------------------------------------------------------------


def draw_blocks(ax: Axes, requests: Sequence[tuple[int, int]], slots: int, block_size: int,
                at_once: int) -> str:
    """Draw how much of a paged memory is in use at each step while it serves requests.

    Args:
        ax: is drawn into.
        requests: pairs (prompt tokens, output tokens), all waiting at the start.
        slots: tokens that the memory holds.
        block_size: tokens of a block.
        at_once: most requests that run at once.

    Returns:
        The steps, the share of the memory that holds tokens, and how often a request had to give way.
    """
    usage = trace.serve(BlockAllocator(slots // block_size, block_size), requests, at_once)
    stored, reserved, running, _ = zip(*usage.samples, strict=True)
    steps = range(1, usage.steps + 1)
    in_use = [tokens / block_size for tokens in reserved]
    ax.fill_between(steps, in_use, color=plots.PALETTE["orange"], label="blocks in use")
    ax.fill_between(steps, [tokens / block_size for tokens in stored], color=plots.PALETTE["blue"],
                    label="filled with tokens")
    ax.axhline(slots // block_size, color="black", linewidth=1, linestyle="--", label="all blocks")
    ax.set(xlabel="step", ylabel=f"blocks of {block_size}", ylim=(0, 1.25 * (slots // block_size)),
           title=f"blocks of {block_size}, at most {at_once} requests at once")
    ax.legend(fontsize=9, loc="upper right", ncols=3)
    return (f"Blocks of {block_size} tokens, at most {at_once} at once: {usage.steps:,} steps, "
            f"{usage.used:.0%} of the memory used while somebody waits, preemptions: {usage.preemptions}.")
