"""The budget against figures that are known from elsewhere."""

import pytest
from transformers import LlamaConfig

from course_utils.phone import budget

LLAMA_13B = LlamaConfig(hidden_size=5120, intermediate_size=13_824, num_hidden_layers=40,
                        num_attention_heads=40)


def test_llama_13b():
    """13,015,864,320 parameters, as the paper's model has; 0.82 MB of cache a token in 16 bits."""
    need = budget.needed_bytes(LLAMA_13B, 2048, 16)
    assert need["weights"] + need["table"] == 2 * 13_015_864_320
    assert need["table"] == 2 * 32_000 * 5120
    assert need["cache"] == 2048 * 2 * 40 * 5120 * 2
    assert need["activations"] == 4 * (5120 + 2 * 13_824 + 32_000)


def test_memory_bandwidth_of_known_interfaces():
    """LPDDR5-6400 on 64 bits is sold as 51.2 GB/s, LPDDR5X-8533 as 68.3."""
    assert budget.memory_bandwidth(6400e6) == pytest.approx(51.2e9)
    assert budget.memory_bandwidth(8533e6) == pytest.approx(68.3e9, rel=1e-3)
    assert [phone.memory for phone in budget.PHONES] == sorted(phone.memory for phone in budget.PHONES)


def test_energy_is_mostly_the_bytes():
    """A gigabyte at 1.3 to 2.6 nJ for 8 bytes: 0.16 to 0.33 J. A billion multiply-adds: 4.6 mJ."""
    low, high = budget.joules_per_token(1e9, 0)
    assert (low, high) == pytest.approx((0.1625, 0.325))
    assert budget.joules_per_token(0, 1e9) == pytest.approx((0.0046, 0.0046))
