"""course_utils.prune.structured.importance: against autograd, the loss itself, and the definition."""

import pytest
import torch
import torch.nn.functional as F

from course_utils.prune import structured
from tests.unit.prune.small_models import MODELS, batch, bert, llama


def classifier_loss(model):
    labels = torch.tensor([0, 1, 2, 0])

    def loss(rows):
        selected = {name: tensor[rows] for name, tensor in batch().items()}
        return F.cross_entropy(model(**selected).logits, labels[rows], reduction="sum")

    return loss


@pytest.mark.parametrize("query_heads", [False, True])
def test_gradient_importance_is_the_derivative_by_a_gate(architecture, query_heads):
    """Reference: autograd through explicit gates, one example at a time."""
    model = MODELS[architecture]()
    layout = structured.attentions(model)

    def loss(rows):
        selected = {name: tensor[rows] for name, tensor in batch().items()}
        out = model(**selected).logits.flatten(1)
        return out[:, :7].square().sum() / 10

    found = structured.head_gradient(model, [[0, 1, 2], [3]], loss, query_heads=query_heads)
    expected = torch.zeros_like(found)
    for row in range(4):
        gates = [torch.ones(attention.heads if query_heads else attention.kv_heads, requires_grad=True)
                 for attention in layout]
        with structured.gated([attention.output for attention in layout], gates):
            expected += torch.stack(torch.autograd.grad(loss([row]), gates)).abs() / 4
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_importance_leaves_no_trace():
    model = bert()
    model.classifier.weight.requires_grad_(False)
    structured.head_gradient(model, [[0, 1], [2, 3]], classifier_loss(model))
    assert all(parameter.grad is None for parameter in model.parameters())
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["classifier.weight"]
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_ablation_is_the_rise_of_the_loss():
    model = bert()
    loss = classifier_loss(model)
    found = structured.head_ablation(model, lambda: loss([0, 1, 2, 3]).item(), progress=False)
    kept = [list(range(6)), [0, 1, 2, 4, 5], list(range(6))]
    with torch.no_grad():
        base = loss([0, 1, 2, 3]).item()
        structured.keep_heads(model, kept)
        assert found[1, 3].item() == pytest.approx(loss([0, 1, 2, 3]).item() - base, abs=1e-4)


def test_a_head_that_puts_out_nothing_is_not_important():
    model = bert()
    value = structured.attentions(model)[1].layers[2]
    with torch.no_grad():
        value.weight[16:24] = 0
        value.bias[16:24] = 0
    loss = classifier_loss(model)
    assert structured.head_gradient(model, [[0, 1, 2, 3]], loss)[1, 2] == 0
    assert structured.head_ablation(model, lambda: loss([0, 1]).item(), progress=False)[1, 2] == 0


def test_neuron_importance_against_the_definition():
    model = llama()
    block = model.model.layers[1].mlp
    seen = []
    hook = block.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    found = structured.neuron_importance(model, lambda: model(**batch()))
    hook.remove()
    # mean over tokens of |h_j| * |column j|: the length of what neuron j adds to the stream
    added = seen[0].flatten(0, 1)[:, :, None] * block.down_proj.weight.T
    torch.testing.assert_close(found[1], added.norm(dim=-1).mean(dim=0).detach(), rtol=1e-4, atol=1e-6)
