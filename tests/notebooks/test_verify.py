"""The nbval plug-in: numbers within a cell's tolerance pass, everything else must be the same."""

import os
import re
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from authoring.execute import errors, execute
from authoring.verify import differences, verify, within


@pytest.mark.parametrize(
    ("reference", "text", "tolerance", "same"),
    [
        ("perplexity 26.50", "perplexity 26.90", 0.02, True),
        ("perplexity 26.50", "perplexity 27.10", 0.02, False),
        ("perplexity 26.50", "perplexities 26.50", 0.02, False),
        ("a  1.0\nb 2.0", "a 1.0   b   2.0", 0.02, True),
        ("a 1.0", "a 1.0 2.0", 0.02, False),
        ("1.0 2.0", "2.0 1.0", 0.02, False),
        ("134,515,008 parameters", "134,515,100 parameters", 0.001, True),
        ("134,515,008 parameters", "144,515,008 parameters", 0.001, False),
        ("1.23e-05", "1.24e-05", 0.02, True),
        ("1.23e-05", "1.23e-06", 0.02, False),
        ("3.2x faster", "3.25x faster", 0.02, True),
        ("-0.5", "0.5", 0.02, False),
        ("INT8 is 1.0", "INT4 is 1.0", 10.0, False),
        ("float32: 1", "float16: 1", 10.0, False),
        ("nan", "1.0", 10.0, False),
        ("inf", "inf", 0.0, True),
        ("0", "0", 0.0, True),
        ("0", "0.001", 0.5, False),
        ("true", "True", 0.5, False),
        ("<td>26.5</td>", "<td>26.6</td>", 0.01, True),
        ("C1: false as printed. 52.1 GB", "C1: true as printed. 52.1 GB", 0.5, False),
    ],
)
def test_within(reference, text, tolerance, same):
    assert within(reference, text, tolerance) is same


def test_absolute_tolerance_for_numbers_near_zero():
    assert within("error 0.0001", "error -0.0002", 0.01, atol=0.001)
    assert not within("error 0.0001", "error -0.0022", 0.01, atol=0.001)


def stream(text):
    return new_output("stream", name="stdout", text=text)


def cell(id, source, output, **metadata):
    return new_code_cell(source, id=id, outputs=[output], execution_count=1, metadata=metadata)


def shown(**data):
    return new_output("display_data", data={mime.replace("_", "/"): text for mime, text in data.items()})


TOLERANT = {"course": {"tolerance": 0.02}}
PASSED = "sample.x: passed (3 cases)"
DISPLAY = "from IPython.display import display\ndisplay({}, raw=True, metadata={})"
CHECK = DISPLAY.format({"text/plain": PASSED}, {"course": {"status": "passed"}})
PICTURE = DISPLAY.format({"image/png": "AAAA", "text/plain": "a picture"}, {"image/png": {"alt": "text"}})
RESULT = new_output("execute_result", data={"text/plain": "1.0"}, execution_count=9)
BAR = DISPLAY.format({"application/vnd.jupyter.widget-view+json": {}, "text/plain": "  50%"}, {})
CLOCK = "import time; print(time.time())"

