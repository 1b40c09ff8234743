"""course_utils.quantize.activations against exact products, torch's integer kernel and bitsandbytes."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from course_utils.quantize import activations, layerwise
from course_utils.quantize.layerwise import AbsMax


def small_llama():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1)).eval()
    for block in model.model.layers:  # a norm that makes one channel stand out, as trained models have it
        block.input_layernorm.weight.data.uniform_(0.5, 1.5)
        block.input_layernorm.weight.data[3] = 40.0
    return model


TOKENS = torch.randint(0, 97, (4, 12), generator=torch.Generator().manual_seed(5))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([8, 6, 4]), st.sampled_from([(5, 16), (2, 3, 8)]))
def test_per_token_error_is_at_most_half_a_step(seed, bits, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x.view(-1, shape[-1])[0] = 0
    q, scale = activations.quantize_per_token(x, bits)
    assert torch.equal(q, q.round()) and q.abs().max() <= 2 ** (bits - 1) - 1
    assert ((q * scale - x).abs() <= scale / 2 * (1 + 1e-5)).all()


def test_static_clips_and_knows_no_other_scale():
    q, scale = activations.quantize_static(torch.tensor([0.0, 1.0, -1.0, 5.0, 0.004]), 1.0)
    assert q.tolist() == [0, 127, -127, 127, 1] and scale.item() == pytest.approx(1 / 127)
    q, scale = activations.quantize_static(torch.zeros(3), 0.0)
    assert q.tolist() == [0, 0, 0] and scale.item() == 1


def test_int8_linear_equals_an_integer_kernel():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 20, 32), torch.randn(24, 32), torch.randn(24)
    xq, x_scale = activations.quantize_per_token(x)
    wq, w_scale = activations.quantize_per_token(weight)
    sums = torch._int_mm(xq.reshape(-1, 32).to(torch.int8), wq.to(torch.int8).T.contiguous())  # int32
    expected = sums.reshape(2, 20, 24) * x_scale * w_scale.T + bias
    torch.testing.assert_close(activations.int8_linear(x, weight, bias), expected, rtol=1e-5, atol=1e-5)


def test_int8_linear_equals_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(1)
    x = torch.randn(20, 32)
    q, absmax, _ = functional.int8_vectorwise_quant(x.half())
    ours, scale = activations.quantize_per_token(x.half().float())
    torch.testing.assert_close(absmax.float(), scale.squeeze(-1) * 127)
    assert (q.float() - ours).abs().max() <= 1 and (q.float() != ours).float().mean() < 0.01


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.5, 2.0, 6.0, 100.0]))
def test_split_outliers_is_exact(seed, threshold):
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(2, 5, 12, generator=generator) * 2, torch.randn(7, 12, generator=generator)
    parts = activations.split_outliers(x, weight, threshold)
    torch.testing.assert_close(parts[0] @ parts[1].T + parts[2] @ parts[3].T, x @ weight.T)
    assert (parts[0].abs() < threshold).all()
    assert parts[2].numel() == 0 or (parts[2].abs() >= threshold).reshape(-1, parts[2].shape[-1]).any(0).all()
    assert parts[1].shape[1] + parts[3].shape[1] == 12


def test_llm_int8_helps_when_one_channel_stands_out():
    torch.manual_seed(0)
    x, weight = torch.randn(50, 64), torch.randn(32, 64)
    x[:, 7] *= 60
    exact = x @ weight.T
    plain = (activations.int8_linear(x, weight) - exact).square().mean()
    split = (activations.llm_int8_linear(x, weight) - exact).square().mean()
    assert split < plain / 20
    x[:, 7] /= 60
    none_split = activations.llm_int8_linear(x, weight, threshold=1e9)
    assert torch.equal(none_split, activations.int8_linear(x, weight))
    torch.testing.assert_close(activations.llm_int8_linear(x, weight, threshold=1e-9), x @ weight.T)


def test_smoothing_scale_balances_both_sides():
    x_absmax, w_absmax = torch.tensor([100.0, 1.0, 0.0]), torch.tensor([0.1, 0.5, 0.2])
    scale = activations.smoothing_scale(x_absmax, w_absmax, 0.5)
    torch.testing.assert_close((x_absmax / scale)[:2], (w_absmax * scale)[:2])
    assert (scale >= 1e-5).all() and torch.isfinite(scale).all()
    torch.testing.assert_close(activations.smoothing_scale(x_absmax, w_absmax, 1.0)[:2], x_absmax[:2])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_smoothing_leaves_the_model_as_it_was(alpha):
    model, reference = small_llama(), small_llama()
    statistics = layerwise.collect_statistics(model, TOKENS, AbsMax, progress=False)
    expected = activations.smooth(model, statistics, alpha)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, reference(TOKENS).logits, rtol=1e-3, atol=1e-4)
    measured = layerwise.collect_statistics(model, TOKENS, AbsMax, progress=False)
    for name, statistic in measured.items():
        torch.testing.assert_close(expected[name], statistic.absmax, rtol=1e-3, atol=1e-5)


def test_smoothing_helps_static_quantization():
    model, reference = small_llama(), small_llama()
    with torch.no_grad():
        exact = reference(TOKENS).logits
        statistics = layerwise.collect_statistics(model, TOKENS, AbsMax, progress=False)
        errors = []
        for absmax in ({n: s.absmax for n, s in statistics.items()}, activations.smooth(model, statistics)):
            layers = reference if not errors else model
            with activations.linear_calls(layers, activations.static_call(absmax)):
                errors.append((layers(TOKENS).logits - exact).square().mean())
    assert errors[1] < errors[0] / 2


def test_smooth_refuses():
    torch.manual_seed(0)
    bert = BertModel(BertConfig(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                num_attention_heads=4)).eval()
    statistics = layerwise.collect_statistics(bert, TOKENS, AbsMax, progress=False)
    with pytest.raises(ValueError, match="no factor can move from this LayerNorm"):
        activations.smooth(bert, statistics)
    with pytest.raises(ValueError, match="alpha must be from 0"):
        activations.smooth(small_llama(), {}, alpha=1.5)


def test_linear_calls_replaces_and_restores():
    model = small_llama()
    seen = []

    def call(name: str, layer: nn.Linear, x):
        seen.append(name)
        return F.linear(x, layer.weight, layer.bias)

    with torch.no_grad():
        before = model(TOKENS).logits
        with activations.linear_calls(model, call):
            assert torch.equal(model(TOKENS).logits, before)
        with pytest.raises(RuntimeError), activations.linear_calls(model, call):
            raise RuntimeError
        count = len(seen)
        assert torch.equal(model(TOKENS).logits, before)
    assert sorted(seen) == sorted(layerwise.block_linears(model)) and len(seen) == count
