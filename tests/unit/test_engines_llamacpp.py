"""A tiny random Llama written as GGUF, and llama.cpp on it; transformers' own reader is the reference."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Format
from transformers import AutoModelForCausalLM

from course_utils import engines
from course_utils.engines import agreement, process
from tests.unit.test_engines_protocol import PROMPT, SCORE, greedy, tiny  # noqa: F401

ENGINE = engines.find("llamacpp")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not engines.is_installed(ENGINE), reason=f"needs: {ENGINE.how_to_install}"),
]


@pytest.fixture(scope="module")
def written(tiny, tmp_path_factory):  # noqa: F811
    """The folder with q4_0 and q4_k_m of the tiny model."""
    out = tmp_path_factory.mktemp("gguf")
    for step in ENGINE.steps:
        request = {"task": "prepare", "step": step, "model": str(tiny[1]), "out": str(out / step)}
        answer = process.run(ENGINE, request, 120)
        assert answer, answer
    return out


def tensors(folder):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(folder / "model.gguf").tensors}


def test_q4_0_is_rounded_as_the_package_gguf_rounds(tiny, written):  # noqa: F811
    found = tensors(written / "q4_0")["blk.1.ffn_down.weight"]
    weight = tiny[0].model.layers[1].mlp.down_proj.weight.detach().numpy()
    assert found.tensor_type == Format.Q4_0
    assert np.array_equal(found.data, gguf.quants.quantize(weight, Format.Q4_0))


def test_rows_too_short_for_a_k_format_get_one_with_more_bits(written):
    """Rows of 64 and 128 numbers; a K-format's block has 256."""
    found = {name: tensor.tensor_type for name, tensor in tensors(written / "q4_k_m").items()
             if tensor.tensor_type != Format.F32}
    assert set(found.values()) == {Format.Q5_0, Format.Q8_0}
    assert found["token_embd.weight"] == Format.Q8_0 and found["blk.0.attn_q.weight"] == Format.Q5_0


@pytest.mark.parametrize("step", ENGINE.steps)
def test_llama_cpp_reads_it_as_transformers_does(tiny, written, tmp_path, step):  # noqa: F811
    """So names, shapes and the order of the rows of query and key are right."""
    request = {"task": "measure", "folder": str(written / step), "prompt": PROMPT, "new_tokens": 6,
               "score": SCORE, "logits_file": str(tmp_path / "l.npy"), "repeats": 1}
    answer = process.run(ENGINE, request, 120)
    assert answer, answer
    model = AutoModelForCausalLM.from_pretrained(written / step, gguf_file="model.gguf", dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([SCORE])).logits[0].numpy()
    found = np.load(tmp_path / "l.npy")
    assert agreement.mean_kl(expected, found) < 1e-4, "its activations are rounded to 8 bits, no more"
    assert answer.values["tokens"] == greedy(model, PROMPT, 6)
