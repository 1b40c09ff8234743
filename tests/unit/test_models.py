"""The real models: the right weights, from any state of the cache, and clear words when it cannot be."""

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from course_utils import cache, models
from course_utils.errors import CourseError


def test_embedded_model_is_smollm2(lm):
    model, tokenizer = lm
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {str(p.device) for p in model.parameters()} == {"cpu"}
    assert not model.training
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 8192


def test_embedding_and_head_are_one_tensor(lm):
    model, _ = lm
    head, embedding = model.lm_head.weight, model.model.embed_tokens.weight
    assert head is embedding and head.data_ptr() == embedding.data_ptr()
    assert model.config.tie_word_embeddings


def test_weights_are_those_of_the_packaged_file(lm):
    """The reference is the gguf package's own dequantization of the file, tensor by tensor."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    weights = lm[0].state_dict()
    # Queries and keys are not among them: a GGUF stores their rows in another order.
    names = {
        "token_embd": "model.embed_tokens",
        "blk.0.attn_v": "model.layers.0.self_attn.v_proj",
        "blk.17.ffn_down": "model.layers.17.mlp.down_proj",
        "blk.29.ffn_gate": "model.layers.29.mlp.gate_proj",
        "blk.29.attn_norm": "model.layers.29.input_layernorm",
        "output_norm": "model.norm",
    }
    stored = {tensor.name: tensor for tensor in GGUFReader(models.embedded_gguf()).tensors}
    for theirs, ours in names.items():
        tensor = stored[f"{theirs}.weight"]
        expected = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        assert torch.equal(weights[f"{ours}.weight"], expected.reshape(weights[f"{ours}.weight"].shape)), ours


def test_capital_of_france(lm):
    assert "Paris" in models.ask(*lm, "What is the capital of France?")


def test_answer_is_repeatable_and_no_longer_than_asked(lm):
    model, tokenizer = lm
    answers = {models.ask(model, tokenizer, "Name a colour.", max_new_tokens=5) for _ in range(2)}
    assert len(answers) == 1
    assert len(tokenizer(answers.pop())["input_ids"]) <= 5


def test_question_without_chat_template(lm):
    model, tokenizer = lm
    plain = models.AutoTokenizer.from_pretrained(models.embedded_lm())
    plain.chat_template = None
    text = models.ask(model, plain, "The capital of France is", max_new_tokens=4)
    assert "Paris" in text


def test_held_out_text_is_english_to_it(lm, heldout):
    """About 16 on this text; a wrong tensor or tokenizer gives hundreds or more."""
    model, _ = lm
    tokens = heldout[:2048].view(4, 512)
    with torch.no_grad():
        loss = model(tokens, labels=tokens).loss.item()
    assert 2.4 < loss < 3.2


def test_bfloat16(lm):
    model, _ = models.load_lm(dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    expected = lm[0].model.layers[3].mlp.up_proj.weight.bfloat16()
    assert torch.equal(model.model.layers[3].mlp.up_proj.weight, expected)


def test_variable_and_folder_name_the_model(lm, tmp_path, monkeypatch):
    """A tiny model of the same kind, saved as any model folder is."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=lm[0].config.vocab_size, hidden_size=8, intermediate_size=16,
                         num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tiny")
    lm[1].save_pretrained(tmp_path / "tiny")
    for given in (str(tmp_path / "tiny"), tmp_path / "tiny"):
        assert models.load_lm(given)[0].config.hidden_size == 8
    monkeypatch.setenv("COURSE_LM", str(tmp_path / "tiny"))
    assert models.load_lm()[0].config.hidden_size == 8
    assert models.load_lm("")[0].config.hidden_size == 8
    # A model that lacks weights would answer with random ones.
    shutil.copytree(tmp_path / "tiny", tmp_path / "lacking")
    from safetensors.torch import load_file, save_file
    weights = load_file(tmp_path / "lacking" / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "lacking" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="no weights for model.layers.0.mlp.up_proj.weight"):
        models.load_lm(tmp_path / "lacking")


