"""course_utils.prune.structured.cutting, gates: what is cut out equals what is silenced."""

import pytest
import torch

from course_utils.prune import structured
from tests.unit.prune.small_models import HEAD_DIM, KEPT, MODELS, batch, bert, llama, logits, parameters


def silenced(model, kept, query=False):
    """Logits of the whole model with gates on its heads."""
    layout = structured.attentions(model)
    counts = [attention.heads if query else attention.kv_heads for attention in layout]
    with structured.gated([a.output for a in layout], structured.gates_of(kept, counts)):
        return logits(model)


# ---- cutting equals silencing ----------------------------------------------------------------------------


def test_cut_heads_give_what_silenced_heads_give(architecture):
    model, kept = MODELS[architecture](), KEPT[architecture]
    before, expected = logits(model), silenced(model, kept)
    structured.keep_heads(model, kept)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, before, atol=1e-2)  # the heads mattered


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_both_attention_implementations_see_the_new_heads(architecture, implementation):
    model, kept = MODELS[architecture](), KEPT[architecture]
    model.set_attn_implementation(implementation)
    expected = silenced(model, kept)
    structured.keep_heads(model, kept)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_cut_query_heads_give_what_silenced_ones_give():
    model = llama(heads=6, kv_heads=2, bias=True)
    kept = [[0, 2, 3, 4], [1, 2, 4, 5], [0, 1, 3, 5]]
    expected = silenced(model, kept, query=True)
    keys = [attention.layers[1] for attention in structured.attentions(model)]
    structured.keep_query_heads(model, kept)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert [attention.layers[1] for attention in structured.attentions(model)] == keys
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (4, 2)


@pytest.mark.parametrize("name", ["BERT", "Llama GQA", "Llama GQA, biases"])
def test_cut_neurons_give_what_silenced_ones_give(name):
    model = MODELS[name]()
    kept = [sorted(torch.randperm(40, generator=torch.Generator().manual_seed(i))[:24].tolist())
            for i in range(3)]
    with structured.gated(structured.mlp_outputs(model), structured.gates_of(kept, [40] * 3)):
        expected = logits(model)
    structured.keep_neurons(model, kept)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert model.config.intermediate_size == 24


def test_the_cache_works_after_cutting():
    model = llama(heads=6, kv_heads=3)
    structured.keep_heads(model, KEPT["Llama GQA"])
    ids = batch()["input_ids"][1:]
    with torch.no_grad():
        whole = model(input_ids=ids).logits[:, -1]
        first = model(input_ids=ids[:, :-1], use_cache=True)
        last = model(input_ids=ids[:, -1:], past_key_values=first.past_key_values).logits[:, -1]
    torch.testing.assert_close(last, whole, rtol=1e-4, atol=1e-4)
    assert first.past_key_values.layers[0].keys.shape[1] == 2  # key-value heads: the cache is smaller too


# ---- sizes -----------------------------------------------------------------------------------------------


def test_parameters_fall_as_computed(architecture):
    model, kept = MODELS[architecture](), KEPT[architecture]
    layout = structured.attentions(model)
    group, total, hidden = layout[0].group, layout[0].kv_heads, model.config.hidden_size
    bias = layout[0].layers[0].bias is not None
    before = parameters(model)
    structured.keep_heads(model, kept)
    gone = sum(total - len(heads) for heads in kept)
    # a key-value head and its query heads: rows of K and V, rows of Q and columns of O; biases of Q, K, V
    expected = gone * HEAD_DIM * ((2 + 2 * group) * hidden + (2 + group) * bias)
    assert before - parameters(model) == expected


def test_neurons_cost_what_is_computed():
    model = bert()
    before = parameters(model)
    structured.keep_neurons(model, [list(range(30))] * 3)
    assert before - parameters(model) == 3 * 10 * (48 + 1 + 48)


