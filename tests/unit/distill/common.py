"""Small models, a batch for them, and random numbers from a seed."""

import hashlib

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def small_bert(seed=0, layers=4, kind=BertForSequenceClassification, **config):
    torch.manual_seed(seed)
    return kind(BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, num_labels=2,
        intermediate_size=64, max_position_embeddings=64, **config)).eval()  # fmt: skip


def small_llama(seed=0, layers=4):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=101, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True)).eval()  # fmt: skip


def fingerprint(model):
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def batch(rows=6, length=9):
    ids = torch.randint(1000, 3000, (rows, length), generator=seeded())
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}