def test_warm_cache_needs_no_network(lm, no_network, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("COURSE_LM", raising=False)
    model, tokenizer = models.load_lm()
    assert "Paris" in models.ask(model, tokenizer, "What is the capital of France?", max_new_tokens=10)
    encoder, tokenizer = models.load_encoder(num_labels=2)
    with torch.no_grad():
        assert encoder(**tokenizer("fine", return_tensors="pt")).logits.shape == (1, 2)
    models.prepare()


def test_loading_prints_nothing(lm, encoder, capfd):
    models.load_lm()
    models.load_encoder(num_labels=2)
    out, err = capfd.readouterr()
    assert out == "" and err == ""


def test_encoder_knows_which_sentences_are_alike(encoder):
    """Mean of the last states over real tokens, compared by cosine, as its model card says to use it."""
    model, tokenizer = encoder
    assert len(model.encoder.layer) == 6 and not model.training
    batch = tokenizer(["The film was wonderful.", "I loved this movie.", "The engine needs oil."],
                      padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][:, :, None]
    vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    assert vectors[0] @ vectors[1] > 0.5 > 0.2 > vectors[0] @ vectors[2]


def test_classifier_head_is_seeded_and_leaves_the_caller_s_seed_alone(encoder):
    torch.manual_seed(1)
    expected_draw = torch.rand(3)
    torch.manual_seed(1)
    first, _ = models.load_encoder(num_labels=3)
    assert torch.equal(torch.rand(3), expected_draw)
    second, _ = models.load_encoder(num_labels=3)
    assert first.classifier.weight.shape == (3, 384)
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    body = first.bert.state_dict()
    for name, weight in encoder[0].state_dict().items():
        assert name.startswith("pooler") or torch.equal(body[name], weight)


BAD_ARGUMENTS = [
    (dict(name=3), TypeError, "name must be a string or a path"),
    (dict(dtype="bfloat16"), TypeError, "dtype must be one of"),
    (dict(dtype=torch.int8), TypeError, "dtype must be one of"),
    (dict(dtype=torch.float8_e4m3fn), TypeError, "dtype must be one of"),
    (dict(dtype=None), TypeError, "dtype must be one of"),
    (dict(device="tpu9"), ValueError, "unknown device 'tpu9'"),
    (dict(device=None), ValueError, "unknown device None"),
    (dict(name="/nowhere/at/all"), ValueError, "no model folder '/nowhere/at/all'.*org/name"),
    (dict(name="./nowhere"), ValueError, "no model folder"),
    (dict(name="smollm2"), ValueError, "org/name"),
    (dict(name="a/b/c"), ValueError, "org/name"),
]


@pytest.mark.parametrize("arguments, kind, message", BAD_ARGUMENTS, ids=str)
def test_bad_arguments(arguments, kind, message):
    with pytest.raises(kind, match=message) as caught:
        models.load_lm(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize("load", [models.load_lm, models.load_encoder])
def test_device_that_is_not_here(load):
    with pytest.raises(CourseError, match="no device 'cuda': use device='cpu'"):
        load(device="cuda")


def test_folders_that_are_no_causal_model(tmp_path):
    with pytest.raises(ValueError, match="no config.json"):
        models.load_lm(tmp_path)
    (tmp_path / "config.json").write_text("{ not json")
    with pytest.raises(ValueError, match="holds no causal language model") as caught:
        models.load_lm(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="holds no causal language model") as caught:
        models.load_lm(tmp_path)
    assert "\n" not in str(caught.value)


def test_encoder_is_no_causal_model(encoder):
    with pytest.raises(ValueError, match="no weights for"):
        models.load_lm(models.downloads.fetch(models.MINILM))


def test_hub_model_without_network_and_cache(tmp_path):
    """In a process of its own: the hub's library reads its settings when it is imported."""
    code = textwrap.dedent("""
        from course_utils import errors, models
        try:
            models.load_lm("org/name")
        except errors.CourseError as error:
            print(error)
    """)
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True,
                          timeout=120).stdout
    assert re.fullmatch("The model org/name is not in the hub's cache.*network.*folder.*empty.*\n", said)


@pytest.mark.parametrize("num_labels, kind", [
    (0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError), ("2", TypeError)])
def test_bad_num_labels(num_labels, kind):
    with pytest.raises(kind, match="num_labels"):
        models.load_encoder(num_labels=num_labels)


def test_bad_questions(lm):
    with pytest.raises(ValueError, match="question is empty"):
        models.ask(*lm, "  ")
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        models.ask(*lm, "Hello?", max_new_tokens=0)


# --------------------------------------------------------------------------- the conversion, for real

LOAD = textwrap.dedent("""
    from course_utils import models
    model, tokenizer = models.load_lm()
    print(model.lm_head.weight is model.model.embed_tokens.weight)
    print(models.ask(model, tokenizer, "What is the capital of France?", max_new_tokens=12))
""")


@pytest.fixture
def only_the_package(tmp_path):
    """A cache that has the downloaded package and no converted model: (folder, environment)."""
    source = models.embedded_gguf().parent
    shutil.copytree(source, tmp_path / source.name, copy_function=link_or_copy)
    environment = {name: value for name, value in os.environ.items() if name != "COURSE_LM"}
    return tmp_path, environment | {"COURSE_CACHE": str(tmp_path)}


def link_or_copy(source, target):
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def start(environment):
    return subprocess.Popen([sys.executable, "-c", LOAD], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def answers(process):
    out, err = process.communicate(timeout=540)
    assert process.returncode == 0, err
    tied, answer = out.splitlines()
    return tied == "True" and "Paris" in answer, err


def kill_while_it_writes(folder, environment):
    """SIGKILL a loading process as soon as its conversion has begun to write the weights."""
    victim = start(environment)
    end = time.monotonic() + 540
    while not any(path.stat().st_size for path in folder.glob(".smollm2*building-*/new/*safetensors*")):
        assert victim.poll() is None and time.monotonic() < end, "the conversion did not get to writing"
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=30)
    return [path for path in folder.iterdir() if ".building-" in path.name]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_conversion_then_two_processes_at_once(only_the_package):
    folder, environment = only_the_package
    assert len(kill_while_it_writes(folder, environment)) == 1
    assert not (folder / "smollm2-135m-instruct-fp32").exists()

    both = [start(environment), start(environment)]
    results = [answers(process) for process in both]
    assert all(good for good, _ in results)
    assert sum("Converting SmolLM2" in err for _, err in results) == 1
    assert not [path for path in folder.iterdir() if ".building-" in path.name]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_flipped_bit_in_the_weights_is_found_and_mended(only_the_package, lm):
    folder, environment = only_the_package
    good = models.embedded_lm()
    damaged = folder / good.name
    shutil.copytree(good, damaged)
    with open(damaged / "model.safetensors", "r+b") as file:
        file.seek(300_000_000)
        byte = file.read(1)[0]
        file.seek(300_000_000)
        file.write(bytes([byte ^ 1]))
    assert cache.sha256(damaged / "model.safetensors") != cache.sha256(good / "model.safetensors")

    right, err = answers(start(environment))
    assert right and "the checksum of model.safetensors is wrong" in err
    # The same bytes come out of a second conversion, on the same machine.
    assert cache.sha256(damaged / "model.safetensors") == cache.sha256(good / "model.safetensors")
