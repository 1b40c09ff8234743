"""SparseGPT against explicit inverses, and what must hold for every matrix."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from course_utils.prune import sparsegpt, unstructured
from course_utils.quantize import gptq, layerwise
from tests.unit.prune.test_unstructured import llama, text

SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def problems(draw):
    """(weight, Hessian, sparsity), float64: correlated inputs, shares and patterns."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    width, rows = 4 * draw(st.integers(1, 6)), draw(st.integers(1, 6))
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    inputs = torch.randn(6 * width, width, generator=generator, dtype=torch.float64) @ mixing
    weight = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    sparsity = draw(st.sampled_from([0.1, 0.5, 0.8, (2, 4), (1, 4), (1, 2)]))
    return weight, 2 * inputs.T @ inputs / len(inputs), sparsity


def damped(hessian, damping=0.01):
    return hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=hessian.dtype)


def brute_force(weight, hessian, sparsity, block):
    """SparseGPT with an explicit inverse for each column that is left: no Cholesky factor, no lazy update."""
    work = weight.clone()
    width = work.shape[1]
    together = sparsity[1] if isinstance(sparsity, tuple) else block
    for j in range(width):
        if j % together == 0:
            some = range(j, min(j + together, width))
            # the cost of a removal, when the columns before it are gone
            inverses = [torch.linalg.inv(hessian[c:, c:])[0, 0] for c in some]
            cost = torch.stack([work[:, c].square() / d for c, d in zip(some, inverses, strict=True)], 1)
            mask = unstructured.mask_of(cost, sparsity)
        inverse = torch.linalg.inv(hessian[j:, j:])
        error = work[:, j : j + 1] * ~mask[:, j % together, None]
        work[:, j:] -= error * inverse[0] / inverse[0, 0]
    return work


@SETTINGS
@given(problems())
def test_equals_brute_force(problem):
    weight, hessian, sparsity = problem
    expected = brute_force(weight, damped(hessian), sparsity, sparsegpt.BLOCK)
    torch.testing.assert_close(sparsegpt.sparsegpt(weight, hessian, sparsity), expected, rtol=1e-6, atol=1e-8)


def test_several_blocks_equal_brute_force(monkeypatch):
    torch.manual_seed(0)
    inputs = torch.randn(200, 24, dtype=torch.float64) @ torch.randn(24, 24, dtype=torch.float64)
    weight, hessian = torch.randn(5, 24, dtype=torch.float64), inputs.T @ inputs / 100
    monkeypatch.setattr(sparsegpt, "BLOCK", 8)
    for sparsity in (0.5, (2, 4), (4, 8)):
        found = sparsegpt.sparsegpt(weight, hessian, sparsity)
        torch.testing.assert_close(found, brute_force(weight, damped(hessian), sparsity, 8))


def test_each_step_is_that_of_gptq():
    """With the mask of the result given, SparseGPT is gptq.column_update from left to right."""
    torch.manual_seed(0)
    inputs, weight = torch.randn(300, 32) @ torch.randn(32, 32), torch.randn(6, 32)
    factor, _ = gptq.inverse_factor(2 * inputs.T @ inputs / 300)
    found = sparsegpt.prune_columns(weight, factor, 0.5)
    work = weight
    for j in range(32):
        work, _ = gptq.column_update(work, j, work[:, j] * (found[:, j] != 0), factor)
    torch.testing.assert_close(found, work, rtol=1e-4, atol=1e-5)


@SETTINGS
@given(problems())
def test_zeros_are_exact_and_as_many_as_asked(problem):
    weight, hessian, sparsity = problem
    found = sparsegpt.sparsegpt(weight, hessian, sparsity)
    zeros = found == 0
    if isinstance(sparsity, tuple):
        n, m = sparsity
        assert (zeros.reshape(len(weight), -1, m).sum(dim=2) == m - n).all()
    else:
        assert zeros.sum().item() == round(sparsity * weight.numel())


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7, (2, 4), (4, 8)])
def test_layer_error_is_not_above_wanda_nor_wanda_above_magnitude(sparsity):
    """No theorem for any matrix. Wanda looks at the size of inputs alone and can lose where they are strongly
    related, so it is compared over all seeds together."""
    totals = torch.zeros(3)
    for seed in range(5):
        torch.manual_seed(seed)
        inputs = torch.randn(600, 64) @ torch.randn(64, 64) * torch.logspace(-1, 1, 64)
        weight, hessian = torch.randn(48, 64), 2 * inputs.T @ inputs / 600
        wanda = weight * unstructured.mask_of(unstructured.wanda_score(weight, inputs), sparsity, "row")
        size = weight * unstructured.mask_of(weight.abs(), sparsity)
        pruned = sparsegpt.sparsegpt(weight, hessian, sparsity)
        errors = [gptq.output_error(weight, w, hessian) for w in (pruned, wanda, size)]
        assert errors[0] <= errors[1], errors
        totals += torch.tensor(errors)
    assert totals[1] <= totals[2], totals


