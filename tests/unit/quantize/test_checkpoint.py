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


def change(folder, tensors=None, **settings):
    """Rewrite a saved folder: what stands in its settings (None: nothing), and its tensors by a function."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= settings
    config["quantization_config"] = {key: value for key, value in config["quantization_config"].items()
                                     if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    if tensors is not None:
        save_file(tensors(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def weights_of(folder):
    return {name: weight.dequantize() for name, weight in checkpoint.read(folder)[0].items()}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("written", checkpoint.FORMATS)
@pytest.mark.parametrize("label", checkpoint.FORMATS)
def test_symmetric_words_tell_their_version_whatever_the_label(tmp_path, tokenizer, bits, written, label):
    model, keep, _ = quantized(Scheme(bits, 32))
    folder = checkpoint.save(tmp_path / "saved", model, tokenizer, keep, format=written)
    change(folder, checkpoint_format=label)
    for name, weight in weights_of(folder).items():
        assert torch.equal(weight, keep[name].dequantize())


def test_symmetric_with_other_zero_points_is_refused(tmp_path, tokenizer):
    model, keep, _ = quantized(Scheme(4, 32, symmetric=False))
    folder = checkpoint.save(tmp_path / "saved", model, tokenizer, keep)
    change(folder, sym=True)
    with pytest.raises(ValueError, match=r"layer model.layers.0.*zero points that are not all 8.*sym: false"):
        checkpoint.load(folder)


@pytest.mark.parametrize("group", [32, None])
def test_groups_without_g_idx(tmp_path, tokenizer, group):
    model, keep, tokens = quantized(Scheme(4, group))
    folder = checkpoint.save(tmp_path / "saved", model, tokenizer, keep)
    change(folder, lambda tensors: {name: t for name, t in tensors.items() if not name.endswith("g_idx")})
    again, _ = checkpoint.load(folder)
    assert torch.equal(model(tokens).logits, again(tokens).logits)
    change(folder, desc_act=True)
    with pytest.raises(ValueError, match="has no g_idx"):
        checkpoint.load(folder)
    change(folder, desc_act=False, group_size=16)
    with pytest.raises(ValueError, match="inputs in groups of 16 do not fit"):
        checkpoint.load(folder)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_one_row_and_one_column_of_words(bits):
    values = torch.randint(0, 2**bits, (32, 1), generator=torch.Generator().manual_seed(0))
    assert torch.equal(checkpoint.unpack_words(checkpoint.pack_words(values, bits), bits).long(), values)
    words = torch.tensor([[0x76543210, 1, 2]], dtype=torch.int32)  # 3 bits: words of several rows only
    if bits != 3:
        expected = [[(word >> shift) & (2**bits - 1) for word in words[0].tolist()]
                    for shift in range(0, 32, bits)]
        assert checkpoint.unpack_words(words, bits).tolist() == expected


def test_shards_and_files_that_do_not_belong(saved):
    before = weights_of(saved)
    tensors = load_file(saved / "model.safetensors")
    save_file({"model.embed_tokens.weight": torch.zeros(1)}, saved / "adapter_model.safetensors")
    assert weights_of(saved).keys() == before.keys() and checkpoint.load(saved)
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, saved / file)
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps(
        {"weight_map": {name: file for file, part in shards.items() for name in part}}))
    again = weights_of(saved)
    assert all(torch.equal(again[name], weight) for name, weight in before.items()) and checkpoint.load(saved)
    (saved / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"b\.safetensors is missing, and model.safetensors.index.json"):
        checkpoint.load(saved)


@pytest.mark.parametrize(("settings", "match"), [
    ({"bits": None}, "does not say bits"), ({"bits": "4"}, "does not say bits"), ({"bits": 5}, "5 bits"),
    ({"group_size": None}, "does not say group_size"), ({"group_size": 0}, "group"),
    ({"pack_dtype": "int64"}, "packs into int64"), ({"dynamic": {"+:mlp": {"bits": 8}}}, "dynamic"),
    ({"checkpoint_format": "marlin"}, "'marlin'"), ({"bits": 8}, "shapes that do not fit"),
])  # fmt: skip
def test_settings_that_cannot_be_read(saved, settings, match):
    change(saved, **settings)
    with pytest.raises(ValueError, match=match) as caught:
        checkpoint.load(saved)
    assert "\n" not in str(caught.value)


def rename(old, new):
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(("tensors", "match"), [
    (rename("1.mlp.up_proj", "1.mlp.other"), "has no linear layer model.layers.1.mlp.other"),
    (rename("model.norm", "model.other"), "has no place for the tensor model.other"),
    (lambda tensors: {name: t for name, t in tensors.items() if name != "model.norm.weight"},
     "has no tensor model.norm"),
    (lambda tensors: tensors | {"model.norm.weight": torch.ones(3)}, r"model.norm.weight is \[3\]"),
    (lambda tensors: tensors | {"model.layers.0.mlp.up_proj.qweight": torch.ones(8, 128)},
     "up_proj: qweight is torch.float32"),
    (lambda tensors: tensors | {"model.layers.0.mlp.up_proj.scales": torch.ones(2, 64)}, "do not fit"),
    (lambda tensors: tensors | {"model.layers.0.mlp.up_proj.bias": torch.ones(128)}, "has no place for"),
])  # fmt: skip
def test_tensors_that_do_not_fill_the_model(saved, tensors, match):
    change(saved, tensors)
    with pytest.raises(ValueError, match=match) as caught:
        checkpoint.load(saved)
    assert "\n" not in str(caught.value)


def test_a_quantized_output_layer_that_is_tied_is_refused(saved):
    change(saved, lambda tensors: tensors | {
        f"lm_head.{part}": tensor for part, tensor in zip(
            ("qweight", "qzeros", "scales"),
            (torch.zeros(8, 64, dtype=torch.int32), torch.full((2, 8), 0x77777777, dtype=torch.int32),
             torch.ones(2, 64).half()), strict=True)})
    with pytest.raises(ValueError, match="lm_head is quantized, and it is tied to .* model.embed_tokens"):
        checkpoint.load(saved)


def test_what_other_writers_leave_in_a_file(saved):
    """AutoGPTQ adds a bias of zeros to each layer; scales may come in FP32; old files hold inv_freq."""
    before, _ = checkpoint.load(saved)
    change(saved, lambda tensors: {name: t.float() if name.endswith("scales") else t
                                   for name, t in tensors.items()} | {
        "model.layers.0.mlp.up_proj.bias": torch.zeros(128),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    again, _ = checkpoint.load(saved)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), again.parameters(), strict=True))


def test_scales_that_are_no_fp16_numbers_are_not_written(tmp_path, tokenizer):
    model, keep, _ = quantized(Scheme(4, 32, scale_dtype=torch.float32))
    with pytest.raises(ValueError, match="q_proj: the format stores FP16 scales"):
        checkpoint.save(tmp_path / "saved", model, tokenizer, keep)
    assert list(tmp_path.iterdir()) == []


def test_broken_json_is_named(saved):
    (saved / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is no JSON"):
        checkpoint.load(saved)


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
