"""The GPTQ checkpoint format: words, zero points by both conventions, the libraries that share it."""

import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from course_utils.quantize import checkpoint, gptq
from course_utils.quantize.affine import Scheme
from course_utils.quantize.checkpoint import files


def as_hex(words):
    return {f"{word & 0xFFFFFFFF:08x}" for word in words.flatten().tolist()}


# ---- words -----------------------------------------------------------------------------------------------


def test_first_nibble_is_lowest():
    assert checkpoint.pack_nibbles(torch.arange(8).reshape(8, 1)).tolist() == [[0x76543210]]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_words_round_trip(bits, data):
    n = 32 * data.draw(st.integers(1, 3))
    columns = data.draw(st.integers(1, 4))
    seed = data.draw(st.integers(0, 2**31 - 1))
    values = torch.randint(0, 2**bits, (n, columns), generator=torch.Generator().manual_seed(seed))
    words = checkpoint.pack_words(values, bits)
    assert words.dtype == torch.int32 and list(words.shape) == [n * bits // 32, columns]
    assert torch.equal(checkpoint.unpack_words(words, bits).long(), values)
    # Independent reference: one long binary number for each column, cut into words.
    for column in range(columns):
        number = sum(int(v) << (bits * i) for i, v in enumerate(values[:, column]))
        cut = [(number >> (32 * i)) & 0xFFFFFFFF for i in range(len(words))]
        assert [w & 0xFFFFFFFF for w in words[:, column].tolist()] == cut


def test_rows_that_fill_no_word():
    with pytest.raises(ValueError, match="whole 32-bit words"):
        checkpoint.pack_words(torch.zeros(12, 2), 4)


def test_zero_point_words_of_symmetric_weights():
    zero = torch.full((3, 16), 8)
    assert as_hex(checkpoint.zeros_to_words(zero, 4, "gptq")) == {"77777777"}
    assert as_hex(checkpoint.zeros_to_words(zero, 4, "gptq_v2")) == {"88888888"}


@pytest.mark.parametrize("format", checkpoint.FORMATS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_zero_points_round_trip(bits, format):
    low = 1 if format == "gptq" else 0
    zero = torch.randint(low, 2**bits, (3, 32), generator=torch.Generator().manual_seed(0))
    words = checkpoint.zeros_to_words(zero, bits, format)
    assert words.shape == (3, bits)
    assert torch.equal(checkpoint.zeros_from_words(words, bits, format).long(), zero)


def test_version_1_refuses_a_zero_point_of_0():
    with pytest.raises(ValueError, match="gptq_v2"):
        checkpoint.zeros_to_words(torch.zeros(1, 8), 4, "gptq")
    with pytest.raises(ValueError, match="format must be"):
        checkpoint.zeros_to_words(torch.ones(1, 8), 4, "awq")


# ---- a model ---------------------------------------------------------------------------------------------

CONFIG = dict(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=64, tie_word_embeddings=True)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w1", pad_token="w1")


def base_model():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG, eos_token_id=1, pad_token_id=1, bos_token_id=1)).eval()
    for parameter in model.parameters():  # larger weights: logits on which a wrong weight shows
        parameter.data.mul_(3 if parameter.ndim == 2 else 1)
    return model


def quantized(scheme, order="natural"):
    model, keep = base_model(), {}
    tokens = torch.randint(0, 64, (8, 32), generator=torch.Generator().manual_seed(1))
    gptq.quantize_model(model, tokens, scheme, order=order, keep=keep, progress=False)
    return model, keep, tokens[:2]


KINDS = [
    (Scheme(4, 32), "natural", "gptq"),
    (Scheme(4, 32), "natural", "gptq_v2"),
    (Scheme(4, 32, symmetric=False), "natural", "gptq_v2"),
    (Scheme(4, 32), "activation", "gptq"),
    (Scheme(4, None), "natural", "gptq"),
    (Scheme(3, 32), "natural", "gptq"),
    (Scheme(8, 64), "grouped", "gptq"),
]
IDS = ["4-v1", "4-v2", "4-asym", "4-act-order", "4-per-channel", "3", "8-grouped"]


@pytest.mark.parametrize(("scheme", "order", "format"), KINDS, ids=IDS)
def test_own_reader_gives_back_the_model(tmp_path, tokenizer, scheme, order, format):
    model, keep, tokens = quantized(scheme, order)
    folder = checkpoint.save(tmp_path / "saved", model, tokenizer, keep, format=format)
    again, same_tokenizer = checkpoint.load(folder)
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(model(tokens).logits, again(tokens).logits)
    assert same_tokenizer("w5 w7")["input_ids"] == [5, 7]


