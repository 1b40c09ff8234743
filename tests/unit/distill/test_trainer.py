"""The loss in transformers' Trainer, against the formula and autograd."""

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BertForTokenClassification,
    TrainingArguments,
)

from course_utils import distill
from tests.unit.distill.common import batch, fingerprint, seeded, small_bert


def trainer(student, teacher, folder, rows=(), **arguments):
    options = {"output_dir": str(folder), "report_to": [], "use_cpu": True, "disable_tqdm": True,
               "save_strategy": "no", "logging_strategy": "no", "max_grad_norm": 0.0, "optim": "sgd",
               "learning_rate": 0.1, "lr_scheduler_type": "constant", **arguments}  # fmt: skip
    return distill.DistillationTrainer(
        student, TrainingArguments(**options), train_dataset=list(rows) or None, teacher=teacher,
        temperature=3.0, alpha=0.7)  # fmt: skip


def test_compute_loss_is_the_formula_and_its_gradient_autograds(tmp_path):
    teacher = small_bert(seed=1)
    student = distill.make_student(small_bert(), [1, 3])
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    loss, outputs = trainer(student, teacher, tmp_path).compute_loss(
        student, batch() | {"labels": labels}, return_outputs=True
    )
    with torch.no_grad():
        wanted = teacher(**batch()).logits
    expected = 0.7 * distill.kd_loss(outputs.logits, wanted, 3.0) + 0.3 * F.cross_entropy(
        outputs.logits, labels)  # fmt: skip
    torch.testing.assert_close(loss, expected)
    (found,) = torch.autograd.grad(loss, outputs.logits, retain_graph=True)
    hard = (torch.softmax(outputs.logits, -1) - F.one_hot(labels, 2)) / 6
    torch.testing.assert_close(found, 0.7 * distill.kd_gradient(outputs.logits, wanted, 3.0) + 0.3 * hard)


def test_masked_tokens_do_not_count(tmp_path):
    teacher = small_bert(seed=1, kind=BertForTokenClassification)
    student = small_bert(seed=2, kind=BertForTokenClassification)
    labels = torch.randint(0, 2, (6, 9), generator=seeded(3))
    labels[:, 5:] = -100
    inputs = batch() | {"labels": labels}
    loss, outputs = trainer(student, teacher, tmp_path).compute_loss(student, inputs, return_outputs=True)
    loss.backward(inputs=[outputs.logits])
    assert (outputs.logits.grad[:, 5:] == 0).all() and (outputs.logits.grad[:, :5] != 0).all()


def test_accumulated_batches_give_the_step_of_one_large_batch(tmp_path):
    teacher = small_bert(seed=1)
    inputs, labels = batch(rows=8), [0, 1, 1, 0, 1, 0, 0, 1]
    rows = [{"input_ids": inputs["input_ids"][i], "labels": label} for i, label in enumerate(labels)]
    states, before = [], fingerprint(teacher)
    for size, accumulated in ((8, 1), (2, 4)):
        student = small_bert(seed=2, layers=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        trainer(student, teacher, tmp_path, rows, max_steps=1, per_device_train_batch_size=size,
                gradient_accumulation_steps=accumulated).train()  # fmt: skip
        states.append(student.state_dict())
    start = small_bert(seed=2, layers=2).state_dict()
    moved = {name: (value - start[name]).abs().max() for name, value in states[0].items()}
    assert moved["classifier.weight"] > 1e-4
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6)
    assert fingerprint(teacher) == before and not teacher.training


def test_the_trainer_refuses_impossible_settings(tmp_path):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        distill.DistillationTrainer(small_bert(), teacher=small_bert(), temperature=0.0)
