"""Families x functions of course_utils.prune: exact, or refused in one line with the model as it was.

    python -m tests.families.test_prune     prints the table
"""

import copy
import re

import pytest
import torch
from torch import nn

from course_utils.prune import depth, sparsegpt, structured, unstructured
from tests.families.models import BLOCKS, logits, off, tiny, tokens
from tests.families.walking import ALL, EXACT, attempt, equal, print_table


def linears(model):
    """The linear layers of the blocks, found by their names: these have a number in it."""
    return {name: layer for name, layer in model.named_modules()
            if isinstance(layer, nn.Linear) and any(part.isdigit() for part in name.split("."))}


def blocks(model):
    """The blocks, found as the first list that has as many entries as the config says."""
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList)
                and len(module) == BLOCKS)


def survives(model, folder):
    """Saved and loaded it says the same, and it still writes with a cache."""
    expected = logits(model)
    model.save_pretrained(folder)
    again = type(model).from_pretrained(folder).eval()
    assert off(again, expected) < EXACT
    ids = tokens()[:1]
    for one in (model, again):
        text = [one.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False,
                             eos_token_id=None, use_cache=use) for use in (True, False)]
        assert torch.equal(*text)


@torch.no_grad()
def inputs(model, layers):
    """What goes into layers in a plain forward pass, [tokens, in] each."""
    seen = {}
    hooks = [layer.register_forward_pre_hook(
        lambda layer, args: seen.update({layer: args[0].flatten(0, -2)})) for layer in layers]
    model(tokens(), use_cache=False)
    for hook in hooks:
        hook.remove()
    return [seen[layer] for layer in layers]


# ---- what is tried, each with its own reference ------------------------------------------------------------

def removed(gone):
    def try_it(model, folder):
        def identity(_, args, kwargs, output):
            x = args[0] if args else kwargs["hidden_states"]
            return (x, *output[1:]) if isinstance(output, tuple) else x

        hooks = [blocks(model)[i].register_forward_hook(identity, with_kwargs=True) for i in gone]
        expected = logits(model)
        for hook in hooks:
            hook.remove()
        depth.remove_blocks(model, gone)
        assert model.config.num_hidden_layers == BLOCKS - len(gone)
        assert off(model, expected) < EXACT
        survives(model, folder)

    return try_it


remove_first_and_third, remove_last = removed([0, 2]), removed([BLOCKS - 1])
remove_first_and_third.__name__, remove_last.__name__ = "remove_first_and_third", "remove_last"


def influences(model, folder):
    found = depth.influences(model, tokens())
    expected = []

    def watch(_, args, kwargs, output):
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        expected.append(1 - torch.cosine_similarity(before, after, dim=-1).mean().item())

    hooks = [block.register_forward_hook(watch, with_kwargs=True) for block in blocks(model)]
    logits(model)
    for hook in hooks:
        hook.remove()
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def magnitude(model, folder):
    wanted = copy.deepcopy(model)
    for layer in linears(wanted).values():
        cut = layer.weight.abs().flatten().sort().values[round(0.5 * layer.weight.numel()) - 1]
        layer.weight.data[layer.weight.abs() <= cut] = 0
    unstructured.prune_model(model, lambda _, weight: unstructured.magnitude_score(weight), 0.5)
    assert equal(model, wanted)
    matrices = [p for name, p in model.named_parameters() if p.ndim > 1 and any(
        part.isdigit() for part in name.split(".")) and "conv" not in name]
    assert sum((p == 0).sum() for p in matrices) / sum(p.numel() for p in matrices) > 0.45


def wanda(model, folder):
    """2:4 by |w| times the input's length; the first block's inputs are those of the whole model."""
    before = copy.deepcopy(model)
    unstructured.wanda_model(model, tokens(), (2, 4), progress=False)
    first = next(iter(linears(before)))
    (x,) = inputs(before, [before.get_submodule(first)])
    score = (before.get_submodule(first).weight.abs() * x.norm(dim=0)).unflatten(1, (-1, 4))
    kept = score >= score.sort(dim=2).values[..., 2:3]
    assert torch.equal(model.get_submodule(first).weight != 0, kept.flatten(1))
    for name, layer in linears(model).items():
        assert ((layer.weight.unflatten(1, (-1, 4)) != 0).sum(-1) == 2).all(), name


def sparse_gpt(model, folder):
    before = copy.deepcopy(model)
    reports = sparsegpt.sparsegpt_model(model, tokens(), 0.5, progress=False)
    assert {report.name for report in reports} == linears(before).keys()
    first = next(iter(linears(before)))
    (x,) = inputs(before, [before.get_submodule(first)])
    was, now = (m.get_submodule(first).weight for m in (before, model))
    error = (x @ (now - was).T).square().sum(dim=1).mean().item()
    assert {r.name: r for r in reports}[first].sparsegpt_error == pytest.approx(error, rel=1e-2)
    for layer in linears(model).values():
        assert (layer.weight == 0).float().mean().item() == pytest.approx(0.5, abs=0.01)


def silenced(model, layers, kept, total):
    """Logits when only some of the equal parts of the layers' inputs are there."""
    def hook(_, args):
        parts = args[0].unflatten(-1, (total, -1)).clone()
        parts[..., [i for i in range(total) if i not in kept], :] = 0
        return (parts.flatten(-2),)

    hooks = [layer.register_forward_pre_hook(hook) for layer in layers]
    expected = logits(model)
    for each in hooks:
        each.remove()
    return expected


def outputs(model, name):
    return [layer for path, layer in linears(model).items() if path.endswith(name)]