def layers_of(model):
    return {name: module for name, module in model.named_modules() if hasattr(module, "qweight")}


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "order", "format"), KINDS, ids=IDS)
def test_gptqmodel_reads_our_checkpoint(tmp_path, tokenizer, scheme, order, format):
    """In GPTQModel's plain torch layer, which computes in half precision: equal up to that rounding."""
    gptqmodel = pytest.importorskip("gptqmodel")
    model, keep, tokens = quantized(scheme, order)
    folder = checkpoint.save(tmp_path / "saved", model, tokenizer, keep, format=format)
    theirs = gptqmodel.GPTQModel.load(
        str(folder), device="cpu", dtype=torch.float16, backend=gptqmodel.BACKEND.GPTQ_TORCH)
    layers = layers_of(theirs.model)
    assert set(layers) == set(keep)
    for name, layer in layers.items():
        ours = keep[name].dequantize()
        torch.testing.assert_close(layer.dequantize_weight().T.float(), ours, rtol=2e-3, atol=1e-6)
    with torch.no_grad():
        ours, logits = model(tokens).logits, theirs.model(tokens).logits.float()
    assert (logits - ours).abs().max() < 0.01 * ours.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("format", checkpoint.FORMATS)
def test_transformers_reads_our_checkpoint(tmp_path, tokenizer, format):
    """With the kernel that transformers chooses by itself, which computes in half precision on a CPU."""
    pytest.importorskip("gptqmodel")
    model, keep, tokens = quantized(Scheme(4, 32))
    folder = checkpoint.save(tmp_path / "saved", model, tokenizer, keep, format=format)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert set(layers_of(theirs)) == set(keep)
    with torch.no_grad():
        ours, logits, plain = model(tokens).logits, theirs(tokens).logits.float(), base_model()(tokens).logits
    off = (logits - ours).abs().mean()
    assert off < 0.05 * (plain - ours).abs().mean(), "further from ours than rounding explains"


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [True, False])
def test_we_read_what_gptqmodel_writes(tmp_path, tokenizer, symmetric):
    gptqmodel = pytest.importorskip("gptqmodel")
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    plain, tokens = tmp_path / "plain", torch.randint(0, 64, (8, 32))
    base_model().save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    settings = gptqmodel.QuantizeConfig(bits=4, group_size=32, sym=symmetric)
    theirs = gptqmodel.GPTQModel.load(str(plain), settings, dtype=torch.float32, device="cpu")
    theirs.quantize([{"input_ids": row.tolist(), "attention_mask": [1] * 32} for row in tokens], batch_size=4)
    theirs.save(str(tmp_path / "theirs"))

    ours, _ = checkpoint.load(tmp_path / "theirs")
    loaded = gptqmodel.GPTQModel.load(
        str(tmp_path / "theirs"), device="cpu", dtype=torch.float16, backend=gptqmodel.BACKEND.GPTQ_TORCH)
    for name, layer in layers_of(loaded.model).items():
        weight = ours.get_submodule(name).weight
        torch.testing.assert_close(weight, layer.dequantize_weight().T.float(), rtol=2e-3, atol=1e-6)
        off = (weight - base_model().get_submodule(name).weight).norm() / weight.norm()
        assert 0.001 < off < 0.3, "not a quantized copy of the weight"


# ---- what goes wrong -------------------------------------------------------------------------------------


def test_existing_folder_is_not_overwritten(tmp_path, tokenizer):
    model, keep, _ = quantized(Scheme(4, 32))
    with pytest.raises(FileExistsError, match="another folder"):
        checkpoint.save(tmp_path, model, tokenizer, keep)


def test_interrupted_save_leaves_nothing(tmp_path, tokenizer, monkeypatch):
    model, keep, _ = quantized(Scheme(4, 32))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path / "saved", model, tokenizer, keep)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def saved(tmp_path, tokenizer):
    model, keep, _ = quantized(Scheme(4, 32))
    return checkpoint.save(tmp_path / "saved", model, tokenizer, keep)


def test_tied_output_layer_is_stored_once(saved):
    names = load_file(saved / "model.safetensors").keys()
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names
    assert not any(name.endswith("proj.weight") for name in names)


def test_damaged_checkpoints_are_named(saved, tmp_path):
    weights = saved / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.read(saved)
    weights.write_bytes(whole)
    tensors = load_file(weights)
    del tensors["model.layers.0.mlp.up_proj.scales"]
    save_file(tensors, weights)
    with pytest.raises(ValueError, match=r"up_proj has no scales"):
        checkpoint.read(saved)
    weights.unlink()
    with pytest.raises(ValueError, match="safetensors"):
        checkpoint.read(saved)
    with pytest.raises(ValueError, match=r"config\.json"):
        checkpoint.read(tmp_path)


def test_other_kinds_of_checkpoint_are_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "awq"
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'awq'"):
        checkpoint.read(saved)


def test_what_the_format_cannot_hold(tmp_path, tokenizer):
    for scheme, match in ((Scheme(5, 32), "2, 3, 4 or 8"), (Scheme(4, 32, full_range=False), "full_range")):
        model, keep, _ = quantized(scheme)
        with pytest.raises(ValueError, match=match):
            checkpoint.save(tmp_path / "x", model, tokenizer, keep)
