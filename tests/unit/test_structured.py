"""course_utils.prune.structured on small random models: what is cut out equals what is silenced."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from course_utils.prune import structured

HEAD_DIM = 8


def llama(heads=4, kv_heads=2, bias=False, hidden=48, blocks=3):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=97, hidden_size=hidden, intermediate_size=40, num_hidden_layers=blocks,
                         num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=HEAD_DIM,
                         attention_bias=bias, mlp_bias=bias, tie_word_embeddings=True,
                         max_position_embeddings=64, initializer_range=0.3)
    return _with_biases(LlamaForCausalLM(config))


def bert(heads=6):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=97, hidden_size=heads * HEAD_DIM, intermediate_size=40, num_labels=3,
                        num_hidden_layers=3, num_attention_heads=heads, max_position_embeddings=64,
                        initializer_range=0.3)
    return _with_biases(BertForSequenceClassification(config))


def _with_biases(model):
    """transformers starts biases at zero: a forgotten one would not be noticed."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


MODELS = {
    "BERT": bert,
    "Llama MHA": lambda: llama(heads=6, kv_heads=6),
    "Llama GQA": lambda: llama(heads=6, kv_heads=3),
    "Llama GQA, biases": lambda: llama(heads=6, kv_heads=3, bias=True),
}
KEPT = {"BERT": [[0, 2, 3], [5], [1, 4]]} | dict.fromkeys(
    ("Llama GQA", "Llama GQA, biases"), [[0, 2], [1, 2], [0, 1]]) | {
    "Llama MHA": [[0, 2, 3], [1, 2, 5], [3, 4, 5]]}


@pytest.fixture(params=MODELS)
def architecture(request):
    return request.param


def batch():
    ids = torch.randint(0, 97, (4, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def logits(model):
    return model(**batch()).logits


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


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


# ---- saving ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Llama MHA", "Llama GQA", "Llama GQA, biases"])
def test_llama_folder_loads_with_plain_transformers(name, tmp_path):
    model = MODELS[name]()
    structured.keep_heads(model, KEPT[name])
    structured.keep_neurons(model, [list(range(0, 40, 2))] * 3)
    structured.save(model, tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert torch.equal(logits(loaded.eval()), logits(model))
    assert loaded.config.head_dim == HEAD_DIM


def test_bert_folder_loads_where_the_course_is_not_installed(tmp_path, monkeypatch):
    model = bert()
    structured.keep_heads(model, KEPT["BERT"])
    structured.save(model, tmp_path / "pruned")
    torch.save((batch(), logits(model)), tmp_path / "expected.pt")
    code = f"""
import sys
sys.modules["course_utils"] = None     # importing it fails
import torch
from transformers import AutoModelForSequenceClassification as Auto
model = Auto.from_pretrained({str(tmp_path / "pruned")!r}, trust_remote_code=True)
batch, expected = torch.load({str(tmp_path / "expected.pt")!r})
with torch.no_grad():
    assert torch.equal(model.eval()(**batch).logits, expected)
print(sum(p.numel() for p in model.parameters()))
"""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == parameters(model)


def test_plain_bert_does_not_load_fewer_heads(tmp_path):
    """The reason for trust_remote_code. When transformers learns to, the lesson should say so."""
    model = bert()
    structured.keep_heads(model, KEPT["BERT"])
    structured.save(model, tmp_path)
    with pytest.raises(RuntimeError, match="size"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=False)


def test_bert_with_narrow_mlps_loads_with_plain_transformers(tmp_path):
    model = bert()
    structured.keep_neurons(model, [[0, 5, 9]] * 3)
    structured.save(model, tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded.eval()), logits(model))


def test_other_berts_with_fewer_heads_are_refused(tmp_path):
    model = BertForMaskedLM(bert().config)
    structured.keep_heads(model, KEPT["BERT"])
    with pytest.raises(ValueError, match="sequence classifiers"):
        structured.save(model, tmp_path)
    assert not list(tmp_path.iterdir())


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


# ---- importance ------------------------------------------------------------------------------------------


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


# ---- choosing --------------------------------------------------------------------------------------------


def test_choices():
    scores = torch.tensor([[0.1, 0.5, 0.2], [0.9, 0.05, 0.01]])
    assert structured.kept_in_each(scores, 2) == [[1, 2], [0, 1]]
    assert structured.kept_overall(scores, 3) == [[1, 2], [0]]
    assert structured.kept_overall(scores, 4) == [[1], [0]]
    assert structured.kept_overall(scores, 2, at_least=2) == [[1, 2], [0, 1]]
    assert structured.kept_overall(scores, 0) == [[0, 1, 2], [0, 1, 2]]


def test_choices_within_groups():
    scores = torch.tensor([[3.0, 1, 2, 0, 5, 4], [0, 0, 0, 1, 2, 3]])
    assert structured.kept_in_groups(scores, groups=2, keep=2) == [[0, 2, 4, 5], [0, 1, 4, 5]]
    assert structured.kept_in_groups(scores, groups=3, keep=1) == [[0, 2, 4], [0, 3, 5]]
    with pytest.raises(ValueError, match="equal groups"):
        structured.kept_in_groups(scores, groups=4, keep=1)


def test_ties_are_broken_the_same_way_every_time():
    scores = torch.zeros(2, 4)
    assert structured.kept_in_each(scores, 2) == [[0, 1], [0, 1]]
    assert structured.kept_overall(scores, 3) == [[3], [0, 1, 2, 3]]


@pytest.mark.parametrize("call", [
    lambda s: structured.kept_in_each(s, 0), lambda s: structured.kept_in_each(s, 4),
    lambda s: structured.kept_overall(s, 5), lambda s: structured.kept_overall(s, -1),
])
def test_impossible_choices_are_refused(call):
    with pytest.raises(ValueError, match="must be from"):
        call(torch.rand(2, 3))


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
