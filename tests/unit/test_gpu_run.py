"""`course gpu-run`, tried on a CPU: its steps with tiny shapes, its limits, its report."""

import importlib
import json
import sys
import time

import psutil
import pytest
import torch

from authoring.gpu import kv_cache, model_13b, plan, report, results, run, sparse
from course_utils import records


@pytest.fixture
def settings(tmp_path):
    return plan.Settings(str(tmp_path / "out"), str(tmp_path), device="cpu", small=True)


@pytest.fixture
def kept(settings):
    settings.records.mkdir(parents=True)
    return results.Results(settings.records, "gpu_trial", title="a trial")


# ---- what a step keeps -----------------------------------------------------------------------------------


def test_each_row_is_on_the_disk_at_once_and_a_new_start_goes_on(settings, kept):
    kept.add(format="BF16", ms=1.5)
    record = records.load("gpu_trial", folder=settings.records)
    assert record["results"] == {"title": "a trial", "rows": [{"format": "BF16", "ms": 1.5}],
                                 "columns": ["format", "ms"]}
    again, calls = results.Results(settings.records, "gpu_trial"), []
    results.attempt(again, {"format": "BF16"}, lambda: calls.append("measured twice"))
    results.attempt(again, {"format": "INT8"}, lambda: again.add(format="INT8", ms=2.0))
    assert not calls and [row["format"] for row in again.rows] == ["BF16", "INT8"]
    assert again.more["title"] == "a trial"


def test_rows_can_be_measured_anew(kept):
    for lesson in ("a", "b", "c"):
        kept.add(lesson=lesson)
    kept.forget(lesson=["a", "c"])
    assert kept.rows == [{"lesson": "b"}]


def test_an_error_is_a_row_with_its_first_line(kept):
    def fails():
        raise RuntimeError("CUDA out of memory. Tried to allocate 50 GiB\nmore")

    results.attempt(kept, {"format": "FP32"}, fails)
    results.attempt(kept, {"format": "FP16"}, lambda: None)
    assert kept.rows == [
        {"format": "FP32", "error": "RuntimeError: CUDA out of memory. Tried to allocate 50 GiB"},
        {"format": "FP16", "error": "gave no result"},
    ]


# ---- the run ---------------------------------------------------------------------------------------------


def step(monkeypatch, tmp_path, name, source):
    """Put a step into the plan whose program is `source`; it sees `results` and `settings`."""
    package = tmp_path / "steps"
    package.mkdir(exist_ok=True)
    body = "\n".join("    " + line for line in source.splitlines())
    (package / f"{name}.py").write_text(f"TITLE = '{name}'\ndef measure_into(settings, results):\n{body}\n")
    runner = (
        "import importlib, sys\n"
        "from authoring.gpu import plan, results\n"
        f"sys.path.insert(0, {str(package)!r})\n"
        "settings = plan.Settings.from_json(sys.argv[2])\n"
        "module = importlib.import_module(sys.argv[1])\n"
        "module.measure_into(settings, results.Results(settings.records, 'gpu_' + sys.argv[1], title='t'))\n"
    )
    (package / "runner.py").write_text(runner)
    monkeypatch.setitem(plan.STEPS, name, plan.Step(name, f"gpu_{name}", 20))
    real = run.call
    monkeypatch.setattr(run, "call", lambda command, *rest, **more: real(
        [sys.executable, str(package / "runner.py"), *command[3:]], *rest, **more))


@pytest.fixture
def only_these(monkeypatch):
    monkeypatch.setattr(plan, "STEPS", {})
    for module in (run, report):
        monkeypatch.setattr(module, "STEPS", plan.STEPS)
    root = importlib.import_module("authoring").__path__[0].rsplit("/", 1)[0]
    monkeypatch.setenv("PYTHONPATH", root)


