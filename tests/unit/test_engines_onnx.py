"""The ONNX export of a tiny random Llama and ONNX Runtime on it, in the engine's own environment."""

import dataclasses
import subprocess

import numpy as np
import pytest
import torch

from course_utils import engines
from course_utils.engines import agreement, graph, process
from tests.unit.test_engines_protocol import PROMPT, SCORE, greedy, tiny  # noqa: F401

ENGINE = engines.find("onnxruntime")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("onnx"),  # they share what takes long to make
    pytest.mark.skipif(not engines.is_installed(ENGINE), reason=f"needs: {ENGINE.how_to_install}"),
]


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):  # noqa: F811
    """The folder with fp32, int8 and int4 of the tiny model."""
    out = tmp_path_factory.mktemp("onnx")
    for step in ENGINE.steps:
        request = {"task": "prepare", "step": step, "model": str(tiny[1]), "out": str(out / step)}
        answer = process.run(ENGINE, request, 300)
        assert answer, answer
    return out


def measured(folder, file):
    request = {"task": "measure", "folder": str(folder), "prompt": PROMPT, "new_tokens": 6, "score": SCORE,
               "logits_file": str(file), "repeats": 1}
    answer = process.run(ENGINE, request, 120)
    assert answer, answer
    return answer.values, np.load(file)


@torch.no_grad()
def reference(model):
    return model(torch.tensor([SCORE])).logits[0].numpy()


def test_fp32_is_the_same_model(tiny, exported, tmp_path):  # noqa: F811
    """Text is written through the cache step by step, scores come in one pass: both lengths are dynamic."""
    values, logits = measured(exported / "fp32", tmp_path / "l.npy")
    assert values["tokens"] == greedy(tiny[0], PROMPT, 6)
    assert np.allclose(logits, reference(tiny[0]), atol=1e-4)


@pytest.mark.parametrize(("step", "most"), [
    ("int8", 0.02), ("int8-full", 0.02), ("int4", 0.05), ("int4-64", 0.05)])
def test_quantized_stays_near(tiny, exported, tmp_path, step, most):  # noqa: F811
    _, logits = measured(exported / step, tmp_path / "l.npy")
    assert agreement.mean_kl(reference(tiny[0]), logits) < most


def test_tied_weights_are_stored_once(tiny, exported):  # noqa: F811
    data = (exported / "fp32" / "model.onnx.data").stat().st_size
    assert data <= 4 * tiny[0].num_parameters() + 4096


def test_a_step_reads_the_tied_matrix_and_no_table(tiny, exported, tmp_path):  # noqa: F811
    """FP32: every matrix once. INT4 has the embedding beside the output layer: only the latter is read."""
    matrices = sum(parameter.numel() for parameter in tiny[0].parameters() if parameter.dim() == 2)
    fp32, int4, int4_64 = (measured(exported / step, tmp_path / "l.npy")[0]
                           for step in ("fp32", "int4", "int4-64"))
    assert 4 * matrices <= fp32["read_bytes"] < 4 * tiny[0].num_parameters() + 1024
    vocabulary, hidden = tiny[0].get_input_embeddings().weight.shape
    assert int4["disk_bytes"] - int4["read_bytes"] >= vocabulary * hidden
    assert int4_64["read_bytes"] < int4["read_bytes"], "one scale for 64 weights, and no zero points"


def test_full_range_is_refused_without_the_instructions(exported):
    request = {"task": "measure", "folder": str(exported / "int8-full"), "prompt": PROMPT, "new_tokens": 2,
               "options": {"needs": ["no_such_set"]}}
    answer = process.run(ENGINE, request, 60)
    assert answer.reason == "refused" and "no_such_set" in answer.details


