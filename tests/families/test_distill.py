"""Families x functions of course_utils.distill, merge and measure: exact, or refused in one line.

    python -m tests.families.test_distill     prints the table
"""

import copy
import re

import pytest
import torch
import torch.nn.functional as F

from course_utils import distill, measure
from course_utils.merge import methods
from course_utils.prune import depth
from tests.families.models import VOCABULARY, logits, off, tiny, tokens
from tests.families.walking import ALL, EXACT, attempt, equal, print_table


def student(model, folder):
    """The blocks that are kept, copied or shared; the teacher stays as it is."""
    teacher, wanted = copy.deepcopy(model), copy.deepcopy(model)
    depth.remove_blocks(wanted, [0, 2])
    for train in (None, [3]):
        made = distill.make_student(model, [1, 3], train=train)
        assert off(made, logits(wanted)) < EXACT and equal(model, teacher)
        assert model.config.to_dict() == teacher.config.to_dict()
    fresh = distill.from_scratch(made)
    assert [p.shape for p in fresh.parameters()] == [p.shape for p in made.parameters()]
    assert not equal(fresh, made)


def heal(model, folder):
    """The first loss is the KL divergence of the two; the loss falls; the teacher stays as it is."""
    teacher, learner = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.mul_(0.9)
    student, target = (F.log_softmax(logits(each, tokens()[:1]), dim=-1) for each in (learner, model))
    wanted = F.kl_div(student, target, log_target=True, reduction="none").sum(-1).mean()
    run = distill.heal(learner, model, tokens()[:1], steps=8, lr=1e-4)
    assert run.losses[0] == pytest.approx(wanted.item(), rel=1e-3) and run.losses[-1] < run.losses[0]
    assert equal(model, teacher) and all(p.grad is None for p in learner.parameters())


def merged(model, folder):
    """Half way between two models, and a task vector put back."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01 * torch.sign(parameter))
    base, tuned = model.state_dict(), other.state_dict()
    half = copy.deepcopy(model)
    half.load_state_dict(methods.lerp(base, tuned, 0.5))
    for a, b, c in zip(model.parameters(), other.parameters(), half.parameters(), strict=True):
        torch.testing.assert_close(c, (a + b) / 2)
    half.load_state_dict(methods.task_arithmetic(base, [methods.task_vector(tuned, base)]))
    assert off(half, logits(other)) < EXACT


def perplexity(model, folder):
    rows = tokens().reshape(-1, 12)
    nll = F.cross_entropy(logits(model, rows)[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
    assert measure.perplexity(model, rows.flatten(), window=12).nll == pytest.approx(nll.item(), rel=1e-4)


FUNCTIONS = [student, heal, merged, perplexity]
REFUSED = {("student", "gpt2"): "weights are in Conv1D layers",
           ("student", "rwkv"): "makes its blocks by a rule"}


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_exact_or_refused(function, family):
    reason = attempt(function, family, None)
    expected = REFUSED.get((function.__name__, family))
    assert (reason is None) == (expected is None), reason
    assert expected is None or re.search(expected, reason)


def short(model):
    return model.half()


def brain(model):
    return model.bfloat16()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
@pytest.mark.parametrize("change, words, temperature, match", [
    (short, 0, 1.0, "float16 cannot be trained with AdamW: call student.float"),
    (brain, 0, 1.0, "bfloat16 cannot be trained with AdamW"),
    (None, 2, 1.0, "both need the same rows and the same classes"),
    (None, 0, 0.0, "the temperature must be a finite number above 0, not 0.0")])
def test_what_cannot_be_healed_stays_as_it_is(family, change, words, temperature, match):
    learner = tiny(family).train()
    learner = change(learner) if change else learner
    before, teacher = copy.deepcopy(learner), tiny(family)
    teacher.resize_token_embeddings(VOCABULARY + words, mean_resizing=False)
    with pytest.raises(ValueError, match=match) as error:
        distill.heal(learner, teacher, tokens(), steps=2, temperature=temperature)
    assert equal(learner, before) and learner.training and "\n" not in str(error.value)


def test_a_loss_that_is_no_number_stops_before_the_step():
    learner, teacher = tiny("llama"), tiny("llama")
    with torch.no_grad():
        teacher.lm_head.weight[0] = float("nan")
    with pytest.raises(RuntimeError, match="the loss became nan at step 1"):
        distill.heal(learner, teacher, tokens(), steps=2)
    assert equal(learner, tiny("llama"))


if __name__ == "__main__":
    import sys

    print_table(FUNCTIONS, sys.argv[1:])
