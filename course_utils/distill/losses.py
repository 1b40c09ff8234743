"""What a student is asked to match: the teacher's answers, its hidden states, its attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def kd_loss(student_logits, teacher_logits, temperature):
    """Distance of the student's answers from the teacher's: T^2 * KL(teacher || student), a scalar in nats.

    student_logits, teacher_logits: float [..., classes], of the same shape. Both are divided by the
    temperature T before the softmax; the mean is over everything but the classes. The gradient reaches the
    student's logits only. T^2 keeps its size about the same for every temperature.
    Source: Hinton, Vinyals, Dean, arXiv 1503.02531, section 2.
    """
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=-1)
    divergence = (teacher.exp() * (teacher - student)).sum(dim=-1)
    return temperature**2 * divergence.mean()


def kd_gradient(student_logits, teacher_logits, temperature):
    """Gradient of kd_loss for the student's logits, in closed form: T * (student - teacher) / rows.

    student_logits, teacher_logits: float [rows, classes]. `student` and `teacher` in the formula are their
    softened probabilities. Returns float [rows, classes].
    Source: equation 2 of arXiv 1503.02531, times T^2, averaged over the rows.
    """
    student = torch.softmax(student_logits / temperature, dim=-1)
    teacher = torch.softmax(teacher_logits / temperature, dim=-1)
    return temperature * (student - teacher) / len(student_logits)


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 * KL(student || teacher), a scalar in nats: the other direction.

    Shapes as for kd_loss. It costs the student much to answer what the teacher finds unlikely, and little to
    leave out some of what the teacher finds likely. Source: MiniLLM (Gu et al.), arXiv 2306.08543.
    """
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=-1)
    return temperature**2 * (student.exp() * (student - teacher)).sum(dim=-1).mean()


def hidden_loss(student: Tensor, teacher: Tensor, mask: Tensor,
                projection: nn.Module | None = None) -> Tensor:
    """Mean squared error between hidden states, over real tokens only; a scalar.

    student: float [batch, length, width]; teacher: [batch, length, teacher's width]; mask: [batch, length],
    1 for real tokens and 0 for padding. projection maps the student's width to the teacher's where they
    differ, and is trained along. Source: TinyBERT (Jiao et al.), arXiv 1909.10351, equation 8.
    """
    if projection is not None:
        student = projection(student)
    if student.shape != teacher.shape:
        raise ValueError(f"hidden states {list(student.shape)} and {list(teacher.shape)} differ: give a "
                         f"projection, nn.Linear({student.shape[-1]}, {teacher.shape[-1]})")
    error = (student - teacher.detach()).square().mean(dim=-1)
    return (error * mask).sum() / mask.sum()


def attention_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """KL(teacher || student) between attention distributions, over heads and real tokens; in nats.

    student, teacher: float [batch, heads, length, length], rows sum to 1; mask as in hidden_loss.
    Source: MiniLM (Wang et al.), arXiv 2002.10957, section 3.1, equation 6.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"attention {list(student.shape)} and {list(teacher.shape)} differ: both models "
                         "need the same number of heads")
    teacher, tiny = teacher.detach(), torch.finfo(teacher.dtype).tiny
    logs = teacher.clamp(min=tiny).log() - student.clamp(min=tiny).log()
    divergence = (teacher * logs).sum(dim=-1).mean(dim=1)  # [batch, length]
    return (divergence * mask).sum() / mask.sum()
