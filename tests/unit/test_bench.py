"""`course bench`: how a bench is found, shown and kept."""

import json
import sys
import time
import types

import psutil
import pytest
import torch

from authoring import bench
from authoring.bench import waiting
from course_utils import records, threads
from course_utils.errors import CourseError


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


def test_rows_of_another_number_of_threads_are_not_joined(monkeypatch, tmp_path):
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    before = torch.get_num_threads()
    records.save("bench_pretend", {"title": "Bits", "rows": [{"bits": 4, "error": 1.0}]})
    text = (tmp_path / "bench_pretend.json").read_text()
    torch.set_num_threads(before + 1)
    try:
        with pytest.raises(CourseError, match=rf"threads {before} and not {before + 1}. Go on there"):
            bench.resume("bench_pretend", "Bits", RUNS, lambda bits: {"error": 2.0**-bits})
        assert (tmp_path / "bench_pretend.json").read_text() == text
        rows = bench.resume("bench_pretend", "Bits", {(4,): {"bits": 4}}, lambda bits: {})
        assert rows == [{"bits": 4, "error": 1.0}]  # nothing is missing: it is shown
    finally:
        torch.set_num_threads(before)


# ---- waiting -----------------------------------------------------------------------------------------------


def test_busy_processes_keep_cores_busy_and_end_with_the_block():
    with waiting.busy(2) as started:
        before = [process.cpu_times().user for process in started]
        time.sleep(0.5)
        assert all(process.cpu_times().user > past for process, past in zip(started, before, strict=True))
    assert not any(psutil.pid_exists(process.pid) for process in started)


def test_rows_pool_the_turns_and_compare_with_the_default_alone(monkeypatch):
    monkeypatch.setattr(waiting, "WORKS", ("work",))

    def turns(*samples):
        return [waiting.Turn(list(seconds), others=seconds[0]) for seconds in samples]

    found = {waiting.DEFAULT: {("work", "idle"): turns((0.1, 0.2), (0.2, 0.3)),
                               ("work", "busy"): turns((0.4, 0.4), (0.6, 0.6))},
             "calm": {("work", "idle"): turns((0.3, 0.3)), ("work", "busy"): turns((0.3, 0.3))}}
    chosen = {waiting.DEFAULT: {}, "calm": {"LD_PRELOAD": "/some/where/lib.so"}}
    default, calm = waiting.rows(chosen, found)
    assert default["work, idle"] == pytest.approx(200) and default["work, busy"] == pytest.approx(500)
    assert default["ratio to the default alone"] == pytest.approx({"work, idle": 1, "work, busy": 2.5})
    assert calm["ratio to the default alone"] == pytest.approx({"work, idle": 1.5, "work, busy": 1.5})
    spread = default["spread"]["work, idle"]
    assert spread["turns"] == pytest.approx([150, 250]) and spread["samples"] == 4
    assert spread["cores of other programs"] == 0.2
    assert calm["variables"] == {"LD_PRELOAD": "lib.so"}, "no path of this machine in a record"


def test_a_candidate_sees_its_own_variables_only(monkeypatch):
    monkeypatch.setenv("KMP_BLOCKTIME", "77")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    found = waiting.environment({"GOMP_SPINCOUNT": "7"})
    assert found["GOMP_SPINCOUNT"] == "7"
    assert not {"KMP_BLOCKTIME", "OMP_WAIT_POLICY", threads.SWITCH} & set(found)


@pytest.mark.slow
def test_waiting_is_measured_in_processes_of_their_own(monkeypatch):
    monkeypatch.setattr(waiting, "PATIENCE", 0.0)
    monkeypatch.setattr(waiting, "TRIES", 1)
    found = waiting.measured({"passive": {"OMP_WAIT_POLICY": "PASSIVE"}}, rounds=1, seconds=0.01)
    assert set(found["passive"]) == {(work, load) for work in waiting.WORKS for load in ("idle", "busy")}
    for turns in found["passive"].values():
        assert len(turns) == 1 and len(turns[0].seconds) >= waiting.LEAST and min(turns[0].seconds) > 0


def test_a_measuring_process_that_ends_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("no folder, so the process finds no model")
    with pytest.raises(CourseError, match="a measuring process ended at '1 token'"):
        waiting.Worker({})
