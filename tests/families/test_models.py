"""The tiny models themselves: they run, and their random weights make a difference."""

import pytest
import torch

from tests.families.models import FAMILIES, MORE_FAMILIES, VOCABULARY, logits, off, tiny, tokens


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
def test_a_tiny_model_is_the_same_each_time_and_looks_at_its_text(family):
    model = tiny(family)
    found = logits(model)
    assert found.shape == (*tokens().shape, VOCABULARY) and found.isfinite().all()
    assert off(tiny(family), found) == 0
    other = tokens().clone()
    other[:, 0] += 1 - 2 * (other[:, 0] == VOCABULARY - 1).long()
    assert not torch.equal(logits(model, other)[:, 1], found[:, 1])
