"""A pruned model as a folder that transformers loads."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from course_utils.prune.pruned_bert import PrunedBertForSequenceClassification


def save(model: nn.Module, folder: str | Path) -> None:
    """Save a pruned model as a folder that transformers loads.

    Llama, and BERT with whole heads: `from_pretrained(folder)`, nothing else is needed.
    BERT that has lost heads: BertConfig cannot say so, because it derives the head size from the number of
    heads. The folder gets the file pruned_bert.py beside the weights, and
    `AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)` builds the model with
    it: transformers' way for models that it does not know. No part of this course is needed to load it.

    Args:
        model: the pruned model.
        folder: where to write.

    Raises:
        ValueError: for a BERT that has lost heads and is no sequence classifier.
    """
    if getattr(model.config, "heads_per_layer", None) is None:
        model.save_pretrained(folder)
        return
    if not hasattr(model, "classifier") or not hasattr(model, "bert"):
        raise ValueError(f"only BERT sequence classifiers can be saved with fewer heads, not "
                         f"{type(model).__name__}")
    with torch.device("meta"):
        shell = PrunedBertForSequenceClassification(model.config)
    shell.load_state_dict(model.state_dict(), assign=True)  # the same tensors: nothing is copied
    PrunedBertForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
    shell.save_pretrained(folder)
