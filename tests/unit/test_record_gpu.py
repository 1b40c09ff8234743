"""The script that records a GPU run, tried on a CPU with a tiny model."""

import subprocess
import sys

import pytest

from authoring import record_gpu


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(record_gpu, "PROMPT_TOKENS", 8)
    monkeypatch.setattr(record_gpu, "NEW_TOKENS", 2)
    monkeypatch.setattr(record_gpu, "BATCHES", (1, 2))


@pytest.mark.slow
def test_every_format_gives_a_row_per_batch_and_the_bytes_fall():
    rows = record_gpu.record("tiny", "cpu")["rows"]
    assert not [row for row in rows if "error" in row]
    assert [(row["format"], row["batch"]) for row in rows] == [
        (name, batch) for name in record_gpu.FORMATS for batch in (1, 2)]
    weights = {row["format"]: row["weights (GB)"] for row in rows}
    assert weights["FP16"] == pytest.approx(weights["FP32"] / 2, rel=1e-3)  # rotary frequencies stay FP32
    assert weights["NF4 (bitsandbytes)"] < weights["INT8 (bitsandbytes)"] < weights["FP16"]
    assert all(row["KV cache (GB)"] > 0 and row["decode limit by bandwidth (ms)"] > 0 for row in rows)


def test_the_13b_shape_has_the_parameters_of_llama_13b():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**record_gpu.SHAPES["13b"], tie_word_embeddings=False))
    assert model.num_parameters() == 13_015_864_320


def test_a_format_that_fails_is_a_row_that_says_so(monkeypatch):
    def fails(shape, name, device):
        raise RuntimeError("CUDA out of memory. Tried to allocate 50 GiB\nmore")
    monkeypatch.setattr(record_gpu, "build", fails)
    rows = record_gpu.record("tiny", "cpu")["rows"]
    assert {row["error"] for row in rows} == {"CUDA out of memory. Tried to allocate 50 GiB"}


def test_without_a_gpu_the_command_says_what_to_do():
    import torch
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = subprocess.run([sys.executable, "-m", "authoring.record_gpu"], capture_output=True, text=True)
    assert done.returncode == 2 and "no GPU here" in done.stderr
