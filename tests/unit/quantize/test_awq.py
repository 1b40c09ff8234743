"""course_utils.quantize.awq: invariants on small Llamas, brute force beside each search."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from course_utils import data, measure, models
from course_utils.quantize import affine, awq, layerwise
from course_utils.quantize.affine import Scheme
from course_utils.quantize.awq import whole_model

HIDDEN, VOCABULARY = 64, 64


def small_llama(kv_heads=2, seed=0, bias=False, dtype=torch.float32):
    """A two-block Llama whose input channels differ widely in size, as those of trained models do."""
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=96, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=kv_heads, attention_bias=bias,
                         mlp_bias=bias)
    model = LlamaForCausalLM(config).eval().to(dtype)
    for name, parameter in model.named_parameters():
        if "layernorm" in name:
            parameter.data.mul_(torch.exp(torch.randn(HIDDEN)))
        elif name.endswith("bias"):
            parameter.data.normal_(std=0.1)
        elif parameter.ndim == 2:
            parameter.data.mul_(10)
    return model


def tokens(n=8, length=16):
    return torch.randint(0, VOCABULARY, (n, length), generator=torch.Generator().manual_seed(1))


@st.composite
def schemes(draw):
    return Scheme(bits=draw(st.integers(2, 8)), group=draw(st.sampled_from([None, 8, 16, 32])),
                  symmetric=draw(st.booleans()), full_range=draw(st.booleans()),
                  scale_dtype=draw(st.sampled_from([torch.float32, torch.float16])))


# ---- formulas ----------------------------------------------------------------------------------------------

@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.sampled_from(awq.RATIOS))
def test_scales_are_positive_and_centred(seed, channels, ratio):
    generator = torch.Generator().manual_seed(seed)
    importance = torch.rand(channels, generator=generator) * 10.0 ** torch.randint(-6, 3, (channels,),
                                                                                   generator=generator)
    importance[0] = 0  # a dead channel
    scale = awq.awq_scale(importance, ratio)
    assert torch.isfinite(scale).all() and (scale > 0).all()
    assert (scale.max() * scale.min()).item() == pytest.approx(1, rel=1e-3)
    order = importance.argsort()
    assert (scale[order].diff() >= -1e-6 * scale.max()).all()


def test_ratio_zero_is_exactly_one():
    assert torch.equal(awq.awq_scale(torch.tensor([0.0, 1e-9, 3.0]), 0.0), torch.ones(3))


def test_importance_is_a_float32_mean_over_all_but_the_last_dimension():
    inputs = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = sum(inputs[i, j].abs() for i in range(3) for j in range(5)) / 15
    torch.testing.assert_close(awq.channel_importance(inputs), expected)
    many = torch.full((5000, 2), 1.001, dtype=torch.bfloat16)  # a running bfloat16 sum would stop at 256
    assert awq.channel_importance(many).dtype == torch.float32
    torch.testing.assert_close(awq.channel_importance(many), many[0].float())


def test_keep_channels_keeps_the_right_ones():
    weight = torch.randn(6, 200, generator=torch.Generator().manual_seed(0))
    channels = awq.salient_channels(torch.arange(200.0).flip(0), 0.01)
    assert channels.tolist() == [0, 1]
    kept = awq.keep_channels(weight, channels, Scheme(2))
    assert torch.equal(kept[:, :2], weight[:, :2])
    assert torch.equal(kept[:, 2:], affine.fake_quantize(weight, Scheme(2))[:, 2:])
    assert len(awq.salient_channels(torch.rand(8), 0.01)) == 1
    with pytest.raises(ValueError, match="fraction must be above 0"):
        awq.salient_channels(torch.rand(8), 0.0)


# ---- folding -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kv_heads, groups", [(4, 4), (2, 3), (1, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_folding_leaves_the_outputs_equal(kv_heads, groups, bias):
    """Any scale at all, at every place, with grouped-query attention and without, with biases and without."""
    model = small_llama(kv_heads, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        before = model(tokens()).logits
    generator = torch.Generator().manual_seed(3)
    for block in model.model.layers:
        found = awq.scaling_groups(block)
        assert len(found) == groups
        for group in found:
            channels = next(iter(group.layers.values())).in_features
            scale = torch.exp(torch.randn(channels, generator=generator, dtype=torch.float64))
            weights = [layer.weight.clone() for layer in group.layers.values()]
            awq.fold_scale(group.previous, list(group.layers.values()), scale)
            for layer, weight in zip(group.layers.values(), weights, strict=True):
                assert torch.equal(layer.weight, weight * scale)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens()).logits, before, rtol=1e-9, atol=1e-9)


def test_folding_v_into_o_with_grouped_heads_would_be_wrong():
    """The reason for leaving it out: o has more channels than v, so one scale each cannot move over."""
    attention = small_llama(kv_heads=2).model.layers[0].self_attn
    assert (attention.v_proj.out_features, attention.o_proj.in_features) == (32, 64)
    with pytest.raises(RuntimeError):
        awq.fold_scale(attention.v_proj, [attention.o_proj], torch.full((64,), 2.0))


def test_fold_into_a_layer_norm_with_bias():
    torch.manual_seed(0)
    norm, layers = nn.LayerNorm(8), [nn.Linear(8, 3), nn.Linear(8, 5)]
    nn.init.normal_(norm.bias)
    x, scale = torch.randn(4, 8), torch.rand(8) + 0.5
    before = [layer(norm(x)) for layer in layers]
    awq.fold_scale(norm, layers, scale)
    for layer, expected in zip(layers, before, strict=True):
        torch.testing.assert_close(layer(norm(x)), expected, rtol=1e-5, atol=1e-5)


def test_models_without_foldable_norms_are_refused_and_left_alone():
    bert = BertModel(BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                intermediate_size=64))
    before = {name: tensor.clone() for name, tensor in bert.state_dict().items()}
    with pytest.raises(ValueError, match="BertLayer is no Llama-style block"):
        awq.awq(bert, tokens(), Scheme(4), progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in bert.state_dict().items())


# ---- AWQ on a model ----------------------------------------------------------------------------------------

@settings(max_examples=25, deadline=None)
@given(schemes(), st.sampled_from([1, 2, 4]))
def test_ratio_zero_without_clipping_is_round_to_nearest(scheme, kv_heads):
    ours, plain = small_llama(kv_heads), small_llama(kv_heads)
    awq.awq(ours, tokens(), scheme, ratios=(0,), use_clip=False, progress=False)
    layerwise.round_to_nearest(plain, scheme)
    for (name, a), b in zip(ours.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@settings(max_examples=25, deadline=None)
@given(schemes(), st.integers(0, 1000))
def test_search_is_never_worse_than_rounding_and_puts_the_weights_back(scheme, seed):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(32, 12, bias=False)
    inputs = torch.randn(40, 32, generator=generator) * torch.exp(2 * torch.randn(32, generator=generator))
    before = layer.weight.detach().clone()
    importance = awq.channel_importance(inputs)
    found = awq.search_scale([layer], importance, scheme, lambda: layer(inputs), (0.5, 0.9))
    assert torch.equal(layer.weight, before) and found.ratios == (0.0, 0.5, 0.9)
    wanted = inputs @ before.T
    for ratio, error in zip(found.ratios, found.errors, strict=True):
        scale = awq.awq_scale(importance, ratio)
        rounded = affine.fake_quantize(before * scale, scheme)
        by_hand = ((inputs / scale) @ rounded.T - wanted).square().mean().item()
        assert error == pytest.approx(by_hand, rel=1e-3, abs=1e-6 * wanted.square().mean().item())
    assert min(found.errors) <= found.errors[0] and found.gain >= 1
    assert found.errors[found.ratios.index(found.ratio)] == min(found.errors)


@settings(max_examples=60, deadline=None)
@given(schemes(), st.integers(0, 1000), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_rounding_in_place_is_affines_rounding(scheme, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 64, generator=generator).to(dtype)
    scale = torch.rand(64, generator=generator).to(dtype) + 0.5
    before = weight.clone()
    ours = awq.scaled_fake_quantize(weight, scale, scheme)
    assert torch.equal(ours, affine.fake_quantize(weight * scale, scheme) / scale)
    assert torch.equal(weight, before) and ours.dtype == dtype


def test_scaling_helps_where_a_few_channels_are_large():
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(256, 64, bias=False)
    layer.weight.data.normal_(generator=generator)
    inputs = torch.randn(200, 256, generator=generator)
    inputs[:, :2] *= 30
    found = awq.search_scale([layer], awq.channel_importance(inputs), Scheme(3), lambda: layer(inputs))
    assert found.gain > 1.5 and found.ratio > 0
    # Nothing to win where all channels are alike.
    even = torch.randn(200, 256, generator=generator)
    assert awq.search_scale([layer], awq.channel_importance(even), Scheme(3), lambda: layer(even)).gain < 1.05


def test_weights_come_back_when_the_search_fails():
    layer, inputs = nn.Linear(8, 8), torch.full((4, 8), float("nan"))
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError, match="not finite"):
        awq.search_scale([layer], torch.ones(8), Scheme(4), lambda: layer(inputs))
    assert torch.equal(layer.weight, before)


@settings(max_examples=40, deadline=None)
@given(schemes(), st.integers(0, 1000), st.sampled_from([3, 20, 50]))
def test_clip_search_equals_brute_force(scheme, seed, n):
    """Each row and group gets the bound with the least |X (Wq - W)|^2, for fewer and more tokens than
    columns."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 32, generator=generator)
    inputs = torch.randn(n, 32, generator=generator) * torch.rand(32, generator=generator)
    bounds = awq.search_clip(weight, inputs, scheme)
    group = scheme.group or 32
    assert bounds.shape == (5, 32 // group)
    for row in range(5):
        for g in range(32 // group):
            columns = slice(g * group, (g + 1) * group)
            part, x = weight[row : row + 1, columns], inputs[:, columns]
            largest = part.abs().max()
            alone = Scheme(scheme.bits, None, scheme.symmetric, scheme.full_range, scheme.scale_dtype)

            def error(bound, part=part, x=x, alone=alone):
                moved = affine.fake_quantize(part.clamp(-bound, bound), alone) - part
                return (x @ moved.T).square().sum().item()

            best = min(error(largest * shrink) for shrink in awq.SHRINKS)
            assert error(bounds[row, g]) <= best * 1.001 + 1e-6


def test_clip_cuts_each_group_at_its_own_bound():
    weight = torch.tensor([[1.0, -3.0, 2.0, 5.0]])
    assert awq.clip(weight, torch.tensor([[2.0, 4.0]])).tolist() == [[1.0, -2.0, 2.0, 4.0]]


def test_q_and_k_are_never_clipped():
    """With ratio 0, clipping is all that can set the result apart from round to nearest."""
    clipped, plain = small_llama(), small_llama()
    scheme = Scheme(3, 16)
    choices = awq.awq(clipped, tokens(), scheme, ratios=(0,), progress=False)
    layerwise.round_to_nearest(plain, scheme)
    ours, theirs = layerwise.block_linears(clipped), layerwise.block_linears(plain)
    first = [name for name in ours if ".0." in name]  # later blocks see other inputs, but q, k never change
    for name in ours:
        if name.endswith(("q_proj", "k_proj")):
            assert torch.equal(ours[name].weight, theirs[name].weight), name
    assert all(not torch.equal(ours[name].weight, theirs[name].weight)
               for name in first if not name.endswith(("q_proj", "k_proj")))
    assert [c.name.split(".", 2)[2] for c in choices[:3]] == ["0.self_attn.q_proj", "0.mlp.gate_proj",
                                                              "0.mlp.down_proj"]


@pytest.mark.parametrize("symmetric", [True, False])
def test_output_error_order(symmetric):
    """On the calibration text: AWQ with clipping < AWQ < round to nearest, in the first block's output."""
    scheme, errors = Scheme(3, 32, symmetric), {}
    calibration = tokens(16, 32)
    for name, options in {"clip": {}, "scale": {"use_clip": False},
                          "plain": {"ratios": (0,), "use_clip": False}}.items():
        model, wanted = small_llama(), small_llama()
        awq.awq(model, calibration, scheme, progress=False, **options)
        with torch.no_grad():
            came, right = (m(calibration, output_hidden_states=True).hidden_states[1]
                           for m in (model, wanted))
            errors[name] = (came - right).square().mean().item()
    assert errors["clip"] < errors["scale"] < errors["plain"]


@pytest.fixture(scope="module")
def real_model():
    return models.load_lm()


@pytest.mark.slow
@pytest.mark.parametrize("group", [None, 64])
def test_awq_beats_rounding_on_held_out_text(real_model, group):
    """The real model at 4 bits, per channel and in groups: scaling alone, without clipping, a coarse grid."""
    original, tokenizer = real_model
    heldout = data.wikipedia_tokens(tokenizer, "heldout", 512)
    calibration = data.windows(data.wikipedia_tokens(tokenizer, "calibration", 512), 256)
    scheme, found = Scheme(4, group), {"FP32": measure.perplexity(original, heldout).value}
    for name, ratios in (("AWQ", (0.2, 0.4, 0.6)), ("RTN", ())):
        model = copy.deepcopy(original)
        if ratios:
            awq.awq(model, calibration, scheme, ratios=ratios, use_clip=False, progress=False)
        else:
            layerwise.round_to_nearest(model, scheme)
        found[name] = measure.perplexity(model, heldout).value
    assert found["FP32"] < found["AWQ"] < 0.97 * found["RTN"], found


def test_same_result_twice_and_restored_after_an_interrupt(monkeypatch):
    first, second = small_llama(), small_llama()
    awq.awq(first, tokens(), Scheme(4, 16), progress=False)
    awq.awq(second, tokens(), Scheme(4, 16), progress=False)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    model, calls, search = small_llama(), [], awq.search_scale

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return search(*args, **kwargs)

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    monkeypatch.setattr(whole_model, "search_scale", interrupted)
    with pytest.raises(KeyboardInterrupt):
        awq.awq(model, tokens(), Scheme(4, 16), progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_keep_salient_by_activation_beats_random_in_output_error():
    importance = awq.model_importance(small_llama(), tokens(), progress=False)
    scheme, errors = Scheme(2), {}
    with torch.no_grad():
        wanted = small_llama()(tokens(), output_hidden_states=True).hidden_states[1]
        for by in ("activation", "weight", "random"):
            model = small_llama()
            awq.keep_salient(model, importance, scheme, by, fraction=0.1)
            came = model(tokens(), output_hidden_states=True).hidden_states[1]
            errors[by] = (came - wanted).square().mean()
    assert errors["activation"] < errors["random"]
    with pytest.raises(ValueError, match='by must be "activation"'):
        awq.keep_salient(small_llama(), importance, scheme, by="size")


def test_other_dtypes_run():
    model = small_llama(dtype=torch.bfloat16)
    awq.awq(model, tokens(), Scheme(4, 16), progress=False)
    assert all(p.dtype == torch.bfloat16 and torch.isfinite(p).all() for p in model.parameters())


def test_bad_arguments():
    with pytest.raises(ValueError, match="ratios must lie between 0 and 1"):
        awq.awq(small_llama(), tokens(), Scheme(4), ratios=(1.5,), progress=False)
    with pytest.raises(ValueError, match="search_tokens must be positive"):
        awq.awq(small_llama(), tokens(), Scheme(4), search_tokens=0, progress=False)
    with pytest.raises(ValueError, match="has no groups"):
        awq.awq(small_llama(), tokens(), Scheme(4, "tensor"), progress=False)
    with pytest.raises(TypeError, match="LongTensor"):
        awq.awq(small_llama(), torch.rand(2, 3), Scheme(4), progress=False)
    with pytest.raises(ValueError, match="group 48 does not divide"):
        awq.awq(small_llama(), tokens(), Scheme(4, 48), progress=False)
