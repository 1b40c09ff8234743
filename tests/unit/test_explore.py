"""`explore`: what is drawn is what is said, checked against PyTorch and by hand; sliders only for people."""

from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from course_utils import explore, formats


@pytest.fixture
def axes():
    fig, ax = plt.subplots()
    yield ax
    plt.close(fig)


@pytest.mark.parametrize("format, dtype", [
    ("BF16", torch.bfloat16), ("FP16", torch.float16), ("FP8 E5M2", torch.float8_e5m2)])
@pytest.mark.parametrize("number", [0.1, -3.0, 0.0])
def test_a_number_its_bits_and_its_neighbours(axes, format, dtype, number):
    said = explore.draw_number(axes, format, number, 0)
    kept = torch.tensor(number).to(dtype)
    bits = said.partition(" is ")[2].partition(",")[0].replace(" ", "")
    assert len(bits) == 8 * kept.element_size()
    whole = {1: torch.uint8, 2: torch.int16}[kept.element_size()]
    assert int(bits, 2) == kept.view(whole).item() % 2 ** len(bits)
    assert f"which means {kept.item():.6g};" in said
    assert "".join(text.get_text() for text in axes.texts)[: len(bits)] == bits
    every = torch.arange(2 ** len(bits)).to(whole).view(dtype).double()
    every = every[every.isfinite()].unique()  # sorted
    place = torch.searchsorted(every, kept.double()).item()
    assert said.endswith(f"beside it lie {every[place - 1]:.6g} and {every[place + 1]:.6g}.")


def test_all_neighbours_of_all_numbers_of_a_small_format():
    every = sorted({explore.number_of(code, formats.E2M1) for code in range(16)})
    for code in range(16):
        place = every.index(explore.number_of(code, formats.E2M1))
        assert explore.neighbours(code, formats.E2M1, 2) == every[max(0, place - 2) : place + 3]


def test_one_bit_turned_over(axes):
    assert "1 01111 0000000000, which means -1;" in explore.draw_number(axes, "FP16", 1.0, 1)
    said = explore.draw_number(axes, "FP16", 1.0, 2)  # the top of the exponent: infinity has no neighbours
    assert said == "1 in FP16, bit 2 turned over, is 0 11111 0000000000, which means inf."
    assert "turned" not in explore.draw_number(axes, "FP8 E4M3", 1.0, 9)  # there is no ninth bit


def test_rounding_by_hand(axes):
    """The scale is 3.5 / 3.5 = 1, and only -3.5 moves, to -4: 0.5 of sqrt(3.5^2 + 3^2 + 1) is 10.6 %."""
    weight = torch.tensor([[-3.5, 3.0, 1.0, 0.0]])
    said = explore.draw_rounding(axes, weight, 3, 4)
    assert said.startswith("3 bits in groups of 4: 7.000 bits a weight")  # 3, and a quarter of a scale's 16
    assert "error of 10.6 %" in said
    before, after = (line.get_ydata().tolist() for line in axes.lines)
    assert before == weight[0].tolist() and after == [-4.0, 3.0, 1.0, 0.0]


def test_blocks_by_hand(axes):
    """Two requests of 2 + 4 tokens, 3 blocks of 4: one alone takes 4 steps; both at once do not fit."""
    said = explore.draw_blocks(axes, [(2, 4), (2, 4)], 12, 4, 1)
    assert said.startswith("Blocks of 4 tokens, at most 1 at once: 8 steps")
    assert said.endswith("preemptions: 0.")
    assert explore.draw_blocks(axes, [(2, 7), (2, 7)], 12, 4, 2).endswith("preemptions: 1.")


def test_every_state_can_be_drawn():
    plt.close("all")
    for format in formats.FLOATS:
        for number in (-0.1, 0, 70000.0):
            for flip in (0, 1, 2, 16):
                state = {"format": format, "number": number, "flip": flip}
                said = explore.as_html(explore.draw_number, state)
                assert said.startswith('<img alt="') and "data:image/png;base64," in said
    assert not plt.get_fignums()


STATES = [{"format": "FP16", "number": 1, "flip": 0}, {"format": "BF16", "number": 1, "flip": 0}]
CONTROLS = {"format": ["FP16", "BF16"], "number": [1, 2], "flip": range(3)}


def shown():
    InteractiveShell.instance()
    with capture_output() as captured:
        explore.explore(explore.draw_number, STATES, **CONTROLS)
    assert not plt.get_fignums()
    return captured.outputs


def test_a_notebook_that_runs_by_itself_gets_a_still_picture(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    picture, caption = shown()
    assert set(picture.data) == {"image/png", "text/plain"}
    assert "1 in FP16" in picture.metadata["image/png"]["alt"]
    assert "1 in BF16" in caption.data["text/markdown"]


def test_somebody_at_a_notebook_gets_sliders(monkeypatch):
    kernel = SimpleNamespace(kernel=True, user_ns={})
    monkeypatch.setattr(explore, "get_ipython", lambda: kernel)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert not explore.somebody_is_here()
    monkeypatch.setenv("JPY_SESSION_NAME", "01_formats.ipynb")
    (output,) = shown()
    assert {"application/vnd.jupyter.widget-view+json", "image/png"} <= set(output.data)


def test_a_slider_draws_anew():
    box = explore.with_sliders(explore.draw_number, STATES[0], CONTROLS)
    *controls, picture = box.children
    assert [control.description for control in controls] == ["format", "number", "flip"]
    before = picture.value
    controls[2].value = 1
    assert picture.value != before and "which means -1;" in picture.value


@pytest.mark.parametrize("controls", [{"format": ["FP16"]}, {**CONTROLS, "flip": [1]},
                                      {**CONTROLS, "more": [1]}])
def test_a_state_that_the_controls_do_not_offer_is_refused(controls):
    with pytest.raises(ValueError, match="do not agree on"):
        explore.explore(explore.draw_number, STATES, **controls)
