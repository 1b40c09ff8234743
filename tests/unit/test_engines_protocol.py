"""Engines: the protocol and the table, with the real torch worker on a tiny random Llama."""

import json
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils import engines
from course_utils.engines import agreement, environment, process, registry, table
from course_utils.errors import CourseError

PROMPT, SCORE = [3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(model, its folder): a random Llama with grouped queries and tied embeddings, FP32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, bos_token_id=0, eos_token_id=None)
    model = LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("tiny") / "model"
    model.save_pretrained(folder)
    return model, folder


def greedy(model, ids, n):
    out = model.generate(torch.tensor([ids]), max_new_tokens=n, do_sample=False, pad_token_id=0)
    return out[0, len(ids):].tolist()


def call(name, folder, file=None, **more):
    request = {"prompt": PROMPT, "new_tokens": 6, "score": SCORE, "threads": 1, "repeats": 2,
               "logits_file": str(file) if file else None} | more
    return table.call(name, request, 120, folder)


# ---- agreement -------------------------------------------------------------------------------------------


def test_agreement_equals_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 20, 50)) * 5
    expected = rel_entr(softmax(a, axis=-1), softmax(b, axis=-1)).sum(-1).mean()
    assert agreement.mean_kl(a, b) == pytest.approx(expected, rel=1e-12)
    matches = sum(int(np.argmax(x) == np.argmax(y)) for x, y in zip(a, b, strict=True))
    assert agreement.top1_match(a, b) == matches / 20


def test_agreement_of_extreme_logits():
    a = np.array([[1e4, 0, -1e4]], dtype=np.float32)
    assert agreement.mean_kl(a, a) == 0 and agreement.top1_match(a, a) == 1
    assert agreement.mean_kl(a, a + 1000) == pytest.approx(0, abs=1e-9), "a constant changes nothing"
    assert agreement.mean_kl(a, -a) == pytest.approx(2e4)


@pytest.mark.parametrize("other", [np.zeros((2, 4)), np.zeros(3), np.zeros((0, 3))])
def test_agreement_refuses_other_shapes(other):
    with pytest.raises(ValueError, match="same shape"):
        agreement.mean_kl(np.zeros((2, 3)), other)
    with pytest.raises(ValueError, match="same shape"):
        agreement.top1_match(other, np.zeros((2, 3)))


def test_an_engine_that_is_no_server_says_so_before_it_loads_anything(tmp_path):
    answer = process.run("torch", {"task": "requests", "folder": str(tmp_path / "nothing"), "requests": []})
    assert answer.reason == "refused" and "it is no server" in answer.details


# ---- the protocol ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answered(tiny, tmp_path_factory):
    """(answer, file of logits) of the FP32 torch worker."""
    file = tmp_path_factory.mktemp("logits") / "logits.npy"
    return call("torch FP32", tiny[1], file), file


def test_torch_worker_writes_what_generate_writes(tiny, answered):
    answer, _ = answered
    assert answer, answer
    assert answer.values["tokens"] == greedy(tiny[0], PROMPT, 6)


def test_torch_worker_gives_the_models_logits(tiny, answered):
    with torch.no_grad():
        expected = tiny[0](torch.tensor([SCORE])).logits[0].numpy()
    found = np.load(answered[1])
    assert found.dtype == np.float32 and found.shape == (len(SCORE), 97)
    assert np.allclose(found, expected, atol=1e-5)


def test_answer_has_every_figure(tiny, answered):
    values = answered[0].values
    assert values["disk_bytes"] == (tiny[1] / "model.safetensors").stat().st_size
    assert 0 < values["resident_start"] < values["resident_loaded"] <= values["peak_bytes"]
    assert values["resident_bytes"] <= values["peak_bytes"]
    for figure in ("load_seconds", "prefill_rate", "decode_rate", "prefill_cpu_rate", "decode_cpu_rate"):
        assert values[figure] > 0
    assert values["versions"]["torch"] == version("torch")


def test_all_matrices_are_read_in_a_step_and_norms_are_not(tiny, answered):
    """The output layer is the embedding; it counts once."""
    matrices = [parameter for parameter in tiny[0].parameters() if parameter.dim() == 2]
    assert answered[0].values["read_bytes"] == 4 * sum(matrix.numel() for matrix in matrices)


