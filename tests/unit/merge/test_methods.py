"""Invariants of each merging method, mergekit beside them, errors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.merge import methods, vectors
from tests.unit.merge.common import BASE, ONE, TASKS, THREE, TWO, assert_same, model

# ---- between models ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", [methods.lerp, methods.slerp])
def test_ends_are_exact_and_the_way_back_is_the_same(method):
    assert_same(method(ONE, TWO, 0.0), ONE, rtol=0, atol=0)
    assert_same(method(ONE, TWO, 1.0), TWO, rtol=0, atol=0)
    assert_same(method(ONE, TWO, 0.3), method(TWO, ONE, 0.7))
    assert_same(method(ONE, ONE, 0.3), ONE)


def test_slerp_works_on_each_tensor_by_itself():
    merged = methods.slerp(ONE, TWO, 0.25)
    for name in ("a.weight", "a.bias", "b.weight", "scale"):
        assert torch.equal(merged[name], vectors.slerp(ONE[name], TWO[name], 0.25))


def test_soup_is_the_mean_and_of_two_it_is_lerp():
    expected = {name: sum(tuned[name].double() for tuned in (ONE, TWO, THREE)) / 3 for name in TASKS[0]}
    merged = methods.soup([ONE, TWO, THREE])
    for name, mean in expected.items():
        torch.testing.assert_close(merged[name].double(), mean, rtol=1e-6, atol=1e-6)
    assert_same(methods.soup([ONE, TWO]), methods.lerp(ONE, TWO, 0.5))
    assert_same(methods.soup([ONE, TWO], [3, 1]), methods.lerp(ONE, TWO, 0.25))
    assert_same(methods.soup([ONE]), ONE)
    assert_same(methods.soup([ONE, TWO, THREE]), methods.soup([THREE, ONE, TWO]))


def test_bfloat16_models_stay_bfloat16():
    a, b = model(1, dtype=torch.bfloat16), model(2, dtype=torch.bfloat16)
    for merged in (methods.lerp(a, b, 0.3), methods.slerp(a, b, 0.3), methods.soup([a, b]),
                   methods.ties(a, [methods.task_vector(b, a)])):  # fmt: skip
        assert merged["a.weight"].dtype == torch.bfloat16 and merged["position_ids"].dtype == torch.int64
    assert methods.task_vector(b, a)["a.weight"].dtype == torch.float32


# ---- task vectors ------------------------------------------------------------------------------------------

def test_a_task_vector_brings_its_model_back():
    assert_same(methods.task_arithmetic(BASE, [TASKS[0]]), ONE)
    assert_same(methods.task_arithmetic(BASE, [TASKS[0]], 0.0), BASE)
    away = methods.task_arithmetic(ONE, [TASKS[0]], -1.0)  # forgetting
    assert_same(away, BASE)
    assert "position_ids" not in TASKS[0]


def test_task_arithmetic_with_one_nth_is_the_soup():
    merged = methods.task_arithmetic(BASE, TASKS, 1 / 3)
    assert_same(merged, methods.soup([ONE, TWO, THREE]))


def test_ties_of_one_whole_task_is_task_arithmetic():
    for scale in (1.0, 0.4):
        merged = methods.ties(BASE, [TASKS[0]], density=1.0, scale=scale)
        assert_same(merged, methods.task_arithmetic(BASE, [TASKS[0]], scale))


def test_dare_without_dropping_is_task_arithmetic():
    assert_same(methods.dare(BASE, TASKS, drop=0.0, scale=0.4), methods.task_arithmetic(BASE, TASKS, 0.4))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(1, 30), st.floats(0.01, 1), st.integers(0, 2**31))
def test_trim_keeps_the_largest(rows, columns, density, seed):
    delta = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    before = delta.clone()
    kept = methods.trim(delta, density)
    assert torch.equal(delta, before) and kept.shape == delta.shape
    inside = kept != 0
    assert inside.sum() == max(1, int(density * delta.numel()))
    assert torch.equal(kept[inside], delta[inside])
    assert delta[~inside].abs().max() <= delta[inside].abs().min() if (~inside).any() else True


numbers = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 5).flatmap(lambda n: st.lists(
    st.lists(numbers, min_size=n, max_size=n), min_size=1, max_size=6)))  # fmt: skip
def test_sign_and_mean_against_counting(columns):
    deltas = torch.tensor(columns).T  # [tasks, weights]
    sign = methods.elect_sign(deltas)
    mean = methods.agreeing_mean(deltas, sign)
    for i, column in enumerate(columns):
        up, down = sum(v for v in column if v > 0), -sum(v for v in column if v < 0)
        winners = [v for v in column if (v > 0 and up > down) or (v < 0 and down > up)]
        assert sign[i] == (up > down) - (down > up)
        assert mean[i].item() == pytest.approx(sum(winners) / len(winners) if winners else 0)


def test_one_large_change_outvotes_two_small_ones():
    deltas = torch.tensor([[-3.0], [1.0], [1.0]])
    assert methods.elect_sign(deltas).item() == -1
    assert methods.agreeing_mean(deltas, methods.elect_sign(deltas)).item() == -3


def test_the_order_of_tasks_does_not_matter():
    for method in (methods.task_arithmetic, methods.ties):
        assert_same(method(BASE, TASKS, scale=0.7), method(BASE, TASKS[::-1], scale=0.7))


def test_dare_keeps_the_mean_and_the_share():
    delta = torch.randn(300, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(0)
    drops = torch.stack([methods.drop_and_rescale(delta, 0.75, generator) for _ in range(4000)])
    assert (drops == 0).float().mean().item() == pytest.approx(0.75, abs=0.005)
    # The mean of n draws is off by about |delta| sqrt(p / (1 - p) / n): here 2.7 % of |delta|.
    assert ((drops.mean(dim=0) - delta).abs() <= 5 * delta.abs() * math.sqrt(3 / 4000)).all()
    kept = drops != 0
    torch.testing.assert_close(drops[kept], (4 * delta).expand_as(drops)[kept])


def test_dare_is_the_same_for_one_seed():
    first, again, other = (methods.dare(BASE, TASKS, 0.5, seed=seed) for seed in (1, 1, 2))
    assert_same(first, again, rtol=0, atol=0)
    assert not torch.equal(first["a.weight"], other["a.weight"])


# ---- beside mergekit ---------------------------------------------------------------------------------------

def by_mergekit(method, models, base=0, **parameters):
    merge_state_dicts = pytest.importorskip("mergekit.merge_methods").merge_state_dicts
    return merge_state_dicts(models, method, base=base, parameters=parameters)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_interpolation_agrees_with_mergekit(t):
    assert_same(by_mergekit("slerp", [ONE, TWO], t=t), methods.slerp(ONE, TWO, t))
    assert_same(by_mergekit("linear", [ONE, TWO], None, weight=[1 - t, t]), methods.lerp(ONE, TWO, t))


def test_soup_agrees_with_mergekit():
    assert_same(by_mergekit("linear", [ONE, TWO, THREE], None, weight=1.0), methods.soup([ONE, TWO, THREE]))


@pytest.mark.parametrize("scale", [1.0, 0.4, -0.5])
def test_task_arithmetic_agrees_with_mergekit(scale):
    merged = by_mergekit("task_arithmetic", [BASE, ONE, TWO, THREE], weight=1.0, **{"lambda": scale})
    assert_same(merged, methods.task_arithmetic(BASE, TASKS, scale))


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties_agrees_with_mergekit(density):
    merged = by_mergekit("ties", [BASE, ONE, TWO, THREE], weight=1.0, density=density)
    assert_same(merged, methods.ties(BASE, TASKS, density))


def test_dare_is_near_mergekits_on_average():
    def mean_of(make):
        return torch.stack([make(seed)["a.weight"] for seed in range(400)]).mean(dim=0)

    def theirs(seed):
        torch.manual_seed(seed)
        return by_mergekit("dare_linear", [BASE, ONE], weight=1.0, density=0.5)

    change = TASKS[0]["a.weight"].norm()
    for make in (theirs, lambda seed: methods.dare(BASE, TASKS[:1], 0.5, seed=seed)):
        assert (mean_of(make) - ONE["a.weight"]).norm() < 0.1 * change


def test_a_zero_tensor_is_where_mergekit_differs():
    zero = BASE | {"a.bias": torch.zeros(6)}
    theirs, ours = by_mergekit("slerp", [ONE, zero], t=0.5), methods.slerp(ONE, zero, 0.5)
    torch.testing.assert_close(ours["a.bias"], ONE["a.bias"] / 2)
    torch.testing.assert_close(theirs["a.bias"], ONE["a.bias"] * math.sqrt(0.5))


# ---- arguments ---------------------------------------------------------------------------------------------

def test_models_are_left_as_they_are():
    before = {name: value.clone() for name, value in BASE.items()}
    methods.ties(BASE, TASKS, 0.5), methods.dare(BASE, TASKS, 0.5), methods.task_arithmetic(BASE, TASKS)
    assert_same(BASE, before, rtol=0, atol=0)


@pytest.mark.parametrize(("call", "error", "match"), [
    (lambda: methods.lerp(ONE, TWO, math.nan), ValueError, "t must be finite"),
    (lambda: methods.slerp(ONE, TWO, "0.5"), TypeError, "t must be a number, not '0.5'"),
    (lambda: methods.soup([ONE, TWO], [1]), ValueError, "1 shares do not fit 2 models"),
    (lambda: methods.soup([ONE, TWO], [1, -1]), ValueError, "sum 0"),
    (lambda: methods.task_arithmetic(BASE, []), ValueError, "no task vectors"),
    (lambda: methods.task_arithmetic(BASE, TASKS, math.inf), ValueError, "scale must be finite"),
    (lambda: methods.task_arithmetic(BASE, [{"a.weight": torch.ones(6, 5)}]), ValueError, "a.bias is only"),
    (lambda: methods.task_arithmetic(BASE, [TASKS[0] | {"a.bias": torch.ones(1)}]), ValueError,
     r"a.bias has shape \[1\] in task vector 1 and \[6\]"),
    (lambda: methods.ties(BASE, TASKS, density=0), ValueError, "density must be above 0"),
    (lambda: methods.ties(BASE, TASKS, density=1.1), ValueError, "at most 1"),
    (lambda: methods.dare(BASE, TASKS, drop=1.0), ValueError, "below 1"),
    (lambda: methods.dare(BASE, TASKS, drop=True), TypeError, "drop must be a number"),
])  # fmt: skip
def test_bad_arguments_are_named(call, error, match):
    with pytest.raises(error, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", [methods.task_arithmetic, methods.ties, methods.dare])
@pytest.mark.parametrize("change, error, match", [
    (lambda task: {**task, "a.bias": task["a.bias"] * math.nan}, ValueError, "task vector 2 has NaN"),
    (lambda task: {**task, "a.bias": task["a.bias"].long()}, ValueError, "torch.int64 on cpu in task"),
    (lambda task: {**task, "a.bias": task["a.bias"][:1]}, ValueError, r"a.bias has shape \[1\]"),
    (lambda task: {k: v for k, v in task.items() if k != "scale"}, ValueError, "scale is only in one"),
    (lambda task: list(task.values()), TypeError, "task vector 2 must be a dict")])
def test_task_vectors_that_do_not_fit_are_refused(method, change, error, match):
    with pytest.raises(error, match=match):
        method(BASE, [TASKS[0], change(TASKS[1])])
