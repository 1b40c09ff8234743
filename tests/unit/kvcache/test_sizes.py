"""The bytes that caches store are those of their tensors and of the formula."""

import pytest
import torch
from transformers import DynamicCache, GPTNeoConfig, LlamaConfig

from course_utils import costs
from course_utils.kvcache import decoding, sizes
from course_utils.kvcache.layers import DynamicLayer, make_cache
from tests.unit.kvcache.common import tiny_llama, tokens


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_a_token_are_those_of_the_tensors(kv_heads, dtype):
    model = tiny_llama(kv_heads).to(dtype)
    expected = 24 * costs.kv_bytes_per_token(model.config, 8 * dtype.itemsize)
    for cache in (DynamicCache(config=model.config), make_cache(model.config, DynamicLayer)):
        decoding.read(model, tokens(), cache, 24)
        assert sizes.stored_bytes(cache) == expected


def test_bytes_of_known_models():
    smollm = LlamaConfig(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3)
    assert costs.kv_bytes_per_token(smollm) == 23_040
    llama13b = LlamaConfig(hidden_size=5120, num_hidden_layers=40, num_attention_heads=40)
    assert costs.kv_bytes_per_token(llama13b) == 819_200
    llama70b = LlamaConfig(hidden_size=8192, num_hidden_layers=80, num_attention_heads=64,
                           num_key_value_heads=8)
    assert costs.kv_bytes_per_token(llama70b) == 320 * 1024


def test_what_is_no_cache_is_refused():
    with pytest.raises(TypeError, match="must be a transformers Cache"):
        sizes.stored_bytes([1])


def test_layers_with_settings_of_their_own_are_refused():
    config = LlamaConfig(num_hidden_layers=2, per_layer_config={1: {"num_key_value_heads": 1}})
    with pytest.raises(ValueError, match="llama has settings of its own for some layers"):
        costs.kv_bytes_per_token(config)


def test_the_window_of_local_layers_is_found():
    config = GPTNeoConfig(num_layers=2, attention_types=[[["global", "local"], 1]], window_size=256)
    assert costs.attention_window(config) == 256
    assert costs.attention_window(GPTNeoConfig(num_layers=2, attention_types=[[["global"], 2]])) is None