def test_a_library_s_int8_weights_are_read_in_fewer_bytes(tiny):
    fp32, int8 = (call(name, tiny[1], new_tokens=2, repeats=1).values["read_bytes"]
                  for name in ("torch FP32", "torchao INT8"))
    assert fp32 / 4 < int8 < fp32 / 3, "a byte for each weight, and the scales of the rows"


def test_a_window_does_not_see_the_one_before(tiny, tmp_path):
    answer = call("torch FP32", tiny[1], tmp_path / "l.npy", score=[*SCORE, 7], window=3, repeats=1)
    assert answer, answer
    windows = SCORE[:3], SCORE[3:], [7]
    with torch.no_grad():
        expected = torch.cat([tiny[0](torch.tensor([ids])).logits[0] for ids in windows]).numpy()
    assert np.allclose(np.load(tmp_path / "l.npy"), expected, atol=1e-5)


def test_session_counts_steps(tiny):
    """The prompt's pass gives the first token: one token needs no step, six need five."""
    answer = call("torch FP32", tiny[1], new_tokens=1, repeats=1)
    assert answer.values["tokens"] == greedy(tiny[0], PROMPT, 1) and "decode_rate" not in answer.values


def test_a_batch_counts_the_tokens_of_all_its_sequences(tiny, answered, tmp_path):
    """Same text and scores as one sequence; the rates are of the whole batch."""
    answer = call("torch FP32", tiny[1], tmp_path / "l.npy", batch=3)
    assert answer, answer
    assert answer.values["batch"] == 3 and answer.values["tokens"] == answered[0].values["tokens"]
    assert np.allclose(np.load(tmp_path / "l.npy"), np.load(answered[1]), atol=1e-5)


def test_a_batch_for_an_engine_without_one_is_refused(monkeypatch):
    monkeypatch.syspath_prepend(process.SHARED)
    import protocol

    class Single(protocol.Session):
        batches = False

    assert Single(batch=1).batch == 1
    with pytest.raises(ValueError, match="one sequence at a time, not 2"):
        Single(batch=2)
    with pytest.raises(ValueError, match="not 0"):
        protocol.Session(batch=0)


def test_unknown_variant_and_task_are_refused(tiny):
    assert "known are fp32" in call("torch FP32", tiny[1], options={"variant": "int3"}).details
    assert "unknown task" in call("torch FP32", tiny[1], task="sing").details


def test_wrong_folder_is_refused(tmp_path):
    assert call("torch FP32", tmp_path).reason == "refused"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch BF16", "torchao INT8", "bitsandbytes INT8"])
def test_other_torch_variants_stay_near(tiny, answered, tmp_path, name):
    pytest.importorskip(name.split()[0], reason=f"{name} needs its package")
    answer = call(name, tiny[1], tmp_path / "l.npy")
    assert answer, answer
    assert agreement.mean_kl(np.load(answered[1]), np.load(tmp_path / "l.npy")) < 0.01


# ---- the table -------------------------------------------------------------------------------------------


