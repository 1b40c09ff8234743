"""Healing a language model that lost layers."""

import copy

import pytest
import torch

from course_utils import distill
from tests.unit.distill.common import fingerprint, seeded, small_llama


@pytest.mark.parametrize("divergence", [distill.kd_loss, distill.reverse_kl])
def test_healing_brings_the_student_closer_to_the_teacher(divergence):
    teacher = small_llama()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(3.0)  # random weights, but answers that differ from token to token
    before = fingerprint(teacher)
    windows = torch.randint(0, 101, (8, 16), generator=seeded())
    runs = []
    for _ in range(2):
        student = distill.make_student(teacher, [0, 1, 3], train=[1, 3])
        run = distill.heal(student, teacher, windows, steps=60, lr=1e-2, divergence=divergence)
        runs.append((run, student))
    run, student = runs[0]
    assert sum(run.losses[-8:]) < 0.8 * sum(run.losses[:8])
    assert run.losses == runs[1][0].losses  # the same seed, the same run
    assert fingerprint(teacher) == before and all(p.grad is None for p in student.parameters())


def test_without_a_divergence_the_text_itself_is_the_teacher():
    teacher = small_llama()
    student = distill.make_student(teacher, [0, 1, 3], train=[1, 3])
    windows = torch.randint(0, 101, (1, 16), generator=seeded())
    with torch.no_grad():
        before = student(windows, labels=windows).loss.item()
    run = distill.heal(student, teacher, windows, steps=40, lr=1e-2, divergence=None)
    assert run.losses[0] == pytest.approx(before, rel=1e-5)  # transformers' own loss
    assert run.losses[-1] < 0.9 * before


def test_healing_refuses_what_cannot_be_healed():
    teacher = small_llama()
    student = distill.make_student(teacher, [0, 1, 3], train=[])
    windows = torch.zeros(2, 8, dtype=torch.long)
    with pytest.raises(ValueError, match="unfrozen"):
        distill.heal(student, teacher, windows, steps=1)
    with pytest.raises(ValueError, match="windows"):
        distill.heal(copy.deepcopy(teacher), teacher, windows[0], steps=1)