def test_independent_inputs_make_it_a_choice_without_update():
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    sizes = torch.linspace(1, 4, 16)
    found = sparsegpt.sparsegpt(weight, torch.diag(sizes.square()), 0.5, damping=0.0)
    mask = unstructured.keep_highest(weight.abs() * sizes, 0.5)
    torch.testing.assert_close(found, weight * mask)


def test_inputs_that_are_always_zero_lose_their_weights_first():
    torch.manual_seed(0)
    inputs = torch.randn(100, 8)
    inputs[:, [1, 6]] = 0
    found = sparsegpt.sparsegpt(torch.randn(4, 8), inputs.T @ inputs, 0.25)
    assert (found == 0).nonzero()[:, 1].unique().tolist() == [1, 6]


@pytest.mark.parametrize("sparsity", [0.5, (2, 4)])
def test_model_is_pruned_block_by_block(sparsity):
    model, dense, tokens = llama(), llama(), text()
    reports = sparsegpt.sparsegpt_model(model, tokens, sparsity, progress=False)
    assert [r.name for r in reports] == [
        name for group in _groups(dense, tokens) for name in group]
    assert unstructured.share_of_zeros(model) == pytest.approx(0.5, abs=0.01)
    # in sum: one small layer alone may go the other way
    assert sum(r.sparsegpt_error for r in reports) < sum(r.wanda_error for r in reports)
    name = "model.layers.0.self_attn.k_proj"
    hessian = layerwise.collect_statistics(dense, tokens, layerwise.Hessian, progress=False)[name].matrix
    alone = sparsegpt.sparsegpt(dense.get_submodule(name).weight, hessian, sparsity)
    torch.testing.assert_close(model.get_submodule(name).weight, alone, rtol=1e-4, atol=1e-5)


def _groups(model, tokens):
    names = []
    layerwise.walk(model, tokens, lambda block: names.extend(
        [[f"{block.name}.{name}" for name in group] for group in block.shared]) or False, layerwise.Hessian,
        progress=False)
    return names


@pytest.mark.parametrize("call", [
    pytest.param((torch.ones(2, 8), torch.eye(7), 0.5, 0.01, r"needs a Hessian \[8, 8\]"), id="hessian"),
    pytest.param((torch.ones(2, 8), torch.full((8, 8), torch.nan), 0.5, 0.01, "NaN"), id="nan"),
    pytest.param((torch.ones(2, 8), torch.eye(8), 0.5, -1, "damping must be 0"), id="damping"),
    pytest.param((torch.ones(2, 8), torch.eye(8), 50, 0.01, "share from 0 to 1"), id="percent"),
    pytest.param((torch.ones(2, 8), torch.eye(8), (2, 3), 0.01, "groups of 3 must divide"), id="pattern"),
    pytest.param((torch.ones(2, 8), torch.eye(8), (5, 4), 0.01, "1 <= n <= m"), id="n-above-m"),
    pytest.param((torch.ones(8), torch.eye(8), 0.5, 0.01, "matrix"), id="vector"),
])
def test_bad_input_is_named(call):
    weight, hessian, sparsity, damping, message = call
    with pytest.raises(ValueError, match=message):
        sparsegpt.sparsegpt(weight, hessian, sparsity, damping=damping)
    with pytest.raises(TypeError, match="floating-point"):
        sparsegpt.sparsegpt(torch.ones(2, 8, dtype=torch.int32), torch.eye(8))


def test_an_error_in_a_model_names_the_layer_and_leaves_the_weights():
    model, dense = llama(), llama()
    with pytest.raises(ValueError, match="layers.0.self_attn.q_proj: groups of 64"):
        sparsegpt.sparsegpt_model(model, text(), (32, 64), progress=False)
    for a, b in zip(model.parameters(), dense.parameters(), strict=True):
        assert torch.equal(a, b)
