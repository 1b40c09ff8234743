"""Tables put results of every kind side by side."""

import pandas as pd
import pytest

from course_utils import measure
from tests.unit.measure.common import Words


def test_table_puts_results_side_by_side(model, tokens):
    result = measure.perplexity(model, tokens, window=64)
    nbytes = measure.weight_bytes(model)
    frame = measure.table({"FP32": (result, nbytes, {"bits": 32}), "again": (result, nbytes, {"bits": 16})})
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.index) == ["FP32", "again"]
    assert list(frame.columns) == ["perplexity", "tokens scored", "window", "weights (MB)", "bits"]
    assert frame.loc["FP32", "perplexity"] == round(result.value, 2)
    everything = [
        measure.machine_card(), measure.latency(lambda: None, 0, 2), measure.accuracy([1], [1]),
        measure.bandwidth(nbytes=8_000_000, repeats=1), measure.matmul_speed(n=64, repeats=1),
        measure.generation_speed(model, Words(), 8, 2, 1), measure.PeakMemory(1, 2, 3),
    ]  # fmt: skip
    for one in everything:
        assert len(measure.table([one])) == 1


def test_a_sentence_in_a_table_is_shown_whole():
    note = "not installed. Install it with: course engines install onnxruntime-genai"
    table = measure.table({"an engine": {"note": note}})
    assert note in table._repr_html_() and note in repr(table)


def test_table_refuses_what_has_no_row():
    with pytest.raises(TypeError, match="int"):
        measure.table([3])
    with pytest.raises(ValueError, match="row"):
        measure.table([])
