"""`costs` against models that transformers builds and operations that torch counts."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils import costs
from course_utils.exercises.one_token import llama_13b_config, smollm2_config

SHAPES = st.fixed_dictionaries(
    {
        "vocab_size": st.integers(2, 60),
        "intermediate_size": st.integers(1, 30),
        "num_hidden_layers": st.integers(1, 4),
        "num_key_value_heads": st.integers(1, 3),
        "head_dim": st.integers(1, 8).map(lambda n: 2 * n),
        "tie_word_embeddings": st.booleans(),
    }
)


@settings(max_examples=30, deadline=None)  # building a model takes its time
@given(SHAPES, st.integers(1, 3), st.integers(1, 6))
def test_parameter_count_is_that_of_the_built_model(shape, queries_per_key, width):
    heads = queries_per_key * shape["num_key_value_heads"]
    config = LlamaConfig(**shape, num_attention_heads=heads, hidden_size=heads * width)
    with torch.device("meta"):
        assert costs.parameter_count(config) == LlamaForCausalLM(config).num_parameters()


def test_known_models():
    assert costs.parameter_count(smollm2_config()) == 134_515_008
    assert costs.parameter_count(llama_13b_config()) == 13_015_864_320  # the 13.0 B of the paper's table 2


@pytest.mark.slow
def test_the_real_model():
    from course_utils import models

    model, _ = models.load_lm()
    assert costs.parameter_count(model.config) == sum(p.numel() for p in model.parameters())
    assert costs.parameter_count(smollm2_config()) == costs.parameter_count(model.config)


# --- bytes ------------------------------------------------------------------------------------------------

COUNTS = st.integers(0, 10**12)


@given(COUNTS, st.integers(1, 64))
def test_bytes_are_the_bits_rounded_up(parameters, bits):
    assert costs.bytes_at_bits(parameters, bits) == math.ceil(Fraction(parameters * bits, 8))


@given(COUNTS, st.integers(1, 8), st.integers(1, 4096), st.integers(1, 32), st.integers(0, 32))
def test_groups_add_their_scales_and_zeros(parameters, bits, group, scale, zero):
    result = costs.bytes_at_bits(parameters, bits, group, scale, zero)
    groups = math.ceil(Fraction(parameters, group))
    assert result == math.ceil(Fraction(parameters * bits + groups * (scale + zero), 8))
    assert result >= costs.bytes_at_bits(parameters, bits)
    assert costs.bytes_at_bits(parameters + 1, bits, group, scale, zero) >= result
    assert costs.bytes_at_bits(parameters, bits, group + 1, scale, zero) <= result


@given(st.integers(1, 10**6), st.sampled_from([8, 16, 32]))
def test_bytes_at_bits_matches_torch_storage(n, bits):
    dtype = {8: torch.int8, 16: torch.bfloat16, 32: torch.float32}[bits]
    assert costs.bytes_at_bits(n, bits) == torch.empty(n, dtype=dtype).untyped_storage().nbytes()


def test_bits_a_weight_quoted_in_papers():
    n = 2**20
    assert 8 * costs.bytes_at_bits(n, 4, 128) / n == 4.125
    assert 8 * costs.bytes_at_bits(n, 4, 64) / n == 4.25
    assert 8 * costs.bytes_at_bits(n, 4, 32) / n == 4.5
    assert 8 * costs.bytes_at_bits(n, 4, 32, scale_bits=8) / n == 4.25  # MXFP4: arXiv 2310.10537
    assert 8 * costs.bytes_at_bits(n, 4, 64, scale_bits=32) / n == 4.5  # NF4: arXiv 2305.14314, section 3


def test_kv_cache_bytes_are_those_of_a_real_cache():
    config = LlamaConfig(
        vocab_size=20, hidden_size=24, intermediate_size=10, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=4)  # fmt: skip
    cache = LlamaForCausalLM(config)(torch.arange(7)[None], use_cache=True).past_key_values
    stored = sum(t.numel() * 4 for layer in cache.layers for t in (layer.keys, layer.values))
    assert 7 * costs.kv_bytes_per_token(config, bits=32) == stored
    assert costs.kv_bytes_per_token(smollm2_config()) == 23_040


# --- operations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("tokens", "cached"), [(1, 0), (1, 40), (40, 0), (5, 35)])
def test_operations_are_those_that_torch_counts(tied, tokens, cached):
    config = LlamaConfig(
        vocab_size=50, hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=10, tie_word_embeddings=tied)  # fmt: skip
    config._attn_implementation = "eager"  # attention as plain matrix products, which the counter knows
    model = LlamaForCausalLM(config)
    text = torch.arange(41)[None]
    with torch.no_grad():
        past = model(text[:, :cached], use_cache=True).past_key_values if cached else None
        with FlopCounterMode(display=False) as counter:
            model(text[:, cached : cached + tokens], past_key_values=past, use_cache=True, logits_to_keep=1)
    assert costs.forward_flops(config, tokens, cached) == counter.get_total_flops()


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 500), st.sampled_from([1, 2, 4]))
def test_intensity_has_its_known_limits(rows, inner, columns, size):
    intensity = costs.arithmetic_intensity(rows, inner, columns, size)
    assert intensity < 2 * min(rows, inner, columns) / size
    assert intensity == pytest.approx(costs.arithmetic_intensity(columns, inner, rows, size))
    assert intensity == pytest.approx(size * costs.arithmetic_intensity(rows, inner, columns, 1) / size**2)


def test_bytes_of_a_pass_grow_with_the_cache_only():
    config = smollm2_config()
    weights = costs.bytes_at_bits(costs.parameter_count(config), 32)
    assert costs.forward_bytes(config, 1) == weights + costs.kv_bytes_per_token(config, 32)
    assert costs.forward_bytes(config, 1, cached=9) - costs.forward_bytes(config, 1) == 9 * 46_080
    assert costs.forward_bytes(config, 1, bits=8) < costs.forward_bytes(config, 1) / 3.99


def test_an_untied_embedding_is_looked_up_not_multiplied():
    config = llama_13b_config()
    assert costs.parameter_count(config) - costs.weights_read(config) == 32000 * 5120
    assert costs.weights_read(smollm2_config()) == costs.parameter_count(smollm2_config())


def test_roofline_is_the_lower_of_two_limits():
    assert costs.roofline(0.5, 100e9, 20e9) == 10e9
    assert costs.roofline(50, 100e9, 20e9) == 100e9


# --- perplexity -------------------------------------------------------------------------------------------


@given(st.integers(2, 30), st.integers(2, 40), st.integers(0, 2**31))
def test_perplexity_from_logits_is_exp_of_the_cross_entropy(n, vocabulary, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(n, vocabulary, generator=generator)
    tokens = torch.randint(0, vocabulary, (n,), generator=generator)
    expected = torch.nn.functional.cross_entropy(logits[:-1].double(), tokens[1:]).exp().item()
    assert costs.perplexity_from_logits(logits, tokens) == pytest.approx(expected, rel=1e-4)
    shifted = costs.perplexity_from_logits(logits + 7.5, tokens)  # softmax does not see a constant
    assert shifted == pytest.approx(expected, rel=1e-4)


def test_perplexity_of_a_guesser_and_of_one_who_knows():
    tokens = torch.tensor([3, 1, 4, 1, 5])
    assert costs.perplexity_from_logits(torch.zeros(5, 49152), tokens) == pytest.approx(49152, rel=1e-5)
    sure = torch.full((5, 10), -1e4)
    sure[torch.arange(4), tokens[1:]] = 0
    assert costs.perplexity_from_logits(sure, tokens) == 1


def test_decode_bound_is_bandwidth_over_bytes_and_grows_with_the_batch_until_the_cache_decides():
    weights, cache, bandwidth = 8.6e7, 5.9e6, 2e10
    assert costs.decode_bound(weights, bandwidth) == pytest.approx(bandwidth / weights)
    rates = [costs.decode_bound(weights, bandwidth, cache, batch) for batch in (1, 2, 16, 1024)]
    assert rates == sorted(rates) and rates[-1] < bandwidth / cache
    for wrong in ((0, bandwidth), (weights, 0), (weights, -1)):
        with pytest.raises(ValueError, match="must be positive"):
            costs.decode_bound(*wrong)