def test_table_has_a_row_for_what_runs_and_for_what_does_not(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    for name in ("broken", "absent"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "worker.py").write_text("raise RuntimeError('no such kernel')")
    broken = replace(registry.find("torch"), home=tmp_path / "broken")
    absent = replace(registry.find("llamacpp"), home=tmp_path / "absent")
    monkeypatch.setitem(registry.ENGINES, "broken", broken)
    monkeypatch.setitem(registry.ENGINES, "absent", absent)
    monkeypatch.setitem(registry.VARIANTS, "one that crashes", registry.Variant("broken"))
    monkeypatch.setitem(registry.VARIANTS, "one that is absent", registry.Variant("absent"))
    names = ["one that crashes", "torch FP32", "one that is absent"]
    rows = engines.measure_all(names, PROMPT, 4, SCORE, repeats=1, model=tiny[1])
    assert [row["engine"] for row in rows] == names
    assert len({tuple(row) for row in rows}) == 1, "all rows have the same keys"
    crashed, good, missing = rows
    assert "no such kernel" in crashed["note"] and crashed["decode (tokens/s)"] is None
    assert "course engines install absent" in missing["note"] and missing["KL (nats)"] is None
    assert good["note"] == "" and good["KL (nats)"] == 0 and good["top-1 match"] == 1 and good["same text"]
    assert good["bits"] == 32 and good["group"] == "" and good["read (MB)"] > 0
    json.dumps(rows)


def test_agreement_by_window_has_the_mean_of_all(tiny):
    score = [*SCORE, 5, 9]
    (row,) = engines.measure_all(["torch BF16"], PROMPT, 2, score, repeats=1, model=tiny[1], window=3)
    assert len(row["KL by window"]) == len(row["top-1 by window"]) == 3
    tokens = [3, 3, 2]
    assert row["KL (nats)"] > 0, "BF16 is not FP32"
    assert row["KL (nats)"] == pytest.approx(np.average(row["KL by window"], weights=tokens))
    assert row["top-1 match"] == pytest.approx(np.average(row["top-1 by window"], weights=tokens))


def test_table_refuses_an_unknown_name():
    with pytest.raises(ValueError, match="known: torch FP32"):
        engines.measure_all(["nothing"], PROMPT, 4, SCORE)


def test_an_engine_of_the_courses_own_python(monkeypatch):
    here = registry.find("torch")
    assert engines.is_installed(here) and engines.install(here)
    gone = replace(here, modules=("no_such_package",))
    assert not engines.is_installed(gone)
    with pytest.raises(CourseError, match="no_such_package"):
        engines.install(gone)


def test_borrowed_packages_only_from_this_python():
    with pytest.raises(CourseError, match="leave --python out"):
        engines.install(registry.find("llamacpp"), python="/another/python")


def test_an_engine_for_a_gpu_says_so_where_there_is_none(monkeypatch):
    monkeypatch.setattr(environment, "has_gpu", lambda: False)
    for name in ("TensorRT FP16", "vLLM BF16"):
        assert name not in table.installed()
        assert table.call(name, {}).details == "not available here because there is no NVIDIA GPU."
        with pytest.raises(CourseError, match="needs an NVIDIA GPU"):
            engines.install(registry.find(registry.VARIANTS[name].engine))


def test_every_variant_has_its_engine():
    for variant in registry.VARIANTS.values():
        registry.find(variant.engine)
        if variant.loads not in ("model", "gguf"):
            assert variant.part in registry.find(variant.loads).steps


# ---- the engines that are installed ------------------------------------------------------------------------

# How far each may be from FP32 on 32 tokens, in nats: exact, nearly exact, or rounded a second time.
# The last two need a GPU; their bounds have not been tried.
NATS = {"ONNX Runtime FP32": 1e-6, "vLLM FP32": 1e-6, "TVM FP32": 1e-6, "ExecuTorch FP32": 1e-6,
        "llama.cpp Q4_1": 0.02, "llama.cpp Q4_K_M": 0.3, "llama.cpp Q4_0": 1.0, "OpenVINO INT8": 0.05,
        "OpenVINO INT4": 1.0, "ExecuTorch INT4": 1.0, "ONNX Runtime INT4": 1.0,
        "ONNX Runtime INT4, groups of 64": 1.0, "ONNX Runtime INT8": 1.5,
        "ONNX Runtime INT8, full range": 1.5, "ONNX Runtime GenAI INT4": 1.5,
        "TensorRT FP16": 0.01, "vLLM BF16": 0.05}


OF_THEIR_OWN = [name for name in registry.VARIANTS
                if not name.startswith("torch") and name != "bitsandbytes INT8"]


def test_each_engine_has_a_bound():
    assert set(NATS) == set(OF_THEIR_OWN)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_THEIR_OWN)
def test_an_installed_engine_runs_the_real_model(name, lm, heldout, tmp_path):
    """What it writes step by step through its cache is what its scores of the whole text say."""
    if name not in table.installed():
        pytest.skip(f"{name} is not installed")
    ids, file = heldout[:32].tolist(), tmp_path / "l.npy"
    written = call(name, None, prompt=ids, new_tokens=5, repeats=1)
    assert written, written
    pair = call(name, None, prompt=ids, new_tokens=3, repeats=1, batch=2)
    if pair:
        assert pair.values["tokens"] == written.values["tokens"][:3]
    else:
        assert "one sequence at a time" in pair.details
    answer = call(name, None, file, prompt=ids, score=ids + written.values["tokens"], new_tokens=2, repeats=1)
    assert answer, answer
    found = np.load(file)
    with torch.no_grad():
        reference = lm[0](heldout[None, :32]).logits[0].numpy()
    assert agreement.mean_kl(reference, found[:32]) < NATS[name]
    if name.startswith("ONNX Runtime INT8"):
        return  # rounds activations with one scale a pass, so a step of one token is another computation
    best, scores = found[31:36].max(axis=-1), found[range(31, 36), written.values["tokens"]]
    assert (best - scores).max() < 0.5, "a step chose a token that the whole text puts far below the first"