def key_value_heads(model, folder):
    kv_heads = structured.attentions(model)[0].kv_heads
    expected = silenced(model, outputs(model, "self_attn.o_proj"), [kv_heads - 1], kv_heads)
    structured.keep_heads(model, [[kv_heads - 1]] * BLOCKS)
    assert off(model, expected) < EXACT
    survives(model, folder)


def query_heads(model, folder):
    layout = structured.attentions(model)[0]
    kept = [head * layout.group for head in range(layout.kv_heads)]
    if layout.group == 1:
        kept = list(range(layout.heads))
    expected = silenced(model, outputs(model, "self_attn.o_proj"), kept, layout.heads)
    structured.keep_query_heads(model, [kept] * BLOCKS)
    assert off(model, expected) < EXACT
    survives(model, folder)


def neurons(model, folder):
    total = structured.mlp_outputs(model)[0].in_features
    kept = list(range(0, total, 2))
    expected = silenced(model, outputs(model, "mlp.down_proj"), kept, total)
    structured.keep_neurons(model, [kept] * BLOCKS)
    assert off(model, expected) < EXACT
    survives(model, folder)


FUNCTIONS = [influences, remove_first_and_third, remove_last, magnitude, wanda, sparse_gpt, key_value_heads,
             query_heads, neurons]

# ---- what is refused, and why; everything else is exact ----------------------------------------------------

STRUCTURED, SPARSE = (key_value_heads, query_heads, neurons), (magnitude, wanda, sparse_gpt)
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "qwen3_next", "gpt_oss")
REFUSED = {(function.__name__, family): "is not built like a BERT or Llama block" for function in STRUCTURED
           for family in (*MIXTURES, "phi", "phi3", "starcoder2", "gptj", "gpt_neox", "opt", "bloom",
                          "falcon", "nemotron", "mamba", "rwkv", "opt, norms last")}
REFUSED |= {(function.__name__, "gpt2"): "weights are in Conv1D layers" for function in FUNCTIONS}
REFUSED |= {(function.__name__, family): "hold [0-9]+% of its matrix weights" for function in SPARSE
            for family in MIXTURES}
REFUSED |= {(function, family): reason for function in ("key_value_heads", "query_heads")
            for family, reason in (("olmo2", "does not run when it is cut"),
                                   ("stablelm", "its config would build"),
                                   ("stablelm in parallel", "the cut changes more than"))}
REFUSED |= {("wanda", "mamba"): "runs 0 times", ("sparse_gpt", "mamba"): "runs 0 times",
            ("remove_first_and_third", "rwkv"): "makes its blocks by a rule",
            ("remove_last", "qwen3_next"): "only blocks of linear_attention would be left"}


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_exact_or_refused(function, family, tmp_path):
    reason = attempt(function, family, tmp_path)
    expected = REFUSED.get((function.__name__, family))
    assert (reason is None) == (expected is None), reason
    assert expected is None or re.search(expected, reason)


@pytest.mark.parametrize("function", [
    lambda model, share: unstructured.prune_model(
        model, lambda _, weight: unstructured.magnitude_score(weight), 0.5, minimum_share=share),
    lambda model, share: unstructured.wanda_model(model, tokens(), 0.5, progress=False, minimum_share=share),
    lambda model, share: sparsegpt.sparsegpt_model(model, tokens(), 0.5, progress=False, minimum_share=share),
], ids=["magnitude", "wanda", "sparse_gpt"])
def test_a_part_of_a_mixture_of_experts_on_demand(function, capsys):
    """It says how little that is."""
    model = tiny("mixtral")
    function(model, 0.1)
    assert "hold 14% of its matrix weights" in capsys.readouterr().out
    assert unstructured.share_of_zeros(model) == pytest.approx(0.5, abs=0.01)


def test_scores_that_cannot_be_compared_are_found_before_anything_is_pruned():
    model, last = tiny("llama"), list(linears(tiny("llama")))[-1]

    def score(name, weight):
        return weight.abs() * (float("nan") if name == last else 1)

    with pytest.raises(ValueError, match=f"{last}: the scores hold NaN"):
        unstructured.prune_model(model, score)
    assert equal(model, tiny("llama"))


@pytest.mark.parametrize("family, gone, changes, lists", [
    ("smollm3", [0, 3], {}, {"no_rope_layers": [0, 1]}),
    ("qwen2 with a window", [0], {}, {"max_window_layers": 1}),
    ("qwen2_moe", [0, 2], {"mlp_only_layers": [1, 2]}, {"mlp_only_layers": [0]}),
    ("deepseek_v3", [1], {}, {"first_k_dense_replace": 1})])
def test_what_the_config_says_of_each_block_is_cut(family, gone, changes, lists, tmp_path):
    model = tiny(family, **changes)
    depth.remove_blocks(model, gone)
    assert {name: getattr(model.config, name) for name in lists} == lists
    survives(model, tmp_path)


def test_a_list_that_only_happens_to_be_as_long_is_kept():
    model = tiny("llama")
    model.config.eos_token_id = [2, 3, 4, 5]
    depth.remove_blocks(model, [0])
    assert model.config.eos_token_id == [2, 3, 4, 5]


def test_a_rule_for_blocks_is_noticed():
    """Each second block is a mixture of experts: without the first one it would be the others."""
    model = tiny("qwen2_moe", decoder_sparse_step=2)
    before = model.config.to_dict()
    with pytest.raises(ValueError, match="makes its blocks by a rule"):
        depth.remove_blocks(model, [0])
    assert equal(model, tiny("qwen2_moe", decoder_sparse_step=2)) and model.config.to_dict() == before
    depth.remove_blocks(model, [2, 3])


if __name__ == "__main__":
    import sys

    print_table(FUNCTIONS, sys.argv[1:])
