"""A small model and a text for it."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.unit.measure.common import VOCABULARY


@pytest.fixture(scope="module")
def model():
    """A random Llama that is far from uniform, so that a wrong perplexity differs from a right one."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True,
        initializer_range=0.3, attention_dropout=0.5)  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, VOCABULARY, (300,), generator=torch.Generator().manual_seed(1))
