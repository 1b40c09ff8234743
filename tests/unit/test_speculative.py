"""Speculative decoding: the text is the model's own, whatever the draft."""

import itertools

import pytest
import torch
from scipy import stats

from course_utils import speculative
from course_utils.kvcache import decoding
from course_utils.speculative import ModelDraft, PromptLookup
from tests.unit.kvcache.common import VOCABULARY, tiny_llama, tokens

KNOWN = 5  # tokens of the tables


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


def table(seed, rows=KNOWN):
    """Next-token distributions, one row for each last token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(2 * torch.randn(rows, KNOWN, generator=generator, dtype=torch.float64), dim=-1)


def drafts(model):
    """A model that lacks a block, one that is the model itself, the text itself."""
    return [ModelDraft(speculative.shorter(model, [0])), ModelDraft(model), PromptLookup(VOCABULARY, 2)]


@pytest.mark.parametrize("which", range(3))
def test_greedy_text_is_the_models_own(model, which):
    ids = tokens(n=12)[0]
    plain = decoding.greedy(model, ids[None], 20)[0, 12:].tolist()
    for count in (1, 4):
        run = speculative.generate(model, drafts(model)[which], ids, 20, count)
        assert run.tokens == plain
        assert run.passes + run.accepted == 20 and run.accepted <= run.drafted


def test_the_model_as_its_own_draft_is_never_refused(model):
    run = speculative.generate(model, ModelDraft(model, 1.0), tokens(n=8)[0], 20, 4, temperature=1.0)
    assert run.accepted == run.drafted == 16 and run.passes == 4


def p_value(rule_q, seed, draws=4000):
    """Of the pairs of tokens that come out, against what p wants; rule_q: what `verify` believes q to be."""
    p, q = table(1), table(2)
    generator = torch.Generator().manual_seed(seed)
    chance = iter(torch.rand(draws * 6, generator=generator, dtype=torch.float64).tolist())
    seen = dict.fromkeys(itertools.product(range(KNOWN), repeat=2), 0)
    for _ in range(draws):
        last = 0
        guess = speculative.draw(q[last], next(chance))
        new = speculative.verify(p[[last, guess]], rule_q(q)[[last]], [guess], [next(chance), next(chance)])
        if len(new) == 1:
            new = [*new, speculative.draw(p[new[0]], next(chance))]
        seen[tuple(new)] += 1
    wanted = [draws * (p[0, a] * p[a, b]).item() for a, b in seen]
    return stats.chisquare(list(seen.values()), wanted).pvalue


def test_two_tokens_are_distributed_as_without_a_draft():
    assert p_value(lambda q: q, seed=3) > 0.01


def test_the_distribution_test_finds_a_wrong_draft_distribution():
    assert p_value(lambda q: torch.full_like(q, 1 / KNOWN), seed=3) < 1e-6


def test_sampled_text_is_distributed_as_without_a_draft(model):
    """The whole loop, caches included: the first two tokens against the model's own probabilities."""
    ids, draws = tokens(n=4)[0], 300
    with torch.no_grad():
        after = torch.softmax(model(input_ids=ids[None]).logits[0, -1] / 3, -1)
        texts = torch.cat([ids.repeat(VOCABULARY, 1), torch.arange(VOCABULARY)[:, None]], dim=1)
        second = after @ torch.softmax(model(input_ids=texts).logits[:, -1] / 3, -1)
    draft = speculative.shorter(model, [1])
    counts = torch.zeros(2, VOCABULARY)
    for seed in range(draws):
        run = speculative.generate(model, ModelDraft(draft, 3.0), ids, 2, 1, temperature=3.0, seed=seed)
        for place, token in enumerate(run.tokens):
            counts[place, token] += 1
    for count, wanted in zip(counts, (after, second), strict=True):
        order = wanted.argsort(descending=True)
        groups = [part for part in order.split(8)]
        seen = [count[group].sum().item() for group in groups]
        assert stats.chisquare(seen, [draws * wanted[group].sum().item() for group in groups]).pvalue > 0.001


def test_first_token_by_enumeration():
    """q min(1, p/q) + (1 - overlap) * residual = p, for every token."""
    for p, q in zip(table(5), table(6), strict=True):
        stays = q * torch.minimum(torch.ones_like(p), p / q)
        refused = 1 - speculative.acceptance_rate(p, q)
        assert torch.allclose(stays + refused * speculative.residual(p, q), p)
        assert torch.isclose(stays.sum(), speculative.acceptance_rate(p, q))


def test_expected_tokens_is_the_mean_of_a_simulation():
    generator = torch.Generator().manual_seed(0)
    stays = torch.rand(20000, 4, generator=generator) < 0.7
    counted = (stays.long().cumprod(dim=1).sum(dim=1) + 1).double().mean().item()
    assert speculative.expected_tokens(0.7, 4) == pytest.approx(counted, rel=0.02)
    assert speculative.expected_speedup(0.7, 4, 0.1, 1.5) == pytest.approx(counted / 1.9, rel=0.02)


def test_draw_never_gives_what_has_no_probability():
    distribution = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0], dtype=torch.float64)
    drawn = [speculative.draw(distribution, chance) for chance in (0.0, 0.2499, 0.25, 0.5, 1 - 1e-12)]
    assert drawn == [1, 1, 3, 3, 3]


def test_a_shorter_model_shares_the_weights_and_leaves_the_whole_one_alone(model):
    ids = tokens()
    with torch.no_grad():
        before = model(input_ids=ids).logits
        short = speculative.shorter(model, [1])
        assert torch.equal(model(input_ids=ids).logits, before)
    assert model.config.num_hidden_layers == 2 and short.config.num_hidden_layers == 1
    mine = {id(parameter) for parameter in model.parameters()}
    assert all(id(parameter) in mine for parameter in short.parameters())


def test_prompt_lookup_proposes_what_is_sure():
    guesses, used = PromptLookup(9, longest=2).propose([5, 6, 7, 8, 5, 6], [0.1, 0.2, 0.3])
    assert guesses == [7, 8, 5] and used.dtype == torch.float64
    assert used.argmax(-1).tolist() == guesses and used.sum() == 3


@pytest.mark.parametrize(("arguments", "message"), [
    ({"ids": torch.ones(1, 4, dtype=torch.long)}, r"ids must be"),
    ({"new_tokens": 0}, "at least 1"),
    ({"count": 0}, "at least 1"),
    ({"new_tokens": 10_000}, "made for"),
    ({"temperature": -1.0}, "temperature"),
])
def test_refused(model, arguments, message):
    usual = {"ids": tokens()[0], "new_tokens": 2, "count": 2} | arguments
    with pytest.raises(ValueError, match=message) as error:
        speculative.generate(model, None, **usual)
    assert "\n" not in str(error.value)