def test_a_hanging_or_failing_step_is_a_line_and_the_next_runs(monkeypatch, tmp_path, settings, only_these):
    hang = ("import subprocess, sys, time\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],\n"
            "                         start_new_session=True)\n"
            "results.add(child=child.pid)\n"
            "time.sleep(600)")
    step(monkeypatch, tmp_path, "hangs", hang)
    monkeypatch.setattr(run, "call", run.call)
    package = tmp_path / "steps"
    for name, source in (("fails", "results.add(a=1)\nraise ValueError('no such kernel')"),
                         ("works", "results.add(a=2)")):
        (package / f"{name}.py").write_text(
            f"TITLE = '{name}'\ndef measure_into(settings, results):\n"
            + "\n".join("    " + line for line in source.splitlines()) + "\n")
        plan.STEPS[name] = plan.Step(name, f"gpu_{name}", 60)
    said = []
    lines = run.gpu_run(settings, minutes=3, limits={"hangs": 12}, say=said.append)
    assert [line["state"] for line in lines] == ["stopped at its limit", "failed", "done"]
    assert lines[1]["error"] == "ValueError: no such kernel"
    (row,) = records.load("gpu_hangs", folder=settings.records)["results"]["rows"]  # kept, though it hung
    time.sleep(0.2)
    assert not psutil.pid_exists(row["child"]) or psutil.Process(row["child"]).status() == "zombie"
    text = (settings.folder / "report.md").read_text()
    assert "no such kernel" in text and "stopped at its limit" in text
    assert json.loads((settings.folder / "report.json").read_text())["steps"] == lines


def test_without_time_left_steps_are_not_begun(monkeypatch, tmp_path, settings, only_these):
    step(monkeypatch, tmp_path, "never", "raise AssertionError")
    (line,) = run.gpu_run(settings, minutes=0.1, say=lambda text: None)
    assert line["state"] == "not begun: no time left"


def test_bad_options_are_refused_before_anything_runs(settings):
    with pytest.raises(ValueError, match="no step 'lesson': there are machine, lessons"):
        run.gpu_run(settings, minutes=1, only=["lesson"])
    with pytest.raises(ValueError, match="--record keeps results of a GPU"):
        run.gpu_run(settings, minutes=1, record=True)
    assert not settings.folder.exists()


# ---- the 13B step ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_format_gives_a_row_per_batch_and_the_bytes_fall(settings, kept, monkeypatch):
    monkeypatch.setattr(model_13b, "BATCHES", (1, 2))
    model_13b.measure_into(settings, kept)
    rows = kept.rows
    assert not [row for row in rows if "error" in row]
    assert [(row["format"], row["batch"]) for row in rows] == [
        (name, batch) for name in model_13b.FORMATS for batch in (1, 2)]
    weights = {row["format"]: row["weights (GB)"] for row in rows}
    assert weights["FP16"] == pytest.approx(weights["FP32"] / 2, rel=1e-3)  # rotary frequencies stay FP32
    assert weights["NF4 (bitsandbytes)"] < weights["INT8 (bitsandbytes)"] < weights["FP16"]
    assert all(row["KV cache (GB)"] > 0 and row["decode limit by bandwidth (ms)"] > 0 for row in rows)


def meta_13b():
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**model_13b.SHAPES["13b"], tie_word_embeddings=False))


def test_the_13b_shape_has_the_parameters_of_llama_13b():
    model = meta_13b()
    assert model.num_parameters() == 13_015_864_320
    linears = [m for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]
    assert model_13b.linear_weights(model.config) == sum(m.weight.numel() for m in linears)


@pytest.mark.parametrize(("name", "bound"), [("INT8 (bitsandbytes)", 0.02), ("NF4 (bitsandbytes)", 0.15)])
def test_a_quantized_layer_computes_what_the_float_one_does(name, bound):
    torch.manual_seed(0)
    dtype = model_13b.FORMATS[name]
    linear = torch.nn.Linear(256, 128, bias=False, dtype=dtype)
    layer = model_13b.quantized_linear(linear, name, dtype)
    x = torch.randn(8, 256, dtype=dtype)
    with torch.no_grad():
        exact, found = linear(x).float(), layer(x).float()
    assert (found - exact).norm() < bound * exact.norm()
    stored = sum(p.nbytes for p in layer.parameters())
    assert stored == linear.weight.numel() * {"I": 1, "N": 0.5}[name[0]]


# ---- other steps -----------------------------------------------------------------------------------------


def test_kv_cache_step_has_a_row_for_each_cache_and_batch(settings, kept):
    kv_cache.measure_into(settings, kept)
    assert not [row for row in kept.rows if "error" in row]
    names = [*kv_cache.caches(None, 1, 1)]
    batches = kv_cache.BATCHES[:2]
    assert [(row["cache"], row["batch"]) for row in kept.rows[: len(names) * 2]] == [
        (name, batch) for name in names for batch in batches]
    assert all(row["decode (tokens/s)"] > 0 and row["KV memory (GB)"] > 0 for row in kept.rows)


def test_sparse_step_says_where_there_is_no_kernel(settings, kept):
    sparse.measure_into(settings, kept)
    assert {row["kernel"] for row in kept.rows} == {"cuSPARSELt", "CUTLASS"}
    if not torch.cuda.is_available():
        assert all("error" in row for row in kept.rows)
