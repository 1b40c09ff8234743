"""Perplexity against transformers' own loss, intervals against scipy."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, BertConfig, LlamaConfig, LlamaForCausalLM, RobertaConfig

from course_utils import measure
from tests.unit.measure.common import VOCABULARY


def loss_per_window(model, tokens, window):
    """Independent: transformers' own loss of each window, weighted by the tokens it scores."""
    total = scored = 0
    for piece in tokens.split(window):
        if len(piece) < 2:
            continue
        with torch.no_grad():
            total += model(piece[None], labels=piece[None]).loss.item() * (len(piece) - 1)
        scored += len(piece) - 1
    return math.exp(total / scored), scored


def documented_loop(model, tokens, window, stride):
    """Independent: the strided loop of transformers' documentation ("Perplexity of fixed-length models"),
    with the number of scored tokens counted, not estimated."""
    total = scored = previous_end = 0
    for begin in range(0, len(tokens), stride):
        end = min(begin + window, len(tokens))
        labels = tokens[None, begin:end].clone()
        labels[:, : -(end - previous_end)] = -100
        valid = (labels[:, 1:] != -100).sum().item()
        with torch.no_grad():
            total += model(tokens[None, begin:end], labels=labels).loss.item() * valid
        scored += valid
        previous_end = end
        if end == len(tokens):
            break
    return math.exp(total / scored), scored


@pytest.mark.parametrize("window", [2, 64, 100, 128])
def test_windows_match_transformers_loss(model, tokens, window):
    expected, scored = loss_per_window(model, tokens, window)
    result = measure.perplexity(model, tokens, window=window)
    assert result.value == pytest.approx(expected, rel=1e-5)
    assert (result.tokens, result.window, result.stride, result.device) == (scored, window, window, "cpu")
    assert result.nll == pytest.approx(math.log(result.value))


@pytest.mark.parametrize(("window", "stride"), [(64, 1), (64, 16), (100, 99), (128, 50)])
def test_strides_match_the_documented_loop(model, tokens, window, stride):
    expected, scored = documented_loop(model, tokens[:200], window, stride)
    result = measure.perplexity(model, tokens[:200], window=window, stride=stride)
    assert result.value == pytest.approx(expected, rel=1e-5)
    assert result.tokens == scored == 199  # all but the very first


def test_window_and_stride_matter_for_this_model(model, tokens):
    values = {round(measure.perplexity(model, tokens, *cut).value, 3) for cut in ((16,), (128,), (128, 64))}
    assert len(values) == 3  # or the tests above could not tell them apart


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_batch_size_changes_nothing(model, tokens, batch_size):
    reference = measure.perplexity(model, tokens, window=32)
    result = measure.perplexity(model, tokens, window=32, batch_size=batch_size)
    assert result.value == pytest.approx(reference.value, rel=1e-5)
    assert result.tokens == reference.tokens


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 80), st.integers(2, 80), st.integers(1, 80))
def test_every_token_with_context_is_scored_once(n, window, stride):
    from course_utils.measure.quality import _spans

    window, stride = min(window, n), min(stride, window, n)
    scored = [i for _, first, end in _spans(n, window, stride) for i in range(first, end)]
    assert len(scored) == len(set(scored))
    expected = set(range(1, n)) if stride < window else {i for i in range(n) if i % window}
    assert set(scored) == expected


def test_a_uniform_model_has_the_vocabulary_as_perplexity(tokens):
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.zeros_(model.lm_head.weight)
    assert measure.perplexity(model, tokens, window=50).value == pytest.approx(VOCABULARY, rel=1e-5)


def test_perplexity_switches_dropout_off_and_puts_everything_back(model, tokens):
    expected = measure.perplexity(model, tokens, window=64)
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    try:
        assert measure.perplexity(model, tokens, window=64) == expected
        assert [module.training for module in model.modules()] == before
    finally:
        model.eval()


def test_perplexity_in_bf16_scores_in_float32(model, tokens):
    half = LlamaForCausalLM(model.config).to(torch.bfloat16).eval()
    half.load_state_dict(model.state_dict())
    with torch.no_grad():
        logits = half(tokens[None, :64]).logits[0].float()
    expected = torch.nn.functional.cross_entropy(logits[:-1], tokens[1:64]).exp().item()
    assert measure.perplexity(half, tokens[:64], window=64).value == pytest.approx(expected, rel=1e-5)


def test_a_ruined_model_gives_a_number_not_an_error(model, tokens):
    ruined = LlamaForCausalLM(model.config).eval()
    torch.nn.init.constant_(ruined.model.norm.weight, 1e6)
    assert measure.perplexity(ruined, tokens, window=64).value == math.inf
    torch.nn.init.constant_(ruined.model.norm.weight, math.nan)
    assert math.isnan(measure.perplexity(ruined, tokens, window=64).value)


def test_perplexity_says_everything_needed_to_compare_it(model, tokens):
    text = str(measure.perplexity(model, tokens, window=64, stride=32))
    for part in ("perplexity", "nats per token", "299 tokens scored", "window 64", "stride 32", "cpu"):
        assert part in text


