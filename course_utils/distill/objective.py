"""The losses of a distillation, added up for `finetune.train(..., loss=Objective(teacher, soft=1.0))`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from course_utils import measure
from course_utils.distill.losses import attention_loss, check_labels, hidden_loss, kd_loss


@dataclass(frozen=True)
class Objective:
    """A weighted sum of losses: objective(student, batch, labels) is a scalar.

    Attributes:
        teacher: its weights are never changed; it runs without dropout and without gradients.
        hard: weight of the cross-entropy with the labels.
        soft: weight of kd_loss.
        hidden: weight of hidden_loss, mean over the compared layers.
        attention: weight of attention_loss, last layer against last layer.
        temperature: that of kd_loss.
        layers: the teacher layer of each student layer (layer_map); hidden needs it.
        compare: student layers whose hidden states are compared; None: all.
        projection: maps hidden states of a narrower student (see hidden_loss). Make it a part of the student,
            `student.projection = projection`, and it is trained along; delete it before saving.

    Raises:
        ValueError: a weight is negative, all are 0, hidden has no layers, or the temperature is not above 0.
    """

    teacher: nn.Module
    hard: float = 0.0
    soft: float = 0.0
    hidden: float = 0.0
    attention: float = 0.0
    temperature: float = 2.0
    layers: Sequence[int] | None = None
    compare: Sequence[int] | None = None
    projection: nn.Module | None = None

    def __post_init__(self) -> None:
        weights = (self.hard, self.soft, self.hidden, self.attention)
        if not (min(weights) >= 0 and 0 < sum(weights) < math.inf):
            raise ValueError("give at least one of hard, soft, hidden and attention a weight above 0")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"the temperature must be a finite number above 0, not {self.temperature}")
        if self.hidden and self.layers is None:
            raise ValueError("hidden compares layer by layer: give layers=layer_map(teacher's, student's)")

    def __call__(self, student: nn.Module, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            student: a classifier of sentences.
            batch: what student and teacher take: input_ids, attention_mask and so on, [batch, length] each.
            labels: integer tensor [batch].

        Returns:
            A scalar.

        Raises:
            ValueError: student, teacher, labels and mask do not fit each other (see the losses).
        """
        if self.attention:
            for model in (student, self.teacher):  # other kernels do not return the attention they compute
                model.set_attn_implementation("eager")
        ask = {"output_hidden_states": bool(self.hidden), "output_attentions": bool(self.attention)}
        with measure.evaluating(self.teacher):
            teacher = self.teacher(**batch, **ask)
        found = student(**batch, **ask)
        mask = batch["attention_mask"].to(found.logits.dtype)
        total = found.logits.new_zeros(())
        if self.hard:
            check_labels(found.logits, labels)
            total = total + self.hard * F.cross_entropy(found.logits, labels)
        if self.soft:
            total = total + self.soft * kd_loss(found.logits, teacher.logits, self.temperature)
        if self.hidden:
            total = total + self.hidden * self._hidden(found.hidden_states, teacher.hidden_states, mask)
        if self.attention:
            last = found.attentions[-1], teacher.attentions[-1]
            total = total + self.attention * attention_loss(*last, mask)
        return total

    def _hidden(self, student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor) -> Tensor:
        compare = range(len(self.layers)) if self.compare is None else self.compare
        # hidden_states[0] is the embedding: layer i writes entry i + 1.
        errors = [hidden_loss(student[i + 1], teacher[self.layers[i] + 1], mask, self.projection)
                  for i in compare]
        return sum(errors) / len(errors)


def stages(objective: Objective, layers: Sequence[int]) -> list[Objective]:
    """Progressive distillation: one stage a layer, from the bottom up, then the given objective itself.

    In the stage of layer i the student only learns to match the teacher's hidden states after that layer.
    Source: the layer-by-layer training that TinyBERT (section 3.2) and Aguilar et al., arXiv 1910.03723
    (progressive internal distillation), describe.

    Args:
        objective: of the last stage.
        layers: the teacher layer of each student layer (layer_map).

    Returns:
        An objective for each stage, in their order.
    """
    first = replace(objective, hard=0.0, soft=0.0, attention=0.0, hidden=1.0, layers=layers)
    return [*(replace(first, compare=[i]) for i in range(len(layers))), objective]
