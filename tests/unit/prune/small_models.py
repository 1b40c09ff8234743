"""Small random models for the tests of structured pruning and of depth: quick, and every bias counts."""

import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

HEAD_DIM = 8


def llama(heads=4, kv_heads=2, bias=False, hidden=48, blocks=3):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=97, hidden_size=hidden, intermediate_size=40, num_hidden_layers=blocks,
                         num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=HEAD_DIM,
                         attention_bias=bias, mlp_bias=bias, tie_word_embeddings=True,
                         max_position_embeddings=64, initializer_range=0.3)
    return _with_biases(LlamaForCausalLM(config))


def bert(heads=6):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=97, hidden_size=heads * HEAD_DIM, intermediate_size=40, num_labels=3,
                        num_hidden_layers=3, num_attention_heads=heads, max_position_embeddings=64,
                        initializer_range=0.3)
    return _with_biases(BertForSequenceClassification(config))


def _with_biases(model):
    """transformers starts biases at zero: a forgotten one would not be noticed."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


MODELS = {
    "BERT": bert,
    "Llama MHA": lambda: llama(heads=6, kv_heads=6),
    "Llama GQA": lambda: llama(heads=6, kv_heads=3),
    "Llama GQA, biases": lambda: llama(heads=6, kv_heads=3, bias=True),
}
KEPT = {"BERT": [[0, 2, 3], [5], [1, 4]]} | dict.fromkeys(
    ("Llama GQA", "Llama GQA, biases"), [[0, 2], [1, 2], [0, 1]]) | {
    "Llama MHA": [[0, 2, 3], [1, 2, 5], [3, 4, 5]]}


def batch():
    ids = torch.randint(0, 97, (4, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def logits(model):
    return model(**batch()).logits


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())
