"""GPTQ against a brute-force optimal brain quantizer, and what must hold for every shape, width and group."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils.quantize import affine, gptq, layerwise
from course_utils.quantize.affine import Scheme
from course_utils.quantize.gptq import columns, whole_model

SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def problems(draw, max_groups=4):
    """(weight, Hessian, scheme): correlated inputs, any width, groups smaller and larger than a block."""
    seed = draw(st.integers(0, 2**31 - 1))
    group = draw(st.sampled_from([2, 4, 8]))
    groups = draw(st.integers(1, max_groups))
    rows = draw(st.integers(1, 5))
    bits = draw(st.integers(2, 8))
    symmetric = draw(st.booleans())
    width = group * groups
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    inputs = torch.randn(6 * width, width, generator=generator, dtype=torch.float64) @ mixing
    weight = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    scheme = Scheme(bits, group if draw(st.booleans()) else None, symmetric, scale_dtype=torch.float32)
    return weight, 2 * inputs.T @ inputs / len(inputs), scheme


def damped(hessian, damping=0.01):
    return hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)


def brute_force(weight, hessian, scheme, columns, static_groups=False):
    """GPTQ with explicit inverses: at each step the inverse of the Hessian of the columns that are left."""
    work = weight[:, columns].clone()
    hessian = hessian[columns][:, columns]
    width = work.shape[1]
    group = scheme.group or width
    for j in range(width):
        if static_groups:
            start = int(columns[j]) // group * group
            scale, zero = affine.parameters(weight[:, start : start + group], scheme)
        elif j % group == 0:
            scale, zero = affine.parameters(work[:, j : j + group], scheme)
        q = affine.to_integers(work[:, j : j + 1], scale, zero, scheme)
        error = work[:, j : j + 1] - affine.from_integers(q, scale, zero)
        inverse = torch.linalg.inv(hessian[j:, j:])
        work[:, j:] -= error * inverse[0] / inverse[0, 0]
    return work[:, columns.argsort()]


@SETTINGS
@given(problems(), st.sampled_from(gptq.ORDERS), st.booleans())
def test_equals_brute_force(problem, order, static_groups):
    weight, hessian, scheme = problem
    columns = gptq.column_order(hessian, order, scheme.group or weight.shape[1])
    expected = brute_force(weight, damped(hessian), scheme, columns, static_groups)
    found = gptq.gptq(weight, hessian, scheme, order=order, static_groups=static_groups).dequantize()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_blocks_smaller_than_a_group_change_nothing(monkeypatch):
    torch.manual_seed(0)
    inputs = torch.randn(200, 48, dtype=torch.float64) @ torch.randn(48, 48, dtype=torch.float64)
    weight, hessian = torch.randn(3, 48, dtype=torch.float64), inputs.T @ inputs
    for scheme in (Scheme(4), Scheme(3, 24), Scheme(4, 16, symmetric=False)):
        whole = gptq.gptq(weight, hessian, scheme)
        monkeypatch.setattr(columns, "BLOCK", 7)
        pieces = gptq.gptq(weight, hessian, scheme)
        monkeypatch.undo()
        assert torch.equal(whole.q, pieces.q) and torch.equal(whole.scale, pieces.scale)


@SETTINGS
@given(problems(), st.sampled_from(gptq.ORDERS))
def test_identity_hessian_is_round_to_nearest(problem, order):
    weight, hessian, scheme = problem
    found = gptq.gptq(weight.float(), torch.eye(len(hessian)), scheme, order=order)
    nearest = affine.quantize(weight.float(), scheme)
    assert torch.equal(found.q.int(), nearest.q.int())
    torch.testing.assert_close(found.scale, nearest.scale)


@SETTINGS
@given(problems(), st.sampled_from(gptq.ORDERS))
def test_static_groups_have_the_scales_of_round_to_nearest_in_every_order(problem, order):
    weight, hessian, scheme = problem
    found = gptq.gptq(weight.float(), hessian.float(), scheme, order=order, static_groups=True)
    nearest = affine.quantize(weight.float(), scheme)
    assert torch.equal(found.scale, nearest.scale) and torch.equal(found.zero, nearest.zero)
    assert torch.equal(found.g_idx.long(), torch.arange(weight.shape[1]) // (scheme.group or weight.shape[1]))


def test_one_row_of_optimal_brain_quantizer_in_natural_order_is_gptq():
    torch.manual_seed(3)
    weight = torch.randn(4, 12, dtype=torch.float64)
    inputs = torch.randn(60, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64)
    hessian, scheme = inputs.T @ inputs, Scheme(3, scale_dtype=torch.float32)
    found = gptq.gptq(weight, hessian, scheme).dequantize()
    for row, expected in zip(weight, found, strict=True):
        scale, zero = affine.parameters(row[None], scheme)

        def nearest(w, scale=scale[0], zero=zero[0]):
            return affine.from_integers(affine.to_integers(w, scale, zero, scheme), scale, zero)

        quantized, order = gptq.optimal_brain_row(row, damped(hessian), nearest, "natural")
        assert order == list(range(12))
        torch.testing.assert_close(quantized.float(), expected.float())


def test_greedy_order_starts_with_the_cheapest_weight():
    hessian = torch.eye(3, dtype=torch.float64)
    row = torch.tensor([0.4, 1.05, 2.3], dtype=torch.float64)
    quantized, order = gptq.optimal_brain_row(row, hessian, torch.round)
    assert order == [1, 2, 0]
    assert quantized.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="greedy"):
        gptq.optimal_brain_row(row, hessian, torch.round, "random")


def test_optimal_brain_row_beats_rounding_on_correlated_inputs():
    """Two inputs that are always equal: 0.5 + 0.5 is 1 when one is rounded up and the other down."""
    hessian = torch.tensor([[1.0, 1.0], [1.0, 1.0]]) + 0.01 * torch.eye(2)
    row = torch.tensor([0.45, 0.45])
    quantized, _ = gptq.optimal_brain_row(row, hessian, torch.round, "natural")
    assert quantized.tolist() == [0, 1]


def test_output_error_is_the_error_of_the_output():
    torch.manual_seed(0)
    inputs, weight, other = torch.randn(30, 5), torch.randn(4, 5), torch.randn(4, 5)
    hessian = 2 * inputs.T @ inputs / 30
    direct = (inputs @ weight.T - inputs @ other.T).square().sum(dim=1).mean()
    assert gptq.output_error(weight, other, hessian) == pytest.approx(direct.item(), rel=1e-4)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("group", [None, 16])
@pytest.mark.parametrize("order", gptq.ORDERS)
def test_output_error_is_below_round_to_nearest(bits, group, order):
    """Not a theorem for every matrix; it holds with a wide margin for correlated inputs."""
    torch.manual_seed(bits)
    inputs = torch.randn(400, 64) @ torch.randn(64, 64)
    weight, hessian, scheme = torch.randn(32, 64), 2 * inputs.T @ inputs / 400, Scheme(bits, group)
    found = gptq.gptq(weight, hessian, scheme, order=order).dequantize()
    nearest = affine.fake_quantize(weight, scheme)
    assert gptq.output_error(weight, found, hessian) < 0.8 * gptq.output_error(weight, nearest, hessian)


def test_activation_order_of_a_sorted_diagonal_is_the_natural_order():
    torch.manual_seed(0)
    weight, inputs = torch.randn(3, 16), torch.randn(200, 16)
    hessian = inputs.T @ inputs / 200
    hessian += torch.diag(torch.arange(32.0, 0, -2))
    natural = gptq.gptq(weight, hessian, Scheme(4, 4))
    for order in ("activation", "grouped"):
        found = gptq.gptq(weight, hessian, Scheme(4, 4), order=order)
        assert torch.equal(found.q, natural.q) and torch.equal(found.g_idx, natural.g_idx)


def test_permuting_the_inputs_permutes_the_result_in_activation_order():
    torch.manual_seed(1)
    weight, inputs = torch.randn(3, 16), torch.randn(300, 16) * torch.linspace(0.5, 4, 16)
    hessian, shuffled = inputs.T @ inputs, torch.randperm(16)
    plain = gptq.gptq(weight, hessian, Scheme(4, 4), order="activation").dequantize()
    moved = gptq.gptq(weight[:, shuffled], hessian[shuffled][:, shuffled], Scheme(4, 4), order="activation")
    torch.testing.assert_close(moved.dequantize(), plain[:, shuffled])


def test_grouped_order_keeps_groups_of_neighbours():
    torch.manual_seed(0)
    weight, inputs = torch.randn(3, 16), torch.randn(300, 16) * torch.linspace(0.5, 4, 16)
    found = gptq.gptq(weight, inputs.T @ inputs, Scheme(4, 4), order="grouped")
    assert found.g_idx.tolist() == [i // 4 for i in range(16)]
    as_plain = affine.Quantized(found.q, found.scale, found.zero, found.scheme, torch.float32)
    torch.testing.assert_close(found.dequantize(), affine.dequantize(as_plain))


def test_dead_inputs_get_weight_zero_and_disturb_nothing():
    torch.manual_seed(0)
    inputs, weight = torch.randn(100, 8), torch.randn(4, 8)
    inputs[:, 3] = 0
    found = gptq.gptq(weight, inputs.T @ inputs, Scheme(4), damping=0.0).dequantize()
    assert (found[:, 3] == 0).all() and torch.isfinite(found).all()
    assert torch.equal(weight[:, 3] == 0, torch.zeros(4, dtype=torch.bool)), "the argument was changed"


def test_singular_hessian_raises_the_damping_and_says_so():
    hessian = torch.ones(6, 6)
    with pytest.warns(UserWarning, match="raised"):
        found = gptq.gptq(torch.randn(2, 6), hessian, Scheme(4), damping=0.0)
    assert found.damping > 0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (dict(scheme=Scheme(4, 5)), "does not divide"),
        (dict(scheme=Scheme(4, "tensor")), "by row or by group"),
        (dict(hessian=torch.eye(7)), r"needs a Hessian \[8, 8\]"),
        (dict(hessian=torch.full((8, 8), torch.nan)), "NaN"),
        (dict(weight=torch.full((2, 8), torch.inf)), "NaN or infinite"),
        (dict(order="random"), "order must be"),
        (dict(damping=-1.0), "damping"),
    ],
)
def test_wrong_arguments(arguments, match):
    given = dict(weight=torch.randn(2, 8), hessian=torch.eye(8), scheme=Scheme(4)) | arguments
    with pytest.raises(ValueError, match=match):
        gptq.gptq(**given)


# ---- a whole model ---------------------------------------------------------------------------------------


def tiny():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64)  # fmt: skip
    return LlamaForCausalLM(config).eval(), torch.randint(0, 64, (8, 32))


@pytest.mark.parametrize("sequential", [False, True])
def test_model_gets_the_weights_that_are_kept(sequential):
    model, tokens = tiny()
    before = {name: p.clone() for name, p in model.named_parameters()}
    keep = {}
    reports = gptq.quantize_model(model, tokens, Scheme(4, 16), sequential=sequential, keep=keep,
                                  progress=False)
    linears = layerwise.block_linears(model)
    assert set(keep) == set(linears) == {report.name for report in reports}
    for name, linear in linears.items():
        assert torch.equal(linear.weight, keep[name].dequantize())
    assert torch.equal(model.model.embed_tokens.weight, before["model.embed_tokens.weight"])
    assert sum(r.gptq_error < r.nearest_error for r in reports) >= len(reports) - 2


def test_stacked_layers_get_what_each_would_get_alone():
    """q, k and v share one Hessian: quantizing their stacked rows is quantizing each by itself."""
    model, tokens = tiny()
    statistics = layerwise.collect_statistics(model, tokens, layerwise.Hessian, progress=False)
    name = "model.layers.0.self_attn.k_proj"
    alone = gptq.gptq(model.get_submodule(name).weight, statistics[name].matrix, Scheme(4, 16))
    keep = {}
    gptq.quantize_model(model, tokens, Scheme(4, 16), keep=keep, progress=False)
    torch.testing.assert_close(keep[name].dequantize(), alone.dequantize())


def test_interrupted_run_puts_the_model_back(monkeypatch):
    model, tokens = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    original = gptq.gptq
    monkeypatch.setattr(whole_model, "gptq", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gptq.quantize_model(model, tokens, Scheme(4, 16), progress=False)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_group_that_does_not_fit_names_the_layer():
    model, tokens = tiny()
    with pytest.raises(ValueError, match=r"model\.layers\.0\.self_attn\.q_proj: group 24"):
        gptq.quantize_model(model, tokens, Scheme(4, 24), progress=False)


def test_weight_pushed_past_the_grid_is_rounded_at_once():
    """A grid that ends at 1: the first weight is far outside, costs most, and must not wait."""
    row = torch.tensor([3.0, 0.05, 0.9], dtype=torch.float64)
    hessian = torch.eye(3, dtype=torch.float64)

    def nearest(w):
        return w.round().clamp(-1, 1)

    _, order = gptq.optimal_brain_row(row, hessian, nearest)
    assert order[-1] == 0
    _, order = gptq.optimal_brain_row(row, hessian, nearest, limit=0.5)
    assert order[0] == 0
