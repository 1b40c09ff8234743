"""What is left of a model in a changed one, against torch's own KL divergence and plain loops."""

import copy

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from course_utils import measure
from tests.unit.measure.common import VOCABULARY


@pytest.fixture(scope="module")
def pair(model):
    reference, changed = model, copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator) * parameter.std())
    return changed, reference


def test_kl_and_first_choices_are_torchs(pair, tokens):
    found = measure.likeness(*pair, tokens, window=20)
    rows = tokens[: len(tokens) // 20 * 20].view(-1, 20)
    with torch.no_grad():
        ours, theirs = (model(rows).logits.double() for model in pair)
    by_window = kl_divergence(Categorical(logits=theirs), Categorical(logits=ours)).sum(dim=1) / 20
    assert found.kl == pytest.approx(by_window.mean().item(), rel=1e-4) and found.kl > 0
    assert found.kl_error == pytest.approx(by_window.std().item() / len(rows) ** 0.5, rel=1e-3)
    same = (ours.argmax(-1) == theirs.argmax(-1)).double().mean(dim=1)
    assert found.top1 == pytest.approx(same.mean().item()) and found.tokens == rows.numel()
    assert found.top1_error == pytest.approx(same.std().item() / len(rows) ** 0.5)


def test_a_model_is_like_itself(pair, tokens):
    found = measure.likeness(pair[0], pair[0], tokens, window=20)
    assert (found.kl, found.top1, found.top1_error) == (0, 1, 0)
    prompts = tokens[:24].view(3, 8)
    assert measure.same_greedy(pair[0], pair[0], prompts, 5) == [5, 5, 5]


def test_greedy_text_is_followed_to_its_first_difference(pair, tokens):
    prompts = tokens[:40].view(5, 8)
    expected = []
    for prompt in prompts:
        texts = []
        for model in pair:
            ids = prompt[None]
            for _ in range(12):
                with torch.no_grad():
                    ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
            texts.append(ids[0, 8:].tolist())
        expected.append(next((i for i, (a, b) in enumerate(zip(*texts, strict=True)) if a != b), 12))
    assert measure.same_greedy(*pair, prompts, 12) == expected
    assert min(expected) < 12


def test_other_vocabularies_are_refused(pair, tokens):
    other = copy.deepcopy(pair[0])
    other.resize_token_embeddings(VOCABULARY + 1)
    with pytest.raises(ValueError, match="the vocabularies differ"):
        measure.likeness(other, pair[1], tokens, window=20)
