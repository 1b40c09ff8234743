"""A student is a shorter teacher."""

import pytest
import torch
from transformers import (
    BertForSequenceClassification,
)

from course_utils import distill
from tests.unit.distill.common import batch, fingerprint, seeded, small_bert, small_llama


def test_layer_map_is_uniform_and_ends_with_the_last():
    assert distill.layer_map(6, 3) == [1, 3, 5] and distill.layer_map(6, 2) == [2, 5]
    assert distill.layer_map(12, 4) == [2, 5, 8, 11] and distill.layer_map(5, 2) == [1, 4]
    for teacher in range(1, 13):
        assert distill.layer_map(teacher, teacher) == list(range(teacher))
        for student in range(1, teacher + 1):
            layers = distill.layer_map(teacher, student)
            assert layers == sorted(set(layers)) and len(layers) == student and layers[-1] == teacher - 1
    for student in (0, 7):
        with pytest.raises(ValueError, match="from 1 to 6"):
            distill.layer_map(6, student)


def test_a_student_is_a_shorter_copy(tmp_path):
    teacher = small_bert()
    before = fingerprint(teacher)
    student = distill.make_student(teacher, [1, 3])
    assert student.config.num_hidden_layers == 2 and teacher.config.num_hidden_layers == 4
    for mine, theirs in zip(student.bert.encoder.layer, (1, 3), strict=True):
        for a, b in zip(mine.parameters(), teacher.bert.encoder.layer[theirs].parameters(), strict=True):
            assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert fingerprint(teacher) == before
    same = distill.make_student(teacher, range(4))
    with torch.no_grad():
        assert torch.equal(same(**batch()).logits, teacher(**batch()).logits)
    distill.make_student(teacher, [0]).save_pretrained(tmp_path)
    assert len(BertForSequenceClassification.from_pretrained(tmp_path).bert.encoder.layer) == 1
    for wrong in ([], [3, 1], [1, 1], [4], [-1, 2]):
        with pytest.raises(ValueError, match="rise from 0 to 3"):
            distill.make_student(teacher, wrong)


def test_a_student_that_shares_memory_trains_its_own_blocks_only():
    teacher = small_llama()
    before = fingerprint(teacher)
    student = distill.make_student(teacher, [0, 1, 3], train=[1])
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith("model.layers.1.") for name in trained)
    assert student.lm_head.weight is student.model.embed_tokens.weight
    assert student.lm_head.weight.data_ptr() == teacher.lm_head.weight.data_ptr()
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert [block.self_attn.layer_idx for block in student.model.layers] == [0, 1, 2]
    windows = torch.randint(0, 101, (4, 12), generator=seeded())
    distill.heal(student, teacher, windows, steps=3, lr=1e-2)
    assert fingerprint(teacher) == before
    with pytest.raises(ValueError, match=r"\[2\] that are not kept"):
        distill.make_student(teacher, [0, 1, 3], train=[2])


def test_from_scratch_has_the_shape_and_none_of_the_weights():
    student = distill.make_student(small_bert(), [1, 3])
    other = distill.from_scratch(student, seed=1)
    assert [p.shape for p in other.parameters()] == [p.shape for p in student.parameters()]
    assert not torch.equal(other.classifier.weight, student.classifier.weight)
    assert fingerprint(other) == fingerprint(distill.from_scratch(student, seed=1))
    assert fingerprint(other) != fingerprint(distill.from_scratch(student, seed=2))
