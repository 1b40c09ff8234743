"""Scores, masks and whole-model pruning: against torch.nn.utils.prune, and what holds for any matrix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as torch_prune
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils import data, measure, models
from course_utils.prune import sparsegpt, unstructured
from course_utils.quantize import layerwise

SETTINGS = settings(max_examples=50, deadline=None)
WIDTHS = st.integers(1, 24)


def llama(seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
                         max_position_embeddings=64, initializer_range=0.2)
    return LlamaForCausalLM(config).eval()


def text(rows=6, length=16):
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(1))


def by_size(name, weight):
    return unstructured.magnitude_score(weight)


@st.composite
def matrices(draw, columns=WIDTHS):
    """Matrices with many equal numbers: ties are where masks go wrong."""
    rows, width = draw(st.integers(1, 6)), draw(columns)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    levels = draw(st.sampled_from([1, 3, 1000]))
    return torch.randint(0, levels, (rows, width), generator=generator).float() / levels


# ---- masks -----------------------------------------------------------------------------------------------


@SETTINGS
@given(matrices(), st.floats(0, 1))
def test_keep_highest_removes_exactly_the_share_and_the_lowest(score, sparsity):
    for per in ("layer", "row"):
        mask = unstructured.keep_highest(score, sparsity, per)
        assert mask.dtype == torch.bool and mask.shape == score.shape
        pairs = [(score, mask)] if per == "layer" else list(zip(score, mask, strict=True))
        for s, kept in pairs:
            assert (~kept).sum().item() == round(sparsity * s.numel())
            if kept.any() and not kept.all():
                assert s[~kept].max() <= s[kept].min()


@SETTINGS
@given(matrices(st.sampled_from([4, 8, 24])), st.sampled_from([(2, 4), (1, 4), (4, 8), (4, 4), (1, 2)]))
def test_n_m_masks_are_valid_on_every_row(score, pattern):
    n, m = pattern
    if score.shape[1] % m:
        with pytest.raises(ValueError, match=f"groups of {m}"):
            unstructured.n_m_mask(score, n, m)
        return
    mask = unstructured.n_m_mask(score, n, m)
    groups, scores = mask.reshape(len(score), -1, m), score.reshape(len(score), -1, m)
    assert (groups.sum(dim=2) == n).all()
    worst_kept = scores.masked_fill(~groups, torch.inf).amin(dim=2)
    best_gone = scores.masked_fill(groups, -torch.inf).amax(dim=2)
    assert (worst_kept >= best_gone).all()


def test_of_equal_scores_the_left_stay_in_a_group_and_go_first_by_share():
    equal = torch.ones(2, 8)
    assert unstructured.n_m_mask(equal).tolist() == [[True, True, False, False] * 2] * 2
    assert unstructured.keep_highest(equal, 0.5, "row").tolist() == [[False] * 4 + [True] * 4] * 2


@pytest.mark.parametrize("amount", [0.0, 0.3, 0.5, 0.77, 1.0])
def test_same_mask_as_torch(amount):
    torch.manual_seed(0)
    linear = nn.Linear(37, 23)
    ours = unstructured.keep_highest(unstructured.magnitude_score(linear.weight), amount)
    torch_prune.l1_unstructured(linear, "weight", amount=amount)
    assert torch.equal(ours, linear.weight_mask.bool())


# ---- scores ----------------------------------------------------------------------------------------------


def test_wanda_score_by_hand():
    weight = torch.tensor([[1.0, -2.0], [0.5, 0.1]])
    inputs = torch.tensor([[3.0, 0.0], [4.0, 1.0]])
    torch.testing.assert_close(unstructured.wanda_score(weight, inputs), torch.tensor([[5.0, 2], [2.5, 0.1]]))


@SETTINGS
@given(matrices(), st.floats(0, 1), st.floats(0.01, 100))
def test_wanda_with_constant_activations_is_magnitude_per_row(weight, sparsity, size):
    weight = weight - 0.5
    inputs = torch.full((7, weight.shape[1]), size)
    wanda = unstructured.keep_highest(unstructured.wanda_score(weight, inputs), sparsity, "row")
    assert torch.equal(wanda, unstructured.keep_highest(weight.abs(), sparsity, "row"))


def test_norms_accumulate_over_batches():
    torch.manual_seed(0)
    inputs, weight = torch.randn(50, 6), torch.randn(4, 6)
    statistic = unstructured.InputNorm()
    for part in inputs.split([1, 20, 29]):
        statistic.add(part)
    torch.testing.assert_close(statistic.norm, inputs.norm(dim=0))
    torch.testing.assert_close(unstructured.wanda_score(weight, statistic.norm[None]),
                               unstructured.wanda_score(weight, inputs))


# ---- whole models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", unstructured.COMPETE)
@pytest.mark.parametrize("sparsity", [0, 0.31, 0.5, 1.0])
def test_prune_model_reaches_the_share_and_leaves_the_rest(per, sparsity):
    model, dense = llama(), llama()
    unstructured.prune_model(model, by_size, sparsity, per=per)
    assert unstructured.share_of_zeros(model) == pytest.approx(sparsity, abs=0.02)
    pruned = dict(model.named_parameters())
    inside = {f"{name}.weight" for name in layerwise.block_linears(model)}
    for name, before in dense.named_parameters():
        after = pruned[name]
        assert torch.equal(after, before) if name not in inside else torch.equal(after[after != 0],
                                                                                before[after != 0])


def test_pruning_per_model_is_torch_global_unstructured():
    ours, theirs = llama(), llama()
    unstructured.prune_model(ours, by_size, 0.5, per="model")
    layers = layerwise.block_linears(theirs)
    torch_prune.global_unstructured([(layer, "weight") for layer in layers.values()],
                                    torch_prune.L1Unstructured, amount=0.5)
    for name, layer in layers.items():
        assert torch.equal(ours.get_submodule(name).weight, layer.weight)
    shares = {(layer.weight == 0).float().mean().item() for layer in layers.values()}
    assert max(shares) - min(shares) > 0.001  # layers really compete


def test_pruning_per_model_counts_ties():
    model = llama()
    with torch.no_grad():
        for layer in layerwise.block_linears(model).values():
            layer.weight.fill_(0.25)
    unstructured.prune_model(model, by_size, 0.5, per="model")
    assert unstructured.share_of_zeros(model) == 0.5


def test_a_lower_sparsity_is_contained_in_a_higher_one():
    """So a model can be pruned further without the weights that it had before."""
    for per in unstructured.COMPETE:
        stepwise, at_once = llama(), llama()
        for sparsity in (0.2, 0.5, 0.7):
            unstructured.prune_model(stepwise, by_size, sparsity, per=per)
        unstructured.prune_model(at_once, by_size, 0.7, per=per)
        for a, b in zip(stepwise.parameters(), at_once.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("sparsity", [0.5, (2, 4)])
def test_wanda_model_uses_the_inputs_of_the_pruned_model(sparsity):
    model, tokens = llama(), text()
    unstructured.wanda_model(model, tokens, sparsity, progress=False)
    # The first block's q_proj sees what the dense model's does: its mask can be checked directly.
    dense = llama()
    first = "model.layers.0.self_attn.q_proj"
    norms = layerwise.collect_statistics(dense, tokens, unstructured.InputNorm, progress=False)
    weight = dense.get_submodule(first).weight.detach()
    mask = unstructured.mask_of(unstructured.wanda_score(weight, norms[first].norm[None]), sparsity, "row")
    assert torch.equal(model.get_submodule(first).weight, weight * mask)
    assert unstructured.share_of_zeros(model) == pytest.approx(0.5)


def test_random_score_is_the_same_for_the_same_seed():
    weight = torch.randn(5, 7)
    first, again, other = (
        unstructured.random_score(weight, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_hold_zeros_in_a_real_trainer(tmp_path):
    from transformers import Trainer, TrainingArguments

    model = llama()
    unstructured.prune_model(model, by_size, 0.6)
    before = {name: layer.weight.detach().clone() for name, layer in layerwise.block_linears(model).items()}
    rows = [{"input_ids": row, "labels": row} for row in text(8, 12)]
    arguments = TrainingArguments(str(tmp_path), max_steps=3, per_device_train_batch_size=4, use_cpu=True,
                                  learning_rate=1e-2, weight_decay=0.1, save_strategy="no", report_to="none",
                                  disable_tqdm=True)
    Trainer(model, arguments, train_dataset=rows, callbacks=[unstructured.HoldZeros()]).train()
    for name, layer in layerwise.block_linears(model).items():
        assert (layer.weight[before[name] == 0] == 0).all()
        assert not torch.equal(layer.weight, before[name])  # the others were trained


# ---- bad input -------------------------------------------------------------------------------------------


def keep(*args):
    return lambda: unstructured.keep_highest(*args)


def prune(score, *args, **more):
    return lambda: unstructured.prune_model(llama(), score, *args, **more)


@pytest.mark.parametrize(("function", "message"), [
    (keep(torch.ones(2, 2), 1.5), "share from 0 to 1"),
    (keep(torch.ones(2, 2), 50), "share from 0 to 1"),
    (keep(torch.ones(2, 2), 0.5, "column"), "per must be"),
    (keep(torch.ones(4), 0.5), "matrix"),
    (keep(torch.full((2, 2), torch.nan), 0.5), "NaN"),
    (lambda: unstructured.mask_of(torch.ones(2, 4), (5, 4)), "1 <= n <= m"),
    (lambda: unstructured.mask_of(torch.ones(2, 6), (2, 4)), "groups of 4"),
    (prune(by_size, per="head"), "per must be"),
    (prune(by_size, (2, 4), per="model"), "no choice"),
    (prune(lambda name, weight: weight, per="model"), "below 0"),
    (prune(by_size, 2.0), "q_proj: sparsity"),
    (lambda: unstructured.prune_model(nn.Linear(2, 2), by_size), "no list of blocks"),
])
def test_bad_input_is_named(function, message):
    with pytest.raises(ValueError, match=message):
        function()


# ---- the real model --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_order_of_the_methods_on_held_out_text(lm):
    """SparseGPT < Wanda < magnitude < random at 50 %, on text that none of them saw."""
    tokenizer = lm[1]
    heldout = data.wikipedia_tokens(tokenizer, "heldout", 512)
    calibration = data.windows(data.wikipedia_tokens(tokenizer, "calibration", 2048), 512)
    generator = torch.Generator().manual_seed(0)
    methods = {
        "SparseGPT": lambda m: sparsegpt.sparsegpt_model(m, calibration, 0.5, damping=0.1, progress=False),
        "Wanda": lambda m: unstructured.wanda_model(m, calibration, 0.5, progress=False),
        "magnitude": lambda m: unstructured.prune_model(m, by_size, 0.5),
        "random": lambda m: unstructured.prune_model(
            m, lambda _, w: unstructured.random_score(w, generator), 0.5),
    }
    found = {}
    for name, prune in methods.items():
        model, _ = models.load_lm()
        prune(model)
        assert unstructured.share_of_zeros(model) == pytest.approx(0.5, abs=1e-3)
        found[name] = measure.perplexity(model, heldout).nll
        del model
    assert list(found) == sorted(found, key=found.get), found
