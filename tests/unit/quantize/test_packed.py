"""course_utils.quantize.packed: what is stored, what it costs, and what it computes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils import measure
from course_utils.quantize import affine, layerwise
from course_utils.quantize.affine import Scheme
from course_utils.quantize.packed import QuantLinear, pack, replace_linears, unpack

SCHEMES = [Scheme(bits, group, symmetric) for bits in range(2, 9) for group in (None, "tensor", 16)
           for symmetric in (True, False)]


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 8), st.integers(1, 5), st.integers(1, 40), st.integers(0, 2**31))
def test_pack_round_trips_and_equals_numpy_bits(bits, rows, n, seed):
    values = torch.randint(0, 2**bits, (rows, n), generator=torch.Generator().manual_seed(seed))
    packed = pack(values, bits)
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, bits, n).long(), values)
    # Independent reference: the row's bits, lowest first, written out by numpy.
    stream = (values.numpy()[:, :, None] >> np.arange(bits)) & 1
    expected = np.packbits(stream.reshape(rows, -1).astype(np.uint8), axis=1, bitorder="little")
    assert np.array_equal(packed.numpy()[:, : expected.shape[1]], expected)
    assert not packed[:, expected.shape[1]:].any()


def test_known_bytes():
    assert pack(torch.tensor([[1, 2, 15, 0]]), 4).tolist() == [[0x21, 0x0F]]
    assert pack(torch.tensor([[1, 2, 3, 0]]), 2).tolist() == [[0b00111001]]
    with pytest.raises(ValueError, match="from 0 to 15 to fit into 4 bits, got 3 to 16"):
        pack(torch.tensor([[3, 16]]), 4)
    with pytest.raises(ValueError, match="from 0 to 15"):
        pack(torch.tensor([[-1, 1]]), 4)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_forward_equals_dequantize_then_matmul(scheme):
    torch.manual_seed(0)
    linear = nn.Linear(48, 10)
    layer = QuantLinear.from_linear(linear, scheme)
    x = torch.randn(2, 3, 48)
    weight = affine.fake_quantize(linear.weight, scheme)
    assert torch.equal(layer.dequantize(), weight)
    torch.testing.assert_close(layer(x), x @ weight.T + linear.bias)
    stored, direct = layer.quantized(), affine.quantize(linear.weight, scheme)
    assert torch.equal(stored.q, direct.q) and torch.equal(stored.zero, direct.zero)
    assert layer(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_state_dict_round_trips(scheme, tmp_path):
    torch.manual_seed(0)
    layer = QuantLinear.from_linear(nn.Linear(48, 10), scheme)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    other = QuantLinear(48, 10, scheme, bias=True)
    other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    x = torch.randn(4, 48)
    assert torch.equal(layer(x), other(x))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", [None, 64, 32])
@pytest.mark.parametrize("symmetric", [True, False])
def test_memory_is_what_bits_per_weight_says(bits, group, symmetric):
    scheme = Scheme(bits, group, symmetric)
    layer = QuantLinear.from_linear(nn.Linear(576, 64, bias=False), scheme)
    computed = affine.bits_per_weight(scheme, 576) * 576 * 64 / 8
    # Zero points of one row are filled up to whole bytes.
    slack = 0 if symmetric else 64 * bits
    assert computed - 1e-6 <= measure.weight_bytes(layer).total <= computed + slack
    if symmetric:
        assert measure.weight_bytes(layer).total == computed


def small_llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.1)).eval()


def test_replace_linears_in_a_model():
    model, reference = small_llama(), small_llama()
    scheme = Scheme(4, 32)
    floats = sum(linear.weight.numel() for linear in layerwise.block_linears(model).values())
    before = measure.weight_bytes(model).total
    layers = replace_linears(model, scheme, progress=False)
    assert len(layers) == 14 and model.lm_head.weight is model.model.embed_tokens.weight
    assert before - measure.weight_bytes(model).total == floats * (32 - 4.5) / 8
    layerwise.round_to_nearest(reference, scheme)
    ids = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, rtol=1e-4, atol=1e-5)


def test_nothing_is_replaced_when_one_layer_does_not_fit():
    model = small_llama()
    with pytest.raises(ValueError, match=r"layers.0.mlp.down_proj: group 64 does not divide the width 96"):
        replace_linears(model, Scheme(4, 64), progress=False)
    assert not any(isinstance(module, QuantLinear) for module in model.modules())
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="layers.1.mlp.up_proj: weight holds 1 NaN"):
        replace_linears(model, Scheme(4, 32), progress=False)
