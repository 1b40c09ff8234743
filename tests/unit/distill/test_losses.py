"""Losses against autograd and torch's own."""

import pytest
import torch
import torch.nn.functional as F

from course_utils import distill
from tests.unit.distill.common import randn


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("shape", [(5, 2), (1, 7), (2, 3, 11)])
def test_kd_loss_equals_torchs_kl_divergence(shape, temperature):
    student, teacher = randn(*shape), randn(*shape, seed=1)
    expected = F.kl_div(
        F.log_softmax(student / temperature, -1).flatten(0, -2),
        F.log_softmax(teacher / temperature, -1).flatten(0, -2), reduction="batchmean", log_target=True,
    ) * temperature**2  # fmt: skip
    torch.testing.assert_close(distill.kd_loss(student, teacher, temperature), expected)
    # The other direction is the same formula with the roles exchanged.
    swapped = distill.kd_loss(teacher, student, temperature)
    torch.testing.assert_close(distill.reverse_kl(student, teacher, temperature), swapped)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 20.0])
def test_the_closed_gradient_is_autograds(temperature):
    student, teacher = randn(6, 5).double().requires_grad_(), randn(6, 5, seed=1).double().requires_grad_()
    distill.kd_loss(student, teacher, temperature).backward()
    expected = distill.kd_gradient(student.detach(), teacher.detach(), temperature)
    torch.testing.assert_close(student.grad, expected)
    assert teacher.grad is None  # the teacher gets no gradient
    assert torch.autograd.gradcheck(lambda s: distill.kd_loss(s, teacher.detach(), temperature), student)
    assert torch.autograd.gradcheck(lambda s: distill.reverse_kl(s, teacher.detach(), temperature), student)


def test_at_a_high_temperature_it_is_the_squared_error_of_centred_logits():
    student, teacher = randn(8, 5).double(), randn(8, 5, seed=1).double()
    apart = (student - student.mean(-1, True)) - (teacher - teacher.mean(-1, True))
    expected = apart.square().sum(-1).mean() / (2 * 5)  # equations 3 and 4 of arXiv 1503.02531
    torch.testing.assert_close(distill.kd_loss(student, teacher, 1e3), expected, rtol=5e-3, atol=0)


def test_losses_are_zero_for_a_perfect_student_and_never_negative():
    for seed in range(5):
        student, teacher = 3 * randn(4, 6, seed=seed), 3 * randn(4, 6, seed=seed + 10)
        for loss in (distill.kd_loss, distill.reverse_kl):
            assert loss(teacher, teacher, 2.0).item() == pytest.approx(0, abs=1e-6)
            assert loss(student, teacher, 2.0) > 0
            shifted = loss(student + 5.0, teacher, 2.0)  # a constant on all logits changes no probability
            torch.testing.assert_close(shifted, loss(student, teacher, 2.0))


def test_hidden_loss_looks_at_real_tokens_only_and_takes_a_projection():
    student, teacher = randn(2, 3, 4), randn(2, 3, 4, seed=1)
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    real = [(0, 0), (0, 1), (1, 0)]
    expected = sum(F.mse_loss(student[at], teacher[at]) for at in real) / 3
    torch.testing.assert_close(distill.hidden_loss(student, teacher, mask), expected)
    wide = randn(2, 3, 6, seed=2)
    with pytest.raises(ValueError, match=r"projection, nn.Linear\(4, 6\)"):
        distill.hidden_loss(student, wide, mask)
    projection = torch.nn.Linear(4, 6)
    found = distill.hidden_loss(student, wide, mask, projection)
    torch.testing.assert_close(found, distill.hidden_loss(projection(student), wide, mask))
    found.backward()
    assert projection.weight.grad.abs().sum() > 0


def test_attention_loss_is_the_mean_kl_of_the_rows_of_real_tokens():
    student, teacher = (torch.softmax(2 * randn(2, 3, 4, 4, seed=s), -1) for s in (0, 1))
    mask = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    rows = [(0, q) for q in range(4)] + [(1, 0), (1, 1)]
    kl = [F.kl_div(student[b, h, q].log(), teacher[b, h, q], reduction="sum")
          for b, q in rows for h in range(3)]  # fmt: skip
    torch.testing.assert_close(distill.attention_loss(student, teacher, mask), sum(kl) / len(kl))
    teacher[0, 0, 0] = torch.tensor([1.0, 0.0, 0.0, 0.0])  # a zero is no NaN
    assert distill.attention_loss(student, teacher, mask).isfinite()
    with pytest.raises(ValueError, match="number of heads"):
        distill.attention_loss(student[:, :2], teacher, mask)


@pytest.mark.parametrize("loss", [distill.kd_loss, distill.reverse_kl, distill.kd_gradient])
@pytest.mark.parametrize("student, teacher, temperature, match", [
    (randn(8, 2), randn(8, 1), 2.0, r"logits \[8, 2\] of the student and \[8, 1\] of the teacher differ"),
    (randn(8, 2), randn(1, 2), 2.0, "differ"), (randn(8, 2), randn(2), 2.0, "differ"),
    (randn(4, 5), randn(4, 7), 2.0, "vocabulary"), (randn(0, 2), randn(0, 2), 2.0, "nothing to compare"),
    (torch.ones(2, 2, dtype=torch.long), torch.ones(2, 2), 2.0, "must be floats, not torch.int64"),
    (randn(8, 2), randn(8, 2), 0.0, "temperature must be a finite number above 0"),
    (randn(8, 2), randn(8, 2), -1.0, "temperature"), (randn(8, 2), randn(8, 2), float("nan"), "temperature")])
def test_logits_that_torch_would_stretch_are_refused(loss, student, teacher, temperature, match):
    with pytest.raises(ValueError, match=match):
        loss(student, teacher, temperature)


@pytest.mark.parametrize("labels, match", [
    (torch.tensor([0, 1]), r"whole numbers \[3\]"), (torch.tensor([[0], [1], [0]]), "whole numbers"),
    (torch.tensor([0.0, 1.0, 0.0]), "torch.float32"), (torch.full((3,), -100), "no label counts"),
    (torch.tensor([0, 2, 1]), "labels run from 0 to 2, but classes from 0 to 1"),
    (torch.tensor([0, -1, 1]), "run from -1")])
def test_labels_that_do_not_fit_are_refused(labels, match):
    with pytest.raises(ValueError, match=match):
        distill.check_labels(randn(3, 2), labels)
    distill.check_labels(randn(3, 2), torch.tensor([0, -100, 1]))


@pytest.mark.parametrize("mask, match", [
    (torch.ones(3, 1), "the mask must be"), (torch.ones(5), "the mask must be"),
    (torch.zeros(3, 5), "hides all tokens")])
def test_masks_that_torch_would_stretch_are_refused(mask, match):
    states, attention = randn(3, 5, 4), randn(3, 2, 5, 5).softmax(-1)
    with pytest.raises(ValueError, match=match):
        distill.hidden_loss(states, states, mask)
    with pytest.raises(ValueError, match=match):
        distill.attention_loss(attention, attention, mask)