def test_batch_and_cached_steps_equal_the_whole_pass(tiny, exported):  # noqa: F811
    """In the engine's Python: three texts at once, read in pieces of 4, 1 and 3 tokens."""
    code = f"""
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession({str(exported / "fp32" / "model.onnx")!r})
past = [v for v in session.get_inputs() if v.name.startswith("past_")]
ids = np.arange(24).reshape(3, 8)
def run(ids, cache):
    seen = cache[past[0].name].shape[2]
    mask = np.ones((3, seen + ids.shape[1]), np.int64)
    feeds = {{"input_ids": ids, "attention_mask": mask, "kept": np.arange(ids.shape[1])}} | cache
    logits, *present = session.run(None, feeds)
    return logits, dict(zip([v.name for v in past], present))
empty = {{v.name: np.zeros((3, v.shape[1], 0, v.shape[3]), np.float32) for v in past}}
whole, _ = run(ids, empty)
cache, pieces = empty, []
for part in np.split(ids, [4, 5], axis=1):
    logits, cache = run(part, cache)
    pieces.append(logits)
assert np.allclose(np.concatenate(pieces, axis=1), whole, atol=1e-4)
np.save({str(exported / "whole.npy")!r}, whole)
"""
    subprocess.run([str(ENGINE.python), "-c", code], check=True)
    with torch.no_grad():
        expected = tiny[0](torch.arange(24).view(3, 8)).logits.numpy()
    assert np.allclose(np.load(exported / "whole.npy"), expected, atol=1e-4)


def test_padding_is_hidden(tiny, exported):  # noqa: F811
    """Texts of 8 and 5 tokens side by side, then two tokens more: each as if it were alone."""
    code = f"""
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession({str(exported / "fp32" / "model.onnx")!r})
past = [v for v in session.get_inputs() if v.name.startswith("past_")]
ids, mask = np.arange(20).reshape(2, 10), np.ones((2, 10), np.int64)
mask[1, :3] = 0
def run(start, stop, cache):
    feeds = {{"input_ids": ids[:, start:stop], "attention_mask": mask[:, :stop]}}
    logits, *present = session.run(None, feeds | {{"kept": np.arange(stop - start)}} | cache)
    return logits, dict(zip([v.name for v in past], present))
empty = {{v.name: np.zeros((2, v.shape[1], 0, v.shape[3]), np.float32) for v in past}}
first, cache = run(0, 8, empty)
second, _ = run(8, 10, cache)
np.save({str(exported / "padded.npy")!r}, np.concatenate([first, second], axis=1))
"""
    subprocess.run([str(ENGINE.python), "-c", code], check=True)
    padded = np.load(exported / "padded.npy")
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        assert np.allclose(padded[0], tiny[0](ids[:1]).logits[0].numpy(), atol=1e-4)
        assert np.allclose(padded[1, 3:], tiny[0](ids[1:, 3:]).logits[0].numpy(), atol=1e-4)


def test_kept_positions(tiny, exported, tmp_path):  # noqa: F811
    """The first new token comes from a pass that keeps one position only: it is the whole pass's last."""
    values, _ = measured(exported / "fp32", tmp_path / "l.npy")
    with torch.no_grad():
        assert values["tokens"][0] == int(tiny[0](torch.tensor([PROMPT])).logits[0, -1].argmax())


def test_the_article_s_line_fails_or_gives_a_graph_without_cache(tiny):  # noqa: F811
    """With the model's cache switched off it runs: fixed length, no cache, no mask."""
    reader = dataclasses.replace(ENGINE, script="onnx_graph_worker.py")
    request = {"model": str(tiny[1]), "layers": 1, "tokens": 8}
    answer = process.run(reader, request | {"use_cache": True}, 300)
    assert answer, answer
    assert answer.values["graph"] is None and "DynamicCache" in answer.values["failure"]
    answer = process.run(reader, request | {"use_cache": False}, 300)
    assert answer, answer
    found = answer.values["graph"]
    assert found["inputs"] == [["input_ids", [1, 8]]]
    assert graph.missing_parts(found["inputs"], found["outputs"]) == {"cache", "mask", "dynamic length"}


def test_our_graph_has_all_parts(exported):
    reader = dataclasses.replace(ENGINE, script="onnx_graph_worker.py")
    answer = process.run(reader, {"file": str(exported / "fp32" / "model.onnx")}, 60)
    assert answer, answer
    found = answer.values["graph"]
    assert graph.missing_parts(found["inputs"], found["outputs"]) == set()
