"""`plots`: alt text where tools read it and where people see it; the same picture gives the same bytes."""

import base64
import io

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from course_utils import plots

ALT = "A line that rises from one to three."


@pytest.fixture
def figure():
    plots.style()
    fig, ax = plt.subplots()
    ax.plot([1, 2, 3])
    ax.set(xlabel="step", ylabel="ms")
    yield fig
    plt.close(fig)


def shown(figure, alt=ALT):
    InteractiveShell.instance()  # display() publishes to it, as it does to a notebook
    with capture_output() as captured:
        plots.show(figure, alt)
    return captured.outputs


def test_alt_text_is_in_the_metadata_and_beside_the_picture(figure):
    picture, caption = shown(figure)
    assert picture.metadata == {"image/png": {"alt": ALT}}
    assert ALT in picture.data["text/plain"]
    assert "A line that rises" in caption.data["text/markdown"]


def test_the_picture_is_a_png_of_notebook_size(figure):
    from PIL import Image

    picture, _ = shown(figure)
    content = base64.b64decode(picture.data["image/png"])
    image = Image.open(io.BytesIO(content))
    assert image.format == "PNG"
    assert image.size == (750, 400)
    assert len(content) < 60_000
    assert not {"Software", "Creation Time", "date"} & set(image.info)


def test_the_same_figure_gives_the_same_bytes():
    def draw():
        plots.style()
        fig, ax = plt.subplots()
        ax.bar(["a", "b"], [1, 2], label="bars")
        ax.legend()
        content = plots.png(fig)
        plt.close(fig)
        return content

    assert draw() == draw()


def test_style_does_not_depend_on_what_was_set_before():
    plots.style()
    before = dict(plt.rcParams)
    plt.rcParams["font.size"] = 40
    plots.style()
    assert dict(plt.rcParams) == before


def test_show_closes_the_figure(figure):
    shown(figure)
    assert figure.number not in plt.get_fignums()


def test_line_breaks_and_markdown_in_alt_text_do_no_harm(figure):
    picture, caption = shown(figure, "Bars for *two*\n    formats: `a_b` and <c>, $3.")
    assert picture.metadata["image/png"]["alt"] == "Bars for *two* formats: `a_b` and <c>, $3."
    assert r"\*two\*" in caption.data["text/markdown"]
    assert "\n" not in caption.data["text/markdown"]


@pytest.mark.parametrize("alt", ["", "   ", "plot", "a figure", None, 5])
def test_alt_text_that_says_nothing_is_refused(figure, alt):
    with pytest.raises(ValueError, match="what the picture shows"):
        plots.show(figure, alt)


def test_only_figures_are_shown():
    with pytest.raises(TypeError, match="Figure"):
        plots.show([1, 2], ALT)


def test_palette_colours_differ_in_brightness_too():
    """Neighbours that are compared in one picture must differ for people who see no colour."""

    def brightness(color):
        r, g, b = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        return 0.2126 * r**2.2 + 0.7152 * g**2.2 + 0.0722 * b**2.2

    values = sorted(brightness(color) for color in plots.PALETTE.values())
    assert len(set(plots.PALETTE.values())) == 8
    assert values[-1] - values[0] > 0.7


def test_alt_text_reaches_the_html_of_nbconvert(figure):
    """The classic template puts the metadata's alt on the image; every template shows the caption."""
    import nbformat
    from nbconvert import HTMLExporter

    picture, caption = shown(figure)
    outputs = [
        nbformat.v4.new_output("display_data", data=part.data, metadata=part.metadata or {})
        for part in (picture, caption)
    ]
    cell = nbformat.v4.new_code_cell("plots.show(fig, alt)", outputs=outputs)
    notebook = nbformat.v4.new_notebook(cells=[cell])
    html, _ = HTMLExporter(template_name="classic").from_notebook_node(notebook)
    assert f'alt="{ALT}"' in html
    html, _ = HTMLExporter(template_name="lab").from_notebook_node(notebook)
    assert ALT in html