def test_cut_layers_do_not_keep_the_old_storage(architecture):
    model = MODELS[architecture]()
    structured.keep_heads(model, KEPT[architecture])
    for attention in structured.attentions(model):
        for layer in attention.layers:
            assert layer.weight.untyped_storage().nbytes() == 4 * layer.weight.numel()


def test_cutting_twice_counts_from_what_is_left():
    model = llama(heads=4, kv_heads=4)
    expected = silenced(model, [[1], [1], [1]])
    structured.keep_heads(model, [[1, 3]] * 3)
    structured.keep_heads(model, [[0]] * 3)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_frozen_weights_stay_frozen():
    model = bert().requires_grad_(False)
    structured.keep_heads(model, KEPT["BERT"])
    assert not any(parameter.requires_grad for parameter in model.parameters())


# ---- putting back ----------------------------------------------------------------------------------------


def test_everything_is_put_back(architecture):
    model = MODELS[architecture]()
    before, names, config = logits(model), dict(model.named_parameters()), model.config.to_dict()
    with structured.putting_back(model):
        structured.keep_heads(model, KEPT[architecture])
        structured.keep_neurons(model, [list(range(8))] * 3)
        assert not torch.allclose(logits(model), before, atol=1e-2)
    assert torch.equal(logits(model), before)
    assert all(names[name] is parameter for name, parameter in model.named_parameters())
    assert model.config.to_dict() == config


def test_it_is_put_back_after_an_error_too():
    model = bert()
    with pytest.raises(KeyboardInterrupt), structured.putting_back(model):
        structured.keep_heads(model, KEPT["BERT"])
        raise KeyboardInterrupt
    assert [attention.heads for attention in structured.attentions(model)] == [6, 6, 6]


# ---- bad input -------------------------------------------------------------------------------------------

REFUSED = {
    "head out of range": (bert, "keep_heads", [[0], [6], [0]], "block 1 has no key-value head 6"),
    "negative head": (bert, "keep_heads", [[0], [-1], [0]], "no key-value head -1"),
    "listed twice": (bert, "keep_heads", [[0], [1, 1], [0]], "twice"),
    "no head left": (bert, "keep_heads", [[0], [], [0]], "keep one at least"),
    "too few blocks": (bert, "keep_heads", [[0], [1]], "3 blocks"),
    "uneven in Llama": (llama, "keep_heads", [[0], [0, 1], [0]], "one number of query heads"),
    "heads that do not divide hidden": (lambda: llama(heads=6, kv_heads=6, hidden=36), "keep_heads",
                                        [[0, 1, 2, 3, 4]] * 3, "possible are 1, 2, 3, 4, 6"),
    "GQA pattern broken": (llama, "keep_query_heads", [[0, 1, 2]] * 3, r"keep \[2, 1\] query heads"),
    "a group without queries": (llama, "keep_query_heads", [[0, 1]] * 3, r"keep \[2, 0\] query heads"),
    "query heads of BERT": (bert, "keep_query_heads", [[0, 1, 2, 3, 4, 5]] * 3, "use keep_heads"),
    "neuron out of range": (llama, "keep_neurons", [[0], [40], [0]], "no neuron 40"),
    "uneven neurons": (bert, "keep_neurons", [[0], [1, 2], [0]], "intermediate_size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_before_anything_changes(case):
    build, function, kept, message = REFUSED[case]
    model = build()
    before = logits(model)
    config = model.config.to_dict()
    with pytest.raises(ValueError, match=message):
        getattr(structured, function)(model, kept)
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config


def test_other_architectures_are_refused():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.only = torch.nn.Linear(3, 3)

    with pytest.raises(ValueError, match="BERT or Llama"):
        structured.attentions(torch.nn.Sequential(torch.nn.ModuleList([Block()])))


def test_gates_that_do_not_fit_are_refused():
    layer = torch.nn.Linear(12, 2)
    for gates, message in (([torch.ones(5)], "equal parts"), ([], "do not fit"),
                           ([torch.ones(0)], "equal parts")):
        with pytest.raises(ValueError, match=message), structured.gated([layer], gates):
            pass
