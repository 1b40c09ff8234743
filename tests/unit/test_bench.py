"""`course bench`: how a bench is found, shown and kept."""

import json
import sys
import types

import pytest

from authoring import bench
from course_utils import records


def fake(monkeypatch, tmp_path, rows, **names):
    module = types.ModuleType("authoring.bench.pretend")
    module.TITLE = "Halving against doubling"
    module.bench = rows
    for name, value in names.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(bench, "names", lambda: ["pretend"])
    monkeypatch.setattr(records, "FOLDER", tmp_path)


def test_rows_are_shown_with_ratio_and_machine_and_kept(monkeypatch, tmp_path, capsys):
    rows = [{"what": "halve", "seconds": 2.0}, {"what": "double", "seconds": 0.5}]
    fake(monkeypatch, tmp_path, lambda: rows, RATIO_OF="seconds")
    assert bench.main() == 0
    shown = capsys.readouterr().out
    assert "Halving against doubling" in shown and "0.25" in shown and "CPU" in shown
    record = json.loads((tmp_path / "bench_pretend.json").read_text())
    assert record["results"]["rows"][1] == {"what": "double", "seconds": 0.5, "ratio": 0.25}
    assert {"cpu", "torch", "date", "commit"} <= set(record["provenance"])


def test_a_failing_bench_is_reported_and_keeps_nothing(monkeypatch, tmp_path, capsys):
    def fails():
        raise RuntimeError("engine not installed")

    fake(monkeypatch, tmp_path, fails)
    assert bench.main(["pretend"]) == 1
    assert "pretend: failed with RuntimeError: engine not installed" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_bench_without_rows_leaves_the_record_alone(monkeypatch, tmp_path):
    (tmp_path / "bench_pretend.json").write_text("{}")
    fake(monkeypatch, tmp_path, list)
    assert bench.main(["pretend"]) == 0
    assert (tmp_path / "bench_pretend.json").read_text() == "{}"


def test_unknown_bench_and_module_without_title():
    with pytest.raises(ValueError, match="no bench 'nothing'"):
        bench.load("nothing")


def test_every_bench_of_the_course_loads():
    for name in bench.names():
        module = bench.load(name)
        assert module.TITLE.strip() and callable(module.bench)


RUNS = {(4,): {"bits": 4}, (3,): {"bits": 3}, (2,): {"bits": 2}}


def test_an_interrupted_bench_goes_on_where_it_stopped(monkeypatch, tmp_path):
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    measured = []

    def measure(bits):
        measured.append(bits)
        if bits == 3 and measured.count(3) == 1:
            raise KeyboardInterrupt
        return {"error": 2.0**-bits}

    with pytest.raises(KeyboardInterrupt):
        bench.resume("bench_pretend", "Bits", RUNS, measure)
    rows = bench.resume("bench_pretend", "Bits", RUNS, measure)
    assert measured == [4, 3, 3, 2]
    assert rows == [{"bits": bits, "error": 2.0**-bits} for bits in (4, 3, 2)]
    assert records.load("bench_pretend")["results"] == {"title": "Bits", "rows": rows}


def test_a_row_that_was_known_already_is_not_lost(monkeypatch, tmp_path):
    """An earlier row is measured anew, because its settings changed; a later one is known."""
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    records.save("bench_pretend", {"title": "Bits", "rows": [{"bits": 2, "error": 0.25}]})

    def stops_after_the_first(bits):
        if bits == 3:
            raise KeyboardInterrupt
        return {"error": 2.0**-bits}

    with pytest.raises(KeyboardInterrupt):
        bench.resume("bench_pretend", "Bits", RUNS, stops_after_the_first)
    kept = records.load("bench_pretend")["results"]["rows"]
    assert kept == [{"bits": 4, "error": 2.0**-4}, {"bits": 2, "error": 0.25}]
