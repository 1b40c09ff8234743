"""Structured pruning: whole attention heads and whole MLP neurons are cut out, and the matrices get smaller.

    scores = head_ablation(model, loss)              how much worse the model gets without each head
    scores = head_gradient(model, batches, loss)     the same, estimated from one backward pass
    keep_heads(model, kept_overall(scores, 24))      slice Q, K, V rows and O columns; update the config
    save(model, folder)                              a folder that transformers loads

Works for BERT and for decoders of the Llama architecture, with as many key-value heads as query heads (MHA)
or fewer (grouped-query attention, GQA). Removing whole blocks is in course_utils.prune.depth.

layout      where a block keeps its attention and its MLP
gates       what a model computes without some heads or neurons, before anything is cut
importance  how much worse it gets without each of them
choice      which to keep
slicing     smaller linear layers out of large ones
cutting     heads and neurons out of a model, and back
saving      a folder that transformers loads

Sources: P. Michel, O. Levy, G. Neubig, "Are Sixteen Heads Really Better than One?", arXiv 1905.10650, for the
importance of heads; J. Ainslie et al., "GQA", arXiv 2305.13245, for which query heads share a key-value head.
"""

from course_utils.prune.structured.choice import kept_in_each, kept_in_groups, kept_overall
from course_utils.prune.structured.cutting import keep_heads, keep_neurons, keep_query_heads, putting_back
from course_utils.prune.structured.gates import gated, gates_of
from course_utils.prune.structured.importance import (
    head_ablation,
    head_gradient,
    head_importance,
    neuron_importance,
)
from course_utils.prune.structured.layout import Attention, attentions, mlp_outputs
from course_utils.prune.structured.saving import save
from course_utils.prune.structured.slicing import keep_columns, keep_rows, slice_heads

__all__ = [
    "Attention", "attentions", "gated", "gates_of", "head_ablation", "head_gradient", "head_importance",
    "keep_columns", "keep_heads", "keep_neurons", "keep_query_heads", "keep_rows", "kept_in_each",
    "kept_in_groups", "kept_overall", "mlp_outputs", "neuron_importance", "putting_back", "save",
    "slice_heads",
]  # fmt: skip
