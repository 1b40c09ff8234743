"""course_utils.quantize.qat against finite differences, torch's own kernels, torchao and the LSQ paper."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from course_utils import measure
from course_utils.quantize import affine, packed, qat
from course_utils.quantize.affine import Scheme


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small_classifier(seed=0):
    """A BERT classifier of 2 layers and width 32, random weights, in eval mode."""
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                        intermediate_size=64, max_position_embeddings=32, num_labels=2)
    return BertForSequenceClassification(config).eval()


def tokens(n=6, length=10, seed=0):
    return torch.randint(0, 100, (n, length), generator=seeded(seed))


@st.composite
def grids(draw):
    """Values, a grid whose ends cut some of them off, and a gradient from above."""
    scheme = Scheme(bits=draw(st.integers(2, 8)), symmetric=draw(st.booleans()), scale_dtype=torch.float32)
    generator = seeded(draw(st.integers(0, 2**31)))
    shape = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    scale = torch.full((), draw(st.floats(0.05, 0.5)), dtype=torch.float64)
    zero = 0.0 if scheme.symmetric else float(draw(st.integers(0, scheme.qmax)))
    zero = torch.tensor(zero, dtype=torch.float64)
    # Not next to a tie or to the point where clipping begins: there the slope is a convention.
    near = ((x / scale + 0.5) - torch.round(x / scale + 0.5)).abs() < 1e-3
    x = torch.where(near, x + 0.01 * scale, x)
    return x, scale, zero, scheme, torch.randn(shape, generator=generator, dtype=torch.float64)


# ---- straight-through -------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(grids())
def test_gradient_equals_the_slope_of_the_function_without_rounding(case):
    x, scale, zero, scheme, above = case
    x.requires_grad_()
    qat.fake_quantize(x, scale, zero, scheme).backward(above)

    def without_rounding(value):  # clipped where the nearest integer leaves the grid
        low, high = scheme.qmin - zero - 0.5, scheme.qmax - zero + 0.5
        return scale * torch.clamp(value / scale, low, high)

    step = 1e-5 * scale
    with torch.no_grad():
        slope = (without_rounding(x + step) - without_rounding(x - step)) / (2 * step)
    torch.testing.assert_close(x.grad, slope * above, rtol=1e-6, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(grids())
def test_forward_and_gradients_equal_torchs_learnable_fake_quantization(case):
    x, scale, zero, scheme, above = (t.float() if isinstance(t, torch.Tensor) else t for t in case)
    results = []
    for ours in (True, False):
        x, scale = x.detach().clone().requires_grad_(), scale.detach().clone().reshape(1).requires_grad_()
        if ours:
            y = qat.fake_quantize(x, scale, zero, scheme)
        else:
            y = torch._fake_quantize_learnable_per_tensor_affine(
                x, scale, zero.reshape(1), scheme.qmin, scheme.qmax, 1.0)
        y.backward(above)
        results.append((y.detach(), x.grad, scale.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_per_channel_equals_torchs_kernel_without_a_learned_scale(bits):
    scheme = Scheme(bits, scale_dtype=torch.float32)
    weight = torch.randn(16, 24, generator=seeded())
    scale, zero = affine.parameters(weight, scheme)
    scale = 0.99 * scale  # the largest weight of a row would lie on a tie: half a step outside of the grid
    above = torch.randn(16, 24, generator=seeded(1))
    ours, theirs = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    y = qat.fake_quantize(ours, scale, zero, scheme)
    y.backward(above)
    expected = torch.fake_quantize_per_channel_affine(
        theirs, scale.flatten(), zero.flatten().int(), 0, scheme.qmin, scheme.qmax)
    expected.backward(above)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


@settings(max_examples=50, deadline=None)
@given(grids())
def test_forward_is_exactly_quantize_then_dequantize(case):
    x, scale, zero, scheme, _ = case
    expected = affine.from_integers(affine.to_integers(x, scale, zero, scheme), scale, zero)
    assert torch.equal(qat.fake_quantize(x, scale, zero, scheme), expected)


def test_rounding_alone_has_no_gradient_and_straight_through_has_one():
    x = torch.tensor([-2.6, -0.2, 0.2, 0.5, 1.5, 7.0], requires_grad=True)
    torch.round(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros(6))
    x.grad = None
    y = qat.straight_through(x, -2, 3)
    y.sum().backward()
    assert y.tolist() == [-2, 0, 0, 0, 2, 3]
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]


# ---- the layer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["W8A8", "W4A8", "W4A4", "W2A8"])
def test_layer_equals_dequantized_inputs_times_dequantized_weight(name):
    spec = qat.spec(name)
    linear = nn.Linear(48, 20)
    x = torch.randn(3, 7, 48, generator=seeded()) + 0.5
    y = qat.FakeQuantLinear(linear, spec)(x)
    rounded = affine.fake_quantize(x.reshape(-1, 48), spec.activation).reshape(x.shape)
    expected = F.linear(rounded, affine.fake_quantize(linear.weight, spec.weight), linear.bias)
    torch.testing.assert_close(y, expected)
    assert not torch.allclose(y, linear(x), atol=1e-4)  # there is an error to train against


def test_gradients_of_the_layer_are_those_of_a_float_layer_on_the_rounded_values():
    spec = qat.spec("W4A8")
    linear = nn.Linear(16, 8)
    x = torch.randn(5, 16, generator=seeded(), requires_grad=True)
    above = torch.randn(5, 8, generator=seeded(1))
    qat.FakeQuantLinear(linear, spec)(x).backward(above)
    rounded_x = affine.fake_quantize(x.detach(), spec.activation)
    rounded_w = affine.fake_quantize(linear.weight, spec.weight)
    expected = above.T @ rounded_x
    # The grid of absmax / 7.5 ends half a step before the largest weight of a row: on the tie, and its
    # gradient is cut off when it rounds upwards. All others pass.
    largest = linear.weight.abs() == linear.weight.abs().amax(dim=1, keepdim=True)
    torch.testing.assert_close(linear.weight.grad[~largest], expected[~largest])
    torch.testing.assert_close(x.grad, above @ rounded_w)
    torch.testing.assert_close(linear.bias.grad, above.sum(dim=0))


@pytest.mark.parametrize("bits, activation_bits", [(8, 8), (4, 8), (4, 4), (2, 8)])
def test_values_and_gradients_equal_torchaos(bits, activation_bits):
    pytest.importorskip("torchao")
    from torchao.quantization.qat import IntxFakeQuantizeConfig
    from torchao.quantization.qat.fake_quantizer import FakeQuantizerBase

    their_weight = FakeQuantizerBase.from_config(
        IntxFakeQuantizeConfig(getattr(torch, f"int{bits}"), "per_channel", is_symmetric=True))
    their_input = FakeQuantizerBase.from_config(
        IntxFakeQuantizeConfig(getattr(torch, f"int{activation_bits}"), "per_token", is_symmetric=False))
    layer = qat.FakeQuantLinear(nn.Linear(64, 32), qat.spec(f"W{bits}A{activation_bits}"))
    x = torch.randn(50, 64, generator=seeded())
    for ours, theirs, values in ((lambda _: layer.rounded_weight(), their_weight, layer.weight),
                                 (layer.rounded_input, their_input, x)):
        other = values.detach().clone().requires_grad_()
        mine = values.requires_grad_()
        above = torch.randn(values.shape, generator=seeded(1))
        y, y_other = ours(mine), theirs(other)
        y.backward(above)
        y_other.backward(above)
        # The largest weight of a row lies half a step outside of the grid: a tie, which a different order of
        # operations breaks differently. All other values are the same.
        edge = torch.zeros_like(values, dtype=torch.bool)
        if values is layer.weight:
            edge = values.abs() == values.abs().amax(dim=1, keepdim=True)
        torch.testing.assert_close(y[~edge], y_other[~edge])
        torch.testing.assert_close(mine.grad[~edge], other.grad[~edge])


def test_a_scale_for_all_tokens_follows_the_inputs_in_training_and_then_stays():
    spec = qat.spec("W8A8", per="tensor")
    layer = qat.FakeQuantLinear(nn.Linear(8, 4), spec).eval()
    x = torch.randn(30, 8, generator=seeded())
    with pytest.raises(RuntimeError, match="calibrate"):
        layer(x)
    layer.train()(x)
    assert layer.range.tolist() == [x.min(), x.max()]
    layer(2 * x)
    torch.testing.assert_close(layer.range[1], 0.9 * x.max() + 0.1 * 2 * x.max())
    before = layer.range.clone()
    y = layer.eval()(10 * x)
    assert torch.equal(layer.range, before)
    # What lies outside of the range is cut off.
    largest = layer.weight.abs().sum(dim=1) * before.abs().max() + layer.bias.abs()
    assert (y.abs() <= 1.01 * largest).all()


# ---- learned scale ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gradient_of_the_scale_is_the_papers(bits):
    """Equations 2 to 4 of arXiv 1902.08153, element by element in float64."""
    scheme = Scheme(bits, scale_dtype=torch.float32)
    x = torch.randn(3, 50, generator=seeded(), dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([[0.1], [0.6], [2.0]], dtype=torch.float64, requires_grad=True)
    above = torch.randn(3, 50, generator=seeded(1), dtype=torch.float64)
    y = qat.learned_scale(x, scale, scheme)
    y.backward(above)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for row in range(3):
        s, total = scale[row].item(), 0.0
        for column in range(50):
            v = x[row, column].item()
            q = round(v / s)
            if q < low or q > high:
                slope, q, passes = (low if q < low else high), (low if q < low else high), 0.0
            else:
                slope, passes = q - v / s, 1.0
            total += slope * above[row, column].item()
            assert y[row, column].item() == pytest.approx(q * s)
            assert x.grad[row, column].item() == pytest.approx(passes * above[row, column].item())
        assert scale.grad[row].item() == pytest.approx(total / math.sqrt(50 * high))


def test_training_the_scale_lowers_the_error_of_rounding():
    scheme = Scheme(bits=3, scale_dtype=torch.float32)
    weight = torch.randn(4, 200, generator=seeded())
    scale = nn.Parameter(3 * qat.first_scale(weight, scheme))

    def error():
        return (qat.learned_scale(weight, scale, scheme) - weight).square().sum(dim=-1)

    before = error().detach()
    optimizer = torch.optim.SGD([scale], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        error().sum().backward()
        optimizer.step()
    best, _ = affine.search_clip(weight, scheme, steps=80, smallest=0.2)
    nearest = affine.to_integers(weight, best, torch.zeros(1), scheme)
    optimum = (affine.from_integers(nearest, best, 0) - weight).square().sum(dim=-1)
    assert (error() < 0.5 * before).all()
    assert (error() < 1.1 * optimum).all()  # near the best of 80 scales tried


def test_first_scale_is_the_papers_and_never_zero():
    x = torch.tensor([[1.0, -3.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert qat.first_scale(x, Scheme(bits=4)).tolist() == [[pytest.approx(2 * 1.5 / math.sqrt(7))], [1.0]]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_learned_scales_stay_positive_when_adams_steps_are_longer_than_they_are(bits):
    torch.manual_seed(0)
    linear = nn.Linear(64, 16, bias=False)
    linear.weight.data *= 0.1
    target, x = linear.weight.detach().clone(), torch.randn(200, 64)
    layer = qat.FakeQuantLinear(linear, qat.spec(f"W{bits}A8", learned=True))
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    crossed = 0
    for _ in range(60):
        optimizer.zero_grad()
        F.mse_loss(layer(x), x @ target.t()).backward()
        optimizer.step()
        crossed += int((layer.scale <= 0).sum())
    assert bits < 8 or crossed > 0  # at 8 bits the steps do cross 0: there is something to guard against
    with torch.no_grad():
        expected = layer(x)
        assert (layer.scale > 0).all()
        torch.testing.assert_close(qat.ConvertedLinear(layer)(x), expected, rtol=1e-4, atol=1e-5)
        assert F.mse_loss(expected, x @ target.t()) < 0.5 * (x @ target.t()).var()


# ---- whole models -----------------------------------------------------------------------------------------


def test_prepare_changes_the_blocks_only_and_shares_their_parameters():
    model = small_classifier()
    before = dict(model.named_parameters())
    qat.prepare(model, qat.spec("W4A8"))
    assert len(qat.fake_quant_layers(model)) == 2 * 6
    assert all(".layer." in name for name in qat.fake_quant_layers(model))
    assert type(model.classifier) is nn.Linear and type(model.bert.pooler.dense) is nn.Linear
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    with pytest.raises(ValueError, match="prepared already"):
        qat.prepare(model, qat.spec("W4A8"))


def test_untrained_prepared_model_equals_packed_post_training_quantization():
    spec = qat.spec("W4A8")
    reference, model = small_classifier(), small_classifier()
    packed.replace_linears(reference, spec.weight, progress=False)

    def round_input(module, args):
        return affine.fake_quantize(args[0].flatten(0, -2), spec.activation).reshape_as(args[0])

    for layer in [m for m in reference.modules() if isinstance(m, packed.QuantLinear)]:
        layer.register_forward_pre_hook(round_input)
    with torch.no_grad():
        expected = reference(tokens()).logits
        torch.testing.assert_close(qat.prepare(model, spec)(tokens()).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["W8A8", "W4A4", "W2A8", "W3A5"])
@pytest.mark.parametrize("per, learned", [("token", False), ("token", True), ("tensor", False)])
def test_converted_model_equals_the_trained_one_and_is_small(name, per, learned):
    model = qat.prepare(small_classifier(), qat.spec(name, per=per, learned=learned)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    labels = torch.tensor([0, 1] * 3)
    for step in range(4):
        loss = F.cross_entropy(model(tokens(seed=step)).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(layer.weight.grad.abs().sum() > 0 for layer in qat.fake_quant_layers(model).values())
        optimizer.step()
    model.eval()
    with torch.no_grad():
        expected = model(tokens(seed=9)).logits
        float_bytes = measure.weight_bytes(model.bert.encoder).total
        converted = qat.convert(model)
        torch.testing.assert_close(converted(tokens(seed=9)).logits, expected, rtol=1e-4, atol=1e-5)
    bits = int(name[1])
    weights = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    packed_bytes = sum(m.packed.numel() for m in model.modules() if isinstance(m, packed.QuantLinear))
    assert packed_bytes == weights * bits // 8
    assert measure.weight_bytes(model.bert.encoder).total < float_bytes
    with pytest.raises(ValueError, match="no fake-quantized layers"):
        qat.convert(model)


def test_calibrate_sets_ranges_and_leaves_modes_and_weights_alone():
    model = qat.prepare(small_classifier(), qat.spec("W8A8", per="tensor"))
    before = copy.deepcopy({k: v for k, v in model.state_dict().items() if "range" not in k})
    model.bert.train()
    qat.calibrate(model, [{"input_ids": tokens(seed=seed)} for seed in range(3)])
    assert model.bert.training and not model.classifier.training
    model.eval()
    assert all(layer.range.isfinite().all() for layer in qat.fake_quant_layers(model).values())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert model(tokens()).logits.isfinite().all()


def test_state_dict_of_a_prepared_model_round_trips():
    spec = qat.spec("W2A8", learned=True)
    model, other = qat.prepare(small_classifier(0), spec), qat.prepare(small_classifier(1), spec)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, other(tokens()).logits)


@pytest.mark.parametrize("name", ["W9A8", "4A8", "W4", "w4a8", "W1A8", 8])
def test_unknown_settings_are_refused(name):
    with pytest.raises(ValueError, match="W4A8"):
        qat.spec(name)


def test_other_bad_input_is_refused():
    with pytest.raises(ValueError, match="token"):
        qat.spec("W4A8", per="channel")
    with pytest.raises(ValueError, match="group=None"):
        qat.Spec(Scheme(4, group=8), Scheme(8))
    with pytest.raises(ValueError, match="symmetric"):
        qat.Spec(Scheme(4, symmetric=False), Scheme(8), learned=True)
    linear = nn.Linear(4, 4)
    nn.init.constant_(linear.weight, torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        qat.FakeQuantLinear(linear, qat.spec("W4A8"))
    layer = qat.FakeQuantLinear(nn.Linear(4, 4), qat.spec("W4A8", learned=True))
    nn.init.constant_(layer.scale, torch.nan)
    with pytest.raises(ValueError, match="lower lr"):
        layer.quantized_weight()
