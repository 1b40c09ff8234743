"""What an answer does to its arguments: changes, shared memory, gradients; and what arguments may be."""

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from course_utils.checking import Case, Exercise
from course_utils.checking.cases import randn
from course_utils.checking.judge import judge
from course_utils.checking.parts import copies


@dataclasses.dataclass
class Settings:
    bits: int = 4
    names: list = dataclasses.field(default_factory=lambda: ["a"])


def things():
    return {
        "tensor": randn(2, 3), "parameter": nn.Parameter(randn(2)), "array": np.arange(3.0),
        "list": [1, [2, 3]], "dict": {"a": [1]}, "config": LlamaConfig(num_hidden_layers=2),
        "dataclass": Settings(), "namespace": SimpleNamespace(layers=3),
        "module": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
    }  # fmt: skip


CHANGES = {
    "tensor": [lambda t: t.mul_(2), lambda t: t.requires_grad_(), lambda t: t.resize_(1),
               lambda t: setattr(t, "data", t.double()), lambda t: t.add_(1e-6 * t.abs())],
    "parameter": [lambda p: p.data.zero_(), lambda p: p.requires_grad_(False),
                  lambda p: p.register_hook(print), lambda p: p.sum().backward()],
    "array": [lambda a: a.__imul__(2), lambda a: a.sort() or a.__setitem__(0, 5)],
    "list": [lambda a: a.append(1), lambda a: a[1].pop(), lambda a: a.__setitem__(1, 7), list.clear],
    "dict": [lambda d: d.update(a=5), lambda d: d["a"].append(2), lambda d: d.pop("a"),
             lambda d: d.update(b=1)],
    "config": [lambda c: setattr(c, "num_hidden_layers", 1), lambda c: setattr(c, "layer_types", ["x"]),
               lambda c: setattr(c, "anything", 1)],
    "dataclass": [lambda s: setattr(s, "bits", 8), lambda s: s.names.append("b")],
    "namespace": [lambda s: setattr(s, "layers", 4), lambda s: delattr(s, "layers")],
    "module": [lambda m: m.eval(), lambda m: m[1].running_mean.add_(1), lambda m: m.half(),
               lambda m: m.register_forward_hook(print), lambda m: m[0].requires_grad_(False),
               lambda m: m.pop(1), lambda m: setattr(m[0], "in_features", 5)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "change"), [(kind, change) for kind, changes in CHANGES.items() for change in changes]
)
@pytest.mark.parametrize("how", ["returned", "raised"])
def test_a_changed_argument_is_noticed(kind, change, how):
    """Also when the call must raise."""

    def reference(thing):
        if how == "raised":
            raise ValueError("no")
        return 1

    def answer(thing):
        change(thing)
        return reference(thing)

    case = Case(things()[kind], raises=ValueError if how == "raised" else None)
    exercise = Exercise(reference=reference, cases=lambda: [case])
    assert judge(exercise, lambda thing: reference(thing), "look").status == "passed"
    result = judge(exercise, answer, "look")
    assert result.status == "failed" and "argument `thing`" in result.message
    assert ("before it raises" if how == "raised" else "in place") in result.message


def test_a_change_that_is_asked_for_must_be_made():
    def zero(config, values):
        config.num_hidden_layers = 0
        values[0] = 0

    exercise = Exercise(reference=zero, cases=lambda: [Case(LlamaConfig(), randn(3))])

    def half_of_it(config, values):
        config.num_hidden_layers = 0

    assert judge(exercise, half_of_it, "zero").status == "failed"
    assert "argument `values` afterwards" in judge(exercise, half_of_it, "zero").message

    def otherwise(config, values):
        config.num_hidden_layers = sum([])
        values.mul_(torch.tensor([0.0, 1.0, 1.0]))

    assert judge(exercise, otherwise, "zero").status == "passed"


NEW = Exercise(reference=lambda x: x.clone(), id="new", cases=lambda: [Case(randn(3, 4))])
NEW_LIST = Exercise(reference=lambda x: {"rows": list(x)}, id="new", cases=lambda: [Case([1, 2])])
NEW_ARRAY = Exercise(reference=lambda x: x.copy(), id="new", cases=lambda: [Case(np.ones(4))])
NEW_MODULE = Exercise(reference=lambda x: copy.deepcopy(x), id="new", cases=lambda: [Case(nn.Linear(2, 2))])
SAME = Exercise(reference=lambda x: x.mul_(2), id="same", cases=lambda: [Case(randn(3))])


