"""Packed models of the last table: same numbers, real bytes, kept and read again."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils import compressed, costs, measure
from course_utils.quantize import affine, packed


def toy(tied=True):
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=tied, head_dim=16)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return LlamaForCausalLM(config).eval()


TEXT = torch.randint(0, 96, (4, 128), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model):
    return model(TEXT[:1, :40], use_cache=False).logits


@pytest.mark.parametrize("tied", [True, False])
def test_a_packed_table_gives_what_its_rounded_weights_give(tied):
    model, rounded = toy(tied), toy(tied)
    table = affine.fake_quantize(rounded.model.embed_tokens.weight, compressed.INT8)
    output = affine.fake_quantize(rounded.lm_head.weight, compressed.INT8)
    rounded.model.embed_tokens.weight.data = table
    rounded.lm_head.weight.data = output
    packed.replace_embedding(model, compressed.INT8)
    torch.testing.assert_close(logits(model), logits(rounded))
    ids = TEXT[:2, :3]
    torch.testing.assert_close(model.get_input_embeddings()(ids), table[ids])
    assert (model.get_input_embeddings().table is model.get_output_embeddings()) == tied


def test_rows_of_a_packed_matrix_are_those_of_the_whole():
    for scheme in (affine.Scheme(4, 16, symmetric=False), affine.Scheme(3, None), affine.Scheme(8, "tensor")):
        layer = packed.QuantLinear.from_linear(torch.nn.Linear(32, 10), scheme)
        rows = torch.tensor([7, 0, 7])
        torch.testing.assert_close(layer.dequantize(rows=rows), layer.dequantize()[rows], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["INT8", "INT4, GPTQ", "INT4, AWQ"])
def test_unpacked_and_read_again_a_model_says_the_same(name, tmp_path):
    model = compressed.RECIPES[name].make(toy(), TEXT)
    before = logits(model)
    compressed.save(model, tmp_path / "model.pt")
    torch.testing.assert_close(logits(compressed.read(tmp_path / "model.pt")), before, rtol=0, atol=0)
    floats = compressed.unpacked(model)
    assert not any(isinstance(module, packed.QuantLinear) for module in floats.modules())
    torch.testing.assert_close(logits(floats), before)


@pytest.mark.parametrize("tied", [True, False])
def test_the_combined_model_is_as_large_as_counted_and_leaves_its_teacher_alone(tied):
    teacher = toy(tied)
    kept = copy.deepcopy(teacher.state_dict())
    small = compressed.combined(teacher, TEXT, cut=1, steps=2)
    assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())
    assert small.config.num_hidden_layers == len(small.model.layers) == 3
    width = affine.bits_per_weight(compressed.INT4, 64)
    counted = costs.stored_bytes(small.config, width, affine.bits_per_weight(compressed.INT8, 64))
    angles = sum(buffer.nbytes for name, buffer in small.named_buffers() if "rotary" in name)
    layers = [layer for layer in small.model.layers.modules() if isinstance(layer, packed.QuantLinear)]
    padding = sum(layer.packed_zero.nbytes - layer.scale.numel() / 2 for layer in layers)  # to whole bytes
    assert measure.weight_bytes(small).total - counted == angles + padding
    before = logits(small)
    torch.testing.assert_close(logits(compressed.unpacked(small)), before)


def test_an_unknown_recipe_is_refused():
    for function in (compressed.make, compressed.load):
        with pytest.raises(ValueError, match="no recipe 'INT2': there are FP32, BF16"):
            function("INT2")
