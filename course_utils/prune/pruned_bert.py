"""A BERT classifier whose blocks have lost some of their heads, for AutoModel...(trust_remote_code=True).

course_utils.prune.structured.save puts a copy of this file beside the weights. It imports nothing but torch
and transformers, so the folder can be loaded where the course is not installed.
"""

from torch import nn
from transformers import BertConfig, BertForSequenceClassification


class PrunedBertForSequenceClassification(BertForSequenceClassification):
    """BertForSequenceClassification with config.heads_per_layer[i] heads in block i.

    The config keeps num_attention_heads of the model before pruning, because BERT's code derives the size
    of a head from it (hidden_size / num_attention_heads). Its forward pass reads the number of heads off the
    tensors, so smaller layers are all that is needed.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        head_dim = config.hidden_size // config.num_attention_heads
        for block, heads in zip(self.bert.encoder.layer, config.heads_per_layer, strict=True):
            attention, width = block.attention.self, heads * head_dim
            attention.query = nn.Linear(config.hidden_size, width)
            attention.key = nn.Linear(config.hidden_size, width)
            attention.value = nn.Linear(config.hidden_size, width)
            block.attention.output.dense = nn.Linear(width, config.hidden_size)
            attention.num_attention_heads, attention.all_head_size = heads, width
