"""Small state dicts, a base and three that grew from it, and a small model."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils.merge import methods


def model(seed=0, spread=1.0, dtype=torch.float32):
    """A small state dict: two matrices, a bias, a vector of one number, an integer buffer."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (6, 5), "a.bias": (6,), "b.weight": (4, 6), "scale": ()}
    made = {name: (spread * torch.randn(shape, generator=generator)).to(dtype)
            for name, shape in shapes.items()}  # fmt: skip
    return made | {"position_ids": torch.arange(5)}


def finetuned(seed, base, size=0.1):
    change = model(seed, size)
    return {name: value + change[name] if value.is_floating_point() else value
            for name, value in base.items()}  # fmt: skip


BASE = model()
ONE, TWO, THREE = (finetuned(seed, BASE) for seed in (1, 2, 3))
TASKS = [methods.task_vector(tuned, BASE) for tuned in (ONE, TWO, THREE)]


def assert_same(a, b, **tolerance):
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        torch.testing.assert_close(a[name], b[name], **({"rtol": 1e-5, "atol": 1e-6} | tolerance))


def llama(tie=True, seed=0):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=50,
        num_key_value_heads=2, tie_word_embeddings=tie)).eval()  # fmt: skip
