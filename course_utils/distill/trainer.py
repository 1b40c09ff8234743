"""Distillation inside transformers' Trainer: the loss belongs in compute_loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Trainer

from course_utils.distill.losses import check_labels, check_logits, kd_loss


class DistillationTrainer(Trainer):
    """A Trainer whose loss is alpha * kd_loss + (1 - alpha) * cross-entropy.

    Works for classifiers of sentences ([batch, classes]) and of tokens ([batch, length, classes]). Where
    a label is -100, neither loss looks.

    Args:
        *args: Trainer's.
        teacher: runs in eval mode and without gradients; its weights never change.
        temperature: that of kd_loss, above 0.
        alpha: from 0 (labels only) to 1 (teacher only).
        **kwargs: Trainer's.

    Raises:
        ValueError: temperature or alpha is out of range.
    """

    def __init__(self, *args: Any, teacher: nn.Module, temperature: float = 2.0, alpha: float = 0.5,
                 **kwargs: Any) -> None:
        if temperature <= 0 or not 0 <= alpha <= 1:
            raise ValueError(f"temperature must be above 0 and alpha from 0 to 1, got {temperature}, {alpha}")
        super().__init__(*args, **kwargs)
        self.teacher = teacher.to(self.args.device).eval()
        self.temperature, self.alpha = temperature, alpha
        # Our loss is a mean over the batch. Trainer must divide it by the number of accumulated batches,
        # which it leaves out for models that can do so themselves.
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False,
                     num_items_in_batch: torch.Tensor | int | None = None
                     ) -> torch.Tensor | tuple[torch.Tensor, Any]:  # fmt: skip
        """The loss of a batch.

        Args:
            model: the student.
            inputs: the batch, with its labels.
            return_outputs: whether the student's outputs are wanted too.
            num_items_in_batch: ignored: the loss is a mean over the batch.

        Returns:
            The loss, a scalar; with return_outputs (loss, outputs). 0 when no label of the batch counts.

        Raises:
            ValueError: the teacher's logits or the labels do not fit the student's logits.
        """
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        with torch.no_grad():
            teacher_logits = self.teacher(**inputs).logits
        check_logits(outputs.logits, teacher_logits, self.temperature)
        counted = labels != -100
        if not counted.any():  # a mean of nothing is NaN
            loss = 0 * outputs.logits.sum()
            return (loss, outputs) if return_outputs else loss
        check_labels(outputs.logits, labels)
        soft = kd_loss(outputs.logits[counted], teacher_logits[counted], self.temperature)
        hard = F.cross_entropy(outputs.logits[counted], labels[counted])
        loss = self.alpha * soft + (1 - self.alpha) * hard
        return (loss, outputs) if return_outputs else loss