@pytest.mark.parametrize(
    ("text", "options", "error", "match"),
    [
        (torch.tensor([], dtype=torch.long), {}, ValueError, "0 tokens"),
        (torch.tensor([1]), {}, ValueError, "1 tokens"),
        (torch.rand(50), {}, TypeError, "float32"),
        (torch.ones(50, dtype=torch.bool), {}, TypeError, "bool"),
        ("a text", {}, TypeError, "str"),
        ([1, 2, 3], {}, TypeError, "list"),
        (torch.ones(1, 50, dtype=torch.long), {}, ValueError, "flatten"),
        (torch.ones(50, dtype=torch.long), {"window": 51}, ValueError, "from 2 to 50"),
        (torch.ones(50, dtype=torch.long), {"window": 1}, ValueError, "window"),
        (torch.ones(50, dtype=torch.long), {"window": 8.0}, ValueError, "window"),
        (torch.ones(50, dtype=torch.long), {"window": 16, "stride": 17}, ValueError, "stride"),
        (torch.ones(50, dtype=torch.long), {"window": 16, "stride": 0}, ValueError, "stride"),
        (torch.ones(200, dtype=torch.long), {"window": 129}, ValueError, "128 positions"),
        (torch.full((50,), VOCABULARY), {"window": 16}, ValueError, "tokenizer"),
        (torch.full((50,), -1), {"window": 16}, ValueError, "-1"),
        (torch.ones(50, dtype=torch.long), {"window": 16, "batch_size": 0}, ValueError, "batch_size"),
    ],
)
def test_perplexity_refuses_what_it_cannot_score(model, text, options, error, match):
    with pytest.raises(error, match=match):
        measure.perplexity(model, text, **options)


@pytest.mark.parametrize(("correct", "total"), [(0, 7), (7, 7), (1, 3), (830, 1000)])
def test_interval_matches_scipy(correct, total):
    from scipy.stats import binomtest

    labels = torch.ones(total, dtype=torch.long)
    predictions = torch.cat([torch.ones(correct), torch.zeros(total - correct)]).long()
    result = measure.accuracy(predictions, labels)
    expected = binomtest(correct, total).proportion_ci(method="wilson")
    assert (result.correct, result.total, result.value) == (correct, total, correct / total)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_accuracy_of_logits_takes_the_largest():
    logits = torch.tensor([[0.1, 0.9], [3.0, -1.0], [0.0, 0.5]])
    assert measure.accuracy(logits, torch.tensor([1, 0, 0])).correct == 2
    assert measure.accuracy([1, 0, 1], [1, 0, 0]).correct == 2
    assert "66.7% (2 of 3" in str(measure.accuracy([1, 0, 1], [1, 0, 0]))


@pytest.mark.parametrize(
    ("predictions", "labels", "error", "match"),
    [
        ([1, 0], [1], ValueError, "do not fit"),
        (torch.rand(3, 2, 2), torch.zeros(3), ValueError, "do not fit"),
        ([], [], ValueError, "no examples"),
        ([0.2, 0.8], [0, 1], TypeError, "whole numbers"),
        ([0, 1], [0.0, 1.0], TypeError, "whole numbers"),
        (torch.rand(3, 1), [0, 0, 0], ValueError, "leave no choice"),
        (torch.rand(3, 2), [0, 1, 2], ValueError, "run from 0 to 2: a class is a number from 0 to 1"),
        ([0, 1], [0, -100], ValueError, "run from -100 to 0: a class is a number from 0$"),
    ],
)
def test_accuracy_refuses_what_does_not_fit(predictions, labels, error, match):
    with pytest.raises(error, match=match):
        measure.accuracy(predictions, labels)


@pytest.mark.slow
def test_the_real_model_has_the_documented_perplexity_and_size():
    from course_utils import data, models

    model, tokenizer = models.load_lm()
    assert measure.weight_bytes(model).total == pytest.approx(538.06e6, rel=1e-3)
    tokens = data.wikipedia_tokens(tokenizer, "heldout", 1024)
    result = measure.perplexity(model, tokens, window=512)
    assert result.value == pytest.approx(loss_per_window(model, tokens, 512)[0], rel=1e-4)
    assert 15 < result.value < 45


def test_accuracy_of_a_broken_model_is_refused():
    logits = torch.tensor([[0.1, 0.2], [float("nan"), 0.3]])
    with pytest.raises(ValueError, match="the predictions hold NaN"):
        measure.accuracy(logits, [1, 0])


@pytest.mark.parametrize("kind", [BertConfig, RobertaConfig])
def test_a_model_that_reads_in_both_directions_has_no_perplexity(kind, tokens):
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 48, "initializer_range": 0.3}
    both, causal = (AutoModelForCausalLM.from_config(kind(**sizes, is_decoder=decoder)).eval()
                    for decoder in (False, True))
    with pytest.raises(ValueError, match="reads in both directions, it sees what it should predict"):
        measure.perplexity(both, tokens, window=30)
    rows = tokens.view(-1, 30)
    with torch.no_grad():
        nll = F.cross_entropy(causal(rows).logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
    assert measure.perplexity(causal, tokens, window=30).nll == pytest.approx(nll.item(), rel=1e-4)
