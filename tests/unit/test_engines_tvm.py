"""TVM on a tiny random Llama, and its hand-written loops on odd shapes, in the engine's own environment."""

import json
import subprocess

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils import engines
from course_utils.engines import process
from tests.unit.test_engines_protocol import PROMPT, SCORE, greedy, tiny  # noqa: F401

ENGINE = engines.find("tvm")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not engines.is_installed(ENGINE), reason=f"needs: {ENGINE.how_to_install}"),
]


def prepare(model, out):
    request = {"task": "prepare", "step": "fp32", "model": str(model), "out": str(out)}
    return process.run(ENGINE, request, 300)


def measure(folder, **more):
    request = {"task": "measure", "folder": str(folder), "prompt": PROMPT, "new_tokens": 6, "score": SCORE,
               "repeats": 1}
    return process.run(ENGINE, request | more, 120)


@pytest.fixture(scope="module")
def compiled(tiny, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("tvm") / "fp32"
    answer = prepare(tiny[1], out)
    assert answer, answer
    return out


def test_it_is_the_same_model(tiny, compiled, tmp_path):  # noqa: F811
    """97 tokens in the vocabulary: the panels have 112. Text comes step by step, scores in one pass."""
    answer = measure(compiled, logits_file=str(tmp_path / "l.npy"))
    assert answer, answer
    assert answer.values["tokens"] == greedy(tiny[0], PROMPT, 6)
    with torch.no_grad():
        expected = tiny[0](torch.tensor([SCORE])).logits[0].numpy()
    assert np.allclose(np.load(tmp_path / "l.npy"), expected, atol=1e-5)


def test_a_batch_writes_what_one_writes(compiled):
    one, three = measure(compiled), measure(compiled, batch=3)
    assert one and three, (one, three)
    assert one.values["tokens"] == three.values["tokens"]


def test_tied_weights_are_stored_once(tiny, compiled):  # noqa: F811
    padding = 4 * (112 - 97) * 64
    assert (compiled / "model.params").stat().st_size <= 4 * tiny[0].num_parameters() + padding + 8192


def test_another_processor_is_refused(compiled, tmp_path):
    """Not loaded at all: instructions that the processor lacks would kill the process."""
    about = json.loads((compiled / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(about | {"processor": "i386"}))
    answer = measure(tmp_path)
    assert answer.reason == "refused" and "compiled for the processor i386" in answer.details


@pytest.mark.parametrize(("change", "why"), [
    ({"attention_bias": True}, "has a bias"), ({"intermediate_size": 100}, "100 outputs"),
    ({"head_dim": 8}, "8 wide")])
def test_a_model_that_the_panels_cannot_hold_is_refused(tmp_path, change, why):
    config = dict(vocab_size=97, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
                  num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    LlamaForCausalLM(LlamaConfig(**config | change)).save_pretrained(tmp_path / "model")
    answer = prepare(tmp_path / "model", tmp_path / "out")
    assert answer.reason == "refused" and why in answer.details


def test_loops_on_odd_shapes():
    """Rows that fill tiles and rows that do not, against NumPy; attention with and without a past."""
    code = f"""
import sys
sys.path.insert(0, {str(ENGINE.home)!r})
import numpy as np, tvm, tvm_kernels
from tvm.target import codegen
target = tvm.target.Target({{"kind": "llvm", "mcpu": codegen.llvm_get_system_cpu()}})
rng = np.random.default_rng(0)
draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
def run(kernel, shapes, *inputs):
    module = tvm.IRModule({{"main": kernel.with_attr("global_symbol", "main")}})
    out = [tvm.runtime.tensor(np.full(shape, np.nan, np.float32)) for shape in shapes]
    tvm.compile(module, target)["main"](*map(tvm.runtime.tensor, inputs), *out)
    return out[0].numpy()
for rows, inputs, outputs in [(1, 3, 16), (5, 7, 48), (6, 64, 16), (13, 33, 80)]:
    x, w = draw(rows, inputs), draw(outputs, inputs)
    panels = np.ascontiguousarray(w.reshape(-1, 16, inputs).transpose(0, 2, 1))
    y = run(tvm_kernels.linear(inputs, outputs), [(rows, outputs)], x, panels)
    assert np.allclose(y, x @ w.T, atol=1e-4), (rows, inputs, outputs)
    ids = rng.integers(0, outputs, rows)
    y = run(tvm_kernels.embedding(inputs, outputs), [(rows, inputs)], ids, panels)
    assert (y == w[ids]).all()
for texts, new, total in [(1, 1, 1), (1, 1, 9), (2, 5, 5), (3, 4, 11)]:
    q, k, v = draw(texts, 6, new, 32), draw(texts, 2, total, 32), draw(texts, 2, total, 32)
    y = run(tvm_kernels.attention(6, 2, 32, 0.3), [(texts, new, 6, 32), (texts, 6, total)], q, k, v)
    keys, values = k.repeat(3, axis=1), v.repeat(3, axis=1)
    scores = 0.3 * q @ keys.swapaxes(2, 3)
    scores[..., np.triu(np.ones((new, total), bool), total - new + 1)] = -np.inf
    share = np.exp(scores - scores.max(-1, keepdims=True))
    expected = (share / share.sum(-1, keepdims=True)) @ values
    assert np.allclose(y, expected.swapaxes(1, 2), atol=1e-5), (texts, new, total)
"""
    done = subprocess.run([str(ENGINE.python), "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
