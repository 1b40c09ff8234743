"""Tied weights and shared memory survive every method; models that do not fit are refused."""

import math

import pytest
import torch

from course_utils.merge import methods, states, vectors
from tests.unit.merge.common import BASE, ONE, TASKS, TWO, llama

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


def test_cosine_and_norm_read_the_model_as_one_arrow():
    names = [name for name, value in ONE.items() if value.is_floating_point()]
    a, b = (torch.cat([m[name].flatten() for name in names]) for m in (ONE, TWO))
    assert states.cosine(ONE, TWO) == pytest.approx(vectors.cosine(a, b), abs=1e-6)
    assert states.norm(ONE) == pytest.approx(a.norm().item(), rel=1e-6)
    assert states.cosine(ONE, ONE) == pytest.approx(1)
    assert math.isnan(states.cosine(TASKS[0], methods.task_vector(BASE, BASE)))


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
