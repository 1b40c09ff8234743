"""course_utils.merge.states and methods: invariants of each method, mergekit beside them, errors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils.merge import methods, states, vectors


def model(seed=0, spread=1.0, dtype=torch.float32):
    """A small state dict: two matrices, a bias, a vector of one number, an integer buffer."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (6, 5), "a.bias": (6,), "b.weight": (4, 6), "scale": ()}
    made = {name: (spread * torch.randn(shape, generator=generator)).to(dtype)
            for name, shape in shapes.items()}  # fmt: skip
    return made | {"position_ids": torch.arange(5)}


def finetuned(seed, base, size=0.1):
    change = model(seed, size)
    return {name: value + change[name] if value.is_floating_point() else value
            for name, value in base.items()}  # fmt: skip


BASE = model()
ONE, TWO, THREE = (finetuned(seed, BASE) for seed in (1, 2, 3))
TASKS = [methods.task_vector(tuned, BASE) for tuned in (ONE, TWO, THREE)]


def assert_same(a, b, **tolerance):
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        torch.testing.assert_close(a[name], b[name], **({"rtol": 1e-5, "atol": 1e-6} | tolerance))


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


# ---- tied weights and shared memory ----------------------------------------------------------------------


def llama(tie=True, seed=0):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=50,
        num_key_value_heads=2, tie_word_embeddings=tie)).eval()  # fmt: skip


TIED = ("model.embed_tokens.weight", "lm_head.weight")


def test_tied_weights_stay_tied():
    a, b = llama(seed=1).state_dict(), llama(seed=2).state_dict()
    assert states.tied(a) == {TIED}
    base = llama(seed=0).state_dict()
    tasks = [methods.task_vector(a, base), methods.task_vector(b, base)]
    merges = [methods.lerp(a, b, 0.4), methods.slerp(a, b, 0.4), methods.soup([a, b]),
              methods.task_arithmetic(base, tasks), methods.ties(base, tasks), methods.dare(base, tasks)]
    for merged in merges:
        assert states.tied(merged) == {TIED}
        target = llama(seed=3)
        target.load_state_dict(merged)
        assert target.lm_head.weight is target.model.embed_tokens.weight
        assert torch.equal(target.lm_head.weight, merged["lm_head.weight"])
    assert len(states.weights(a)) == len(a) - 1


def test_a_merged_model_computes_what_its_weights_say():
    a, b = llama(seed=1), llama(seed=2)
    merged = llama(seed=3)
    merged.load_state_dict(methods.slerp(a.state_dict(), b.state_dict(), 1.0))
    ids = torch.arange(10)[None]
    torch.testing.assert_close(merged(ids).logits, b(ids).logits)


def test_what_models_share_is_not_copied():
    other = ONE | {"a.weight": TWO["a.weight"]}
    for merged in (methods.lerp(ONE, other, 0.5), methods.slerp(ONE, other, 0.5), methods.soup([ONE, other])):
        assert merged["b.weight"] is ONE["b.weight"] and merged["a.weight"] is not ONE["a.weight"]


def test_models_are_left_as_they_are():
    before = {name: value.clone() for name, value in BASE.items()}
    methods.ties(BASE, TASKS, 0.5), methods.dare(BASE, TASKS, 0.5), methods.task_arithmetic(BASE, TASKS)
    assert_same(BASE, before, rtol=0, atol=0)


def test_cosine_and_norm_read_the_model_as_one_arrow():
    names = [name for name, value in ONE.items() if value.is_floating_point()]
    a, b = (torch.cat([m[name].flatten() for name in names]) for m in (ONE, TWO))
    assert states.cosine(ONE, TWO) == pytest.approx(vectors.cosine(a, b), abs=1e-6)
    assert states.norm(ONE) == pytest.approx(a.norm().item(), rel=1e-6)
    assert states.cosine(ONE, ONE) == pytest.approx(1)
    assert math.isnan(states.cosine(TASKS[0], methods.task_vector(BASE, BASE)))


# ---- errors: one line, what is wrong and where -----------------------------------------------------------


def refused(match, *given, error=ValueError):
    for call in (lambda: methods.lerp(*given, 0.5), lambda: methods.slerp(*given, 0.5),
                 lambda: methods.soup(given), lambda: methods.task_vector(*given)):  # fmt: skip
        with pytest.raises(error, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_models_that_do_not_fit_are_refused():
    without = {name: value for name, value in BASE.items() if name != "a.bias"}
    refused(r"models 1 and 2 differ: a.bias is only in model 1", BASE, without)
    refused(r"a.bias is only in model 2", without, BASE)
    refused(r"a.weight \(and 2 more\) is only in model 1", BASE,
            {name: BASE[name] for name in ("a.bias", "position_ids")})  # fmt: skip
    refused(r"a.bias has shape \[6\] in model 1 and \[1\] in model 2", BASE, BASE | {"a.bias": torch.ones(1)})
    refused(r"b.weight has dtype torch.float32 in model 1 and torch.bfloat16 in model 2; convert one",
            BASE, BASE | {"b.weight": BASE["b.weight"].bfloat16()})  # fmt: skip
    refused("position_ids .* differ;", BASE, BASE | {"position_ids": torch.arange(5) + 1})
    refused("b.weight of model 2 has NaN", BASE, BASE | {"b.weight": BASE["b.weight"] * math.nan})
    refused("is empty", {}, BASE)


def test_what_is_no_state_dict_is_refused():
    refused(r"model 2 is a LlamaForCausalLM; give its state_dict\(\)", BASE, llama(), error=TypeError)
    refused("model 1 must be a dict of names and tensors, not a list", [1], BASE, error=TypeError)
    refused("model 2 must be a dict", BASE, {"a": 1.0}, error=TypeError)
    with pytest.raises(ValueError, match="no models"):
        methods.soup([])


def test_one_tied_and_one_untied_model_are_refused():
    a, b = llama().state_dict(), llama(tie=False).state_dict()
    refused("model.embed_tokens.weight and lm_head.weight are one tied tensor in model 1, but not in model 2",
            a, b)  # fmt: skip
    refused("one tied tensor in model 2, but not in model 1", b, a)


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
