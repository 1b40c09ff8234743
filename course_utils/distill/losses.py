"""What a student is asked to match: the teacher's answers, its hidden states, its attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


def check_logits(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0) -> None:
    """Refuse logits that cannot be compared. Shapes must be equal: torch would stretch one to the other.

    Args:
        student: should be float [..., classes], one row at least.
        teacher: should be float, of the same shape.
        temperature: should be a finite number above 0.

    Raises:
        ValueError: something is not.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"logits {list(student.shape)} of the student and {list(teacher.shape)} of the "
                         "teacher differ: both need the same rows and the same classes (or vocabulary)")
    if student.ndim == 0 or student.numel() == 0:
        raise ValueError(f"logits of shape {list(student.shape)} hold nothing to compare")
    for dtype in (student.dtype, teacher.dtype):
        if not dtype.is_floating_point:
            raise ValueError(f"logits must be floats, not {dtype}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"the temperature must be a finite number above 0, not {temperature}")


def check_labels(logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Refuse labels that do not fit: of another shape or number, or no integers.

    Args:
        logits: float [..., classes].
        labels: should be integer [...], from 0 to classes - 1, or -100 for those that do not count.

    Raises:
        ValueError: they are not, or none counts.
    """
    if labels.shape != logits.shape[:-1] or labels.is_floating_point():
        raise ValueError(f"labels must be whole numbers {list(logits.shape[:-1])}, one for each row "
                         f"of logits, not {labels.dtype} {list(labels.shape)}")
    counted = labels[labels != -100]
    if not len(counted):
        raise ValueError("no label counts (all are -100, or there are none): the mean loss is not defined")
    low, high = counted.min().item(), counted.max().item()
    if low < 0 or high >= logits.shape[-1]:
        raise ValueError(f"labels run from {low} to {high}, but classes from 0 to {logits.shape[-1] - 1}")


def kd_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Distance of the student's answers from the teacher's: T^2 * KL(teacher || student).

    The gradient reaches the student's logits only. T^2 keeps its size about the same for every temperature.
    Source: Hinton, Vinyals, Dean, arXiv 1503.02531, section 2.

    Args:
        student_logits: float [..., classes].
        teacher_logits: of the same shape.
        temperature: T; both logits are divided by it before the softmax.

    Returns:
        A scalar in nats: the mean over everything but the classes.

    Raises:
        ValueError: the shapes differ (`distill.check_logits(student_logits, teacher_logits, temperature)`
            does it).
    """
    check_logits(student_logits, teacher_logits, temperature)
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=-1)
    divergence = (teacher.exp() * (teacher - student)).sum(dim=-1)
    return temperature**2 * divergence.mean()


def kd_gradient(student_logits: torch.Tensor, teacher_logits: torch.Tensor,
                temperature: float) -> torch.Tensor:
    """Gradient of kd_loss for the student's logits, in closed form: T * (student - teacher) / rows.

    `student` and `teacher` in the formula are their softened probabilities.
    Source: equation 2 of arXiv 1503.02531, times T^2, averaged over the rows.

    Args:
        student_logits: float [rows, classes].
        teacher_logits: of the same shape.
        temperature: T.

    Returns:
        Float [rows, classes].

    Raises:
        ValueError: the shapes differ (`distill.check_logits` does it).
    """
    check_logits(student_logits, teacher_logits, temperature)
    student = torch.softmax(student_logits / temperature, dim=-1)
    teacher = torch.softmax(teacher_logits / temperature, dim=-1)
    return temperature * (student - teacher) / len(student_logits)


def reverse_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor,
               temperature: float = 1.0) -> torch.Tensor:
    """The other direction: T^2 * KL(student || teacher).

    It costs the student much to answer what the teacher finds unlikely, and little to leave out some of what
    the teacher finds likely. Source: MiniLLM (Gu et al.), arXiv 2306.08543.

    Args:
        student_logits: float [..., classes].
        teacher_logits: of the same shape; no gradient reaches them.
        temperature: T; both logits are divided by it before the softmax.

    Returns:
        A scalar in nats: the mean over everything but the classes.

    Raises:
        ValueError: as `check_logits`.
    """
    check_logits(student_logits, teacher_logits, temperature)
    student = F.log_softmax(student_logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=-1)
    return temperature**2 * (student.exp() * (student - teacher)).sum(dim=-1).mean()


def hidden_loss(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor,
                projection: nn.Module | None = None) -> torch.Tensor:
    """Mean squared error between hidden states, over real tokens only.

    Source: TinyBERT (Jiao et al.), arXiv 1909.10351, equation 8.

    Args:
        student: float [batch, length, width].
        teacher: float [batch, length, teacher's width]; no gradient reaches it.
        mask: [batch, length], 1 for real tokens and 0 for padding.
        projection: maps the student's width to the teacher's where they differ, and is trained along.

    Returns:
        A scalar.

    Raises:
        ValueError: the shapes differ, after the projection if there is one, or the mask does not fit.
    """
    if projection is not None:
        student = projection(student)
    if student.shape != teacher.shape:
        raise ValueError(f"hidden states {list(student.shape)} and {list(teacher.shape)} differ: give a "
                         f"projection, nn.Linear({student.shape[-1]}, {teacher.shape[-1]})")
    _check_mask(mask, student.shape[:2])
    error = (student - teacher.detach()).square().mean(dim=-1)
    return (error * mask).sum() / mask.sum()


def attention_loss(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) between attention distributions, over heads and real tokens.

    Source: MiniLM (Wang et al.), arXiv 2002.10957, section 3.1, equation 6.

    Args:
        student: float [batch, heads, length, length], rows sum to 1.
        teacher: of the same shape; no gradient reaches it.
        mask: [batch, length], 1 for real tokens and 0 for padding.

    Returns:
        A scalar in nats.

    Raises:
        ValueError: the shapes differ, or the mask does not fit.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"attention {list(student.shape)} and {list(teacher.shape)} differ: both models "
                         "need the same number of heads")
    _check_mask(mask, (student.shape[0], student.shape[2]))
    teacher, tiny = teacher.detach(), torch.finfo(teacher.dtype).tiny
    logs = teacher.clamp(min=tiny).log() - student.clamp(min=tiny).log()
    divergence = (teacher * logs).sum(dim=-1).mean(dim=1)  # [batch, length]
    return (divergence * mask).sum() / mask.sum()


def _check_mask(mask: torch.Tensor, shape: Sequence[int]) -> None:
    """Refuse a mask that torch would stretch, and one without a token: ValueError."""
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"the mask must be [batch, length] = {list(shape)}, not {list(mask.shape)}")
    if not mask.any():
        raise ValueError("the mask hides all tokens: there is nothing to compare")
