"""Knowledge distillation: a small model, the student, learns from the outputs of a large one, the teacher.

Example:
    layers = layer_map(6, 3)  # which teacher layers the student starts from
    student = make_student(teacher, layers)
    finetune.train(student, tokenizer, examples, steps=60, loss=Objective(teacher, soft=1.0))
"""

from course_utils.distill.language import heal
from course_utils.distill.losses import (
    attention_loss,
    check_labels,
    check_logits,
    hidden_loss,
    kd_gradient,
    kd_loss,
    reverse_kl,
)
from course_utils.distill.objective import Objective, stages
from course_utils.distill.students import from_scratch, layer_map, make_student
from course_utils.distill.trainer import DistillationTrainer

__all__ = [
    "DistillationTrainer", "Objective", "attention_loss", "check_labels", "check_logits", "from_scratch",
    "heal", "hidden_loss", "kd_gradient", "kd_loss", "layer_map", "make_student", "reverse_kl", "stages",
]  # fmt: skip
