"""One look for the course's pictures, and one way to show them: with alt text."""

import base64
import io

import matplotlib
import matplotlib.pyplot as plt
from IPython.display import Markdown, display
from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with every common kind of colour blindness.
# https://jfly.uni-koeln.de/color/
PALETTE = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "yellow": "#F0E442",
    "black": "#000000",
}
SHORTEST_ALT = 15  # characters: less cannot say what a picture shows


def style() -> None:
    """Set the course's style for all figures made from here on. Call it once, after the imports."""
    matplotlib.rcdefaults()
    plt.rcParams.update(
        {
            "figure.figsize": (7.5, 4.0),  # inches: one notebook column
            "figure.dpi": 100,  # pixels an inch: keeps a notebook small
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": matplotlib.cycler(color=PALETTE.values()),
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": "#dddddd",
            "font.size": 11,
            "axes.titlesize": 12,
            "axes.titlelocation": "left",
            "legend.frameon": False,
            "lines.linewidth": 2,
        }
    )


def show(fig: Figure, alt: str) -> None:
    """Show a matplotlib figure as a PNG with alt text, then close it.

    The alt text goes into the output's metadata ({"image/png": {"alt": ...}}), which nbconvert's classic
    template and Jupyter Book read. JupyterLab 4 does not put it on the image, so it is also shown under
    the picture, where everybody and every screen reader finds it.

    Args:
        fig: the figure.
        alt: what the picture shows, for somebody who cannot see it; at least 15 characters.

    Raises:
        TypeError: fig is not a figure.
        ValueError: alt says nothing.
    """
    data, metadata = bundle(fig, alt)
    display(data, metadata=metadata, raw=True)
    display(Markdown(f"*Figure: {_escape(metadata['image/png']['alt'])}*"))
    plt.close(fig)


def bundle(fig: Figure, alt: str) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """A figure as an output of a notebook has it.

    Args:
        fig: the figure.
        alt: as of `show`.

    Returns:
        Data and metadata of the output, by MIME type.

    Raises:
        TypeError: fig is not a figure.
        ValueError: alt says nothing.
    """
    if not isinstance(fig, matplotlib.figure.Figure):
        raise TypeError(f"show needs a matplotlib Figure (from plt.subplots()), not {type(fig).__name__}")
    alt = " ".join(alt.split()) if isinstance(alt, str) else ""
    if len(alt) < SHORTEST_ALT:
        raise ValueError(
            f"alt must say in {SHORTEST_ALT} characters or more what the picture shows, not {alt!r}"
        )
    data = {"image/png": base64.b64encode(png(fig)).decode(), "text/plain": f"Figure: {alt}"}
    return data, {"image/png": {"alt": alt}}


def png(fig: Figure) -> bytes:
    """The figure as PNG. The same figure gives the same bytes: no date, no version inside.

    Args:
        fig: the figure.

    Returns:
        The content of a PNG file.
    """
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=fig.dpi, metadata={"Software": None})
    return buffer.getvalue()


def _escape(text: str) -> str:
    """Markdown's own characters, made harmless."""
    return "".join("\\" + c if c in "\\`*_$[]<>" else c for c in text)