PASS, FAIL = "passed", "failed"
CELLS = [
    (PASS, cell("same", "print('loss 1.000')", stream("loss 1.000\n"))),
    (PASS, cell("within", "print('loss 1.019')", stream("loss 1.000\n"), **TOLERANT)),
    (FAIL, cell("off", "print('loss 1.030')", stream("loss 1.000\n"), **TOLERANT)),
    (FAIL, cell("word", "print('gain 1.000')", stream("loss 1.000\n"), **TOLERANT)),
    (FAIL, cell("strict", "print('loss 1.001')", stream("loss 1.000\n"))),
    (PASS, cell("space", "print('loss   1.01')", stream("loss 1.00\n"), **TOLERANT)),
    (FAIL, cell("strict-space", "print('loss   1.00')", stream("loss 1.00\n"))),
    (FAIL, cell("less", "pass", stream("loss 1.000\n"), **TOLERANT)),
    (FAIL, cell("more", "print('loss 1.000'); 3", stream("loss 1.000\n"), **TOLERANT)),
    (PASS, cell("timing", CLOCK, stream("1.0\n"), tags=["nbval-ignore-output"])),
    (PASS, cell("stderr", "import sys; print('x', file=sys.stderr); print('y')", stream("y\n"))),
    (PASS, cell("progress-bar", f"print('y')\n{BAR}", stream("y\n"))),
    (PASS, cell("result", "1.01", RESULT, **TOLERANT)),
    (FAIL, cell("strict-result", "1.01", RESULT)),
    (PASS, cell("check", CHECK, shown(text_plain=PASSED))),
    (FAIL, cell("failed-check", CHECK, shown(text_plain="sample.x: not attempted."))),
    (PASS, cell("picture", PICTURE, shown(image_png="BBBB", text_plain="a picture"))),
    (FAIL, cell("caption", PICTURE, shown(image_png="BBBB", text_plain="another picture"))),
    (FAIL, new_code_cell("1", id="never-executed")),
    (FAIL, cell("raises", "1 / 0", stream("x"), **TOLERANT)),
]
COLUMNS = os.environ | {"COLUMNS": "200"}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What pytest said of each cell of a notebook made of CELLS."""
    folder = tmp_path_factory.mktemp("verify")
    nbformat.write(new_notebook(cells=[c for _, c in CELLS]), folder / "cells.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-p", "authoring.verify"]
    command += ["-p", "no:cacheprovider", "--rootdir", str(folder), "-vv", "cells.ipynb"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=COLUMNS)
    found = re.findall(r"::Cell (\d+) (PASSED|FAILED|ERROR)", done.stdout)
    assert len(found) == len(CELLS), done.stdout
    return {CELLS[int(n)][1].id: PASS if how == "PASSED" else FAIL for n, how in found}


@pytest.mark.parametrize(("expected", "id"), [(expected, cell.id) for expected, cell in CELLS])
def test_pytest_run(outcomes, expected, id):
    assert outcomes[id] == expected


def test_comparing_executed_notebooks_agrees_with_pytest(outcomes):
    reference = new_notebook(cells=[c for _, c in CELLS])
    done = execute(reference, None, keep_going=True)
    found = differences(reference, done.notebook)
    assert {id: FAIL if found.get(id) else PASS for id in outcomes} == outcomes
    assert found["off"] == "kept 'loss 1.000', now 'loss 1.030'"
    assert "timing" not in found
    assert list(errors(done.notebook)) == ["raises"] and "cell 'raises': ZeroDivisionError" in done.error


def test_names_of_devices_count_as_equal():
    def notebook(text):
        return new_notebook(cells=[cell("where", "", stream(text), **TOLERANT)])

    kept = notebook("perplexity 26.50, window 512, cpu")
    assert differences(kept, notebook("perplexity 26.51, window 512, cuda:0")) == {"where": ""}
    assert differences(kept, notebook("perplexity 36.51, window 512, cuda:0"))["where"]
    assert differences(kept, new_notebook(cells=[]))["where"] == "was not executed"


def test_standard_output_in_pieces_is_compared_as_one():
    pieces = [stream("a 1\n"), new_output("stream", name="stderr", text="careful\n"), stream("b 2\n")]
    executed = cell("where", "", pieces[0])
    executed.outputs = pieces
    kept = cell("where", "", stream("a 1\nb 2\n"))
    assert differences(new_notebook(cells=[kept]), new_notebook(cells=[executed])) == {"where": ""}


@pytest.mark.slow
def test_verify_passes_and_a_figure_off_by_more_than_the_tolerance_fails(synced, capfd):
    assert verify(synced) == 0
    path = synced.root / "solutions/90_sample.ipynb"
    text = path.read_text()
    path.write_text(text.replace("mean 1.250", "mean 1.260"))  # 0.8 %, and the tolerance is 2 %
    assert verify(synced, ["90"]) == 0
    path.write_text(text.replace("mean 1.250", "mean 1.290"))  # 3 %
    assert verify(synced) == 1
    assert "mean 1.290" in capfd.readouterr().out


@pytest.mark.slow
def test_verify_takes_parameters(synced, capfd):
    assert verify(synced, parameters={"DEVICE": "cuda"}) == 1  # the lesson prints its device
    assert "using cpu cuda the embedded model" in capfd.readouterr().out
    assert sorted(path.name for path in (synced.root / "solutions").iterdir()) == ["90_sample.ipynb"]


def test_verify_without_solutions_says_what_to_do(unsynced):
    with pytest.raises(ValueError, match="run `course sync` first"):
        verify(unsynced)