@pytest.mark.parametrize(
    ("exercise", "answer", "reason"),
    [
        (NEW, lambda x: x, "argument `x` itself"),
        (NEW, lambda x: x.view(-1).view(3, 4), "a view of argument `x`"),
        (NEW, lambda x: x.detach(), "a view of argument `x`"),
        (NEW_LIST, lambda x: {"rows": x}, "at ['rows']: argument `x` itself"),
        (NEW_ARRAY, lambda x: x[:], "a view of argument `x`"),
        (NEW_ARRAY, lambda x: x, "argument `x` itself"),
        (NEW_MODULE, lambda x: x, "argument `x` itself"),
        (SAME, lambda x: x.mul_(2).clone(), "expected:  argument `x` itself, not a copy"),
    ],
)
def test_memory_is_shared_exactly_where_the_reference_shares_it(exercise, answer, reason):
    result = judge(exercise, answer, "memory")
    assert result.status == "failed" and reason in result.message, result.message


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [(NEW, lambda x: x + 0), (NEW_LIST, lambda x: {"rows": [*x]}), (NEW_ARRAY, lambda x: x * 1),
     (SAME, lambda x: x.add_(x.clone()))],
)  # fmt: skip
def test_new_memory_and_the_same_object_pass(exercise, answer):
    assert judge(exercise, answer, "memory").status == "passed"


def layer_cases():
    x, bias = randn(2, 3).requires_grad_(), nn.Parameter(randn(4))
    return [Case(x, nn.Linear(3, 4), bias), Case((2 * x), nn.Linear(3, 4), bias, label="computed")]


LAYER = Exercise(
    reference=lambda x, layer, bias: [layer(x) + bias], id="layer", cases=layer_cases, gradients=True
)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda x, layer, bias: [layer(x) + bias.detach()], "a gradient for `bias`"),
        (lambda x, layer, bias: [layer(x.detach()) + bias], "a gradient for `x`"),
        (lambda x, layer, bias: [x @ layer.weight.T + layer.bias.data + bias], "a gradient for `layer.bias`"),
        (lambda x, layer, bias: [(layer(x) + bias).detach()], "a gradient for"),
        (lambda x, layer, bias: [layer(x) + 2 * bias - bias.detach()], "the gradient of `bias`"),
    ],
)
def test_gradients_are_compared_for_every_tensor(answer, reason):
    message = judge(LAYER, answer, "layer").message
    assert reason in message, message


def test_right_gradients_pass():
    right = lambda x, layer, bias: [nn.functional.linear(x, layer.weight, layer.bias + bias)]  # noqa: E731
    result = judge(LAYER, right, "layer")
    assert result.status == "passed", result.message


def test_a_case_may_ask_for_gradients_alone():
    exercise = Exercise(reference=lambda x: 2 * x, id="twice", cases=lambda: [
        Case(randn(2).requires_grad_()), Case(randn(2).requires_grad_(), gradients=True)])  # fmt: skip
    assert "in case 2" in judge(exercise, lambda x: 2 * x.detach(), "twice").message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_cases_may_hold_what_models_hold(dtype):
    leaf = randn(2, 3).to(dtype).requires_grad_()

    def cases():
        return [Case(leaf, leaf * 2, nn.Parameter(randn(3).to(dtype)), nn.Linear(3, 3).to(dtype),
                     torch.Generator().manual_seed(3), (n for n in range(3)))]  # fmt: skip

    def reference(x, computed, parameter, layer, generator, numbers):
        noise = torch.rand(3, generator=generator).to(dtype)
        return layer(computed * parameter) + noise + sum(numbers)

    def answer(x, computed, parameter, layer, generator, numbers):
        assert not computed.is_leaf and isinstance(parameter, nn.Parameter)
        return sum([*numbers, layer(parameter * computed), torch.rand(3, generator=generator).to(dtype)])

    exercise = Exercise(reference=reference, cases=cases, gradients=True, rtol=0.02, atol=0.02)
    result = judge(exercise, answer, "real")
    assert result.status == "passed", result.message
    assert leaf.grad is None


def test_copies_share_what_the_originals_share():
    base = randn(4)
    (view, whole), named = copies((base[:2], base), {"again": base})
    whole.zero_()
    assert not view.any() and named["again"] is whole and base.all()
