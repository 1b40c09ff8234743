"""A tiny model, texts for it, and checks that several files share."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 64


def tiny_llama(kv_heads=2, implementation="sdpa"):
    """Two layers, four query heads, in float64: what is equal is equal to many digits."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=kv_heads, eos_token_id=None,
                         bos_token_id=None, attn_implementation=implementation)  # fmt: skip
    model = LlamaForCausalLM(config).eval().to(torch.float64)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(8)  # sharper attention: a wrong cache shows
    return model


def tokens(batch=1, n=24, seed=1):
    return torch.randint(0, VOCABULARY, (batch, n), generator=torch.Generator().manual_seed(seed))


def owners(allocator):
    """In how many tables each block stands, counted from the tables."""
    counts = [0] * allocator.blocks
    for table in allocator.tables.values():
        for block in table:
            counts[block] += 1
    return counts


def check_sound(allocator):
    """Nothing leaks: a block is either free or owned, and its references are those of the tables."""
    counts = owners(allocator)
    assert allocator.references == counts
    assert sorted(allocator.free_blocks) == [block for block, count in enumerate(counts) if count == 0]
    for sequence, table in allocator.tables.items():
        assert len(set(table)) == len(table)
        assert allocator.blocks_for(allocator.lengths[sequence]) <= len(table)
    layout = allocator.layout()
    assert layout.count(2) == allocator.stored <= allocator.reserved == len(layout) - layout.count(0)


def assert_refused(calls):
    """Each call raises a ValueError of one line that matches its message."""
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
