"""Weighted sums of losses, and training with them."""

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
)

from course_utils import distill, finetune, models
from tests.unit.distill.common import batch, fingerprint, small_bert


def test_an_objective_adds_up_its_parts_and_never_touches_the_teacher():
    teacher = small_bert()
    before, layers = fingerprint(teacher), [1, 3]
    student = distill.make_student(small_bert(seed=1), layers).train(False)
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    parts = {"hard": 0.5, "soft": 2.0, "hidden": 3.0, "attention": 0.7}
    single = {name: distill.Objective(teacher, **{name: 1.0}, layers=layers)(student, batch(), labels)
              for name in parts}  # fmt: skip
    assert all(value > 0 for value in single.values())
    whole = distill.Objective(teacher, **parts, layers=layers)(student, batch(), labels)
    torch.testing.assert_close(whole, sum(weight * single[name] for name, weight in parts.items()))
    torch.testing.assert_close(single["hard"], F.cross_entropy(student(**batch()).logits, labels))
    whole.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(block.attention.self.query.weight.grad.abs().sum() > 0 for block in student.bert.encoder.layer)
    assert fingerprint(teacher) == before


def test_the_hidden_states_of_a_student_that_is_the_teacher_agree():
    teacher = small_bert()
    student = distill.make_student(teacher, range(4))
    objective = distill.Objective(teacher, hidden=1.0, attention=1.0, soft=1.0, layers=range(4))
    assert objective(student, batch(), torch.zeros(6, dtype=torch.long)).item() == pytest.approx(0, abs=1e-6)


def test_stages_go_from_the_bottom_up_and_end_with_the_objective():
    objective = distill.Objective(small_bert(), soft=1.0, hard=0.5)
    first, second, last = distill.stages(objective, [1, 3])
    assert (first.compare, second.compare) == ([0], [1]) and last is objective
    assert first.hidden == 1.0 and first.soft == first.hard == 0.0
    student = distill.make_student(objective.teacher, [1, 3])
    first(student, batch(), torch.zeros(6, dtype=torch.long)).backward()
    lower, upper = student.bert.encoder.layer
    assert lower.output.dense.weight.grad is not None and upper.output.dense.weight.grad is None


def test_training_with_an_objective_brings_the_student_closer():
    tokenizer, teacher = models.load_encoder()[1], small_bert(initializer_range=0.3)
    before = fingerprint(teacher)
    student = distill.make_student(teacher, [1, 3])
    words = "the film was a plot of actors and scenes in two long hours".split()
    examples = [(" ".join(words[i % 7 : i % 7 + 5]), i % 2) for i in range(32)]
    objective = distill.Objective(teacher, soft=1.0, temperature=1.0)

    def apart():
        logits = [finetune.predict(m, tokenizer, [t for t, _ in examples]) for m in (student, teacher)]
        return distill.kd_loss(*logits, 1.0).item()

    start = apart()
    run = finetune.train(student, tokenizer, examples, steps=120, batch_size=8, lr=3e-3, loss=objective)
    assert apart() < 0.5 * start
    assert run.steps == 120 and fingerprint(teacher) == before


def test_a_narrower_student_trains_its_projection_along():
    tokenizer, teacher = models.load_encoder()[1], small_bert(initializer_range=0.3)
    torch.manual_seed(1)
    student = BertForSequenceClassification(BertConfig(
        vocab_size=30522, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_labels=2,
        intermediate_size=32, max_position_embeddings=64)).eval()  # fmt: skip
    examples = [(f"the film was {word}", i % 2) for i, word in enumerate("good bad fine dull".split())]
    with pytest.raises(ValueError, match=r"nn.Linear\(16, 32\)"):
        finetune.train(student, tokenizer, examples, steps=1,
                       loss=distill.Objective(teacher, hidden=1.0, layers=[1, 3]))  # fmt: skip
    student.projection = torch.nn.Linear(16, 32)
    before = student.projection.weight.detach().clone()
    objective = distill.Objective(teacher, hidden=1.0, layers=[1, 3], projection=student.projection)
    run = finetune.train(student, tokenizer, examples, steps=40, batch_size=4, lr=1e-2, loss=objective)
    assert not torch.equal(student.projection.weight, before)
    assert run.losses[-1] < 0.7 * run.losses[0]


def test_objectives_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="weight above 0"):
        distill.Objective(small_bert())
    with pytest.raises(ValueError, match="layer_map"):
        distill.Objective(small_bert(), hidden=1.0)
