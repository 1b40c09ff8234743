"""Exercises of the lesson on knowledge distillation."""

import torch
import torch.nn.functional as F

from course_utils import distill, models
from course_utils.checking import Case, Exercise, Mistake, Prediction
from course_utils.checking.cases import gradients, randn

# --- kd_loss ----------------------------------------------------------------------------------------------


def _call_kd(function, student, teacher, temperature):
    """The loss, and the gradients that reach both models."""
    student, teacher = student.detach().requires_grad_(), teacher.detach().requires_grad_()
    return gradients(function(student, teacher, temperature), student=student, teacher=teacher)


def _kd_cases():
    return [
        Case(randn(6, 2), randn(6, 2, seed=1), 2.0, label="a classifier with two answers"),
        Case(3 * randn(4, 5), 3 * randn(4, 5, seed=1), 1.0, label="temperature 1"),
        Case(randn(2, 3, 7), randn(2, 3, 7, seed=1), 4.0, label="as in a language model: three dimensions"),
        Case(50 * randn(3, 4), 50 * randn(3, 4, seed=1), 0.5, label="logits so large that exp overflows"),
        Case(randn(5, 3).t(), randn(5, 3, seed=1).t(), 3.0, label="transposed matrices"),
        Case(200 + randn(3, 4), randn(3, 4, seed=1), 2.0, label="logits near 200"),
        Case(randn(2, 9).double(), randn(2, 9, seed=1).double(), 20.0, label="float64, a high temperature"),
        Case(randn(4, 3), randn(4, 3), 2.0, label="a perfect student"),
        Case(randn(8, 2), randn(8, 1, seed=1), 2.0, label="one class against two", raises=ValueError),
        Case(randn(4, 3), randn(1, 3, seed=1), 2.0, label="one row against four", raises=ValueError),
        Case(randn(2, 3), randn(3, 2, seed=1), 2.0, label="as many numbers in another shape",
             raises=ValueError),
        Case(randn(2, 2, 3), randn(2, 3, seed=1), 2.0, label="a dimension less", raises=ValueError),
    ]


def _kl(student, teacher, temperature, factor=None, detach=True, average="rows", towards="teacher"):
    """kd_loss with one thing changed."""
    distill.check_logits(student, teacher, temperature)
    teacher = teacher.detach() if detach else teacher
    s, t = F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)
    each = (t.exp() * (t - s)).sum(-1) if towards == "teacher" else (s.exp() * (s - t)).sum(-1)
    if average == "rows":
        loss = each.mean()
    elif average == "batch":
        loss = each.sum() / len(each)
    else:
        loss = each.sum() if average == "sum" else each.mean() / student.shape[-1]
    return loss * (temperature**2 if factor is None else factor(temperature))


def _logits_not_softened(student, teacher, temperature):
    s, t = F.log_softmax(student, -1), F.log_softmax(teacher.detach(), -1)
    return temperature**2 * (t.exp() * (t - s)).sum(-1).mean()


def _teacher_not_softened(student, teacher, temperature):
    s, t = F.log_softmax(student / temperature, -1), F.log_softmax(teacher.detach(), -1)
    return temperature**2 * (t.exp() * (t - s)).sum(-1).mean()


def _unchecked(student, teacher, temperature):
    s, t = F.log_softmax(student / temperature, -1), F.log_softmax(teacher.detach() / temperature, -1)
    return temperature**2 * (t.exp() * (t - s)).sum(-1).mean()


def _squared_error(student, teacher, temperature):
    return F.mse_loss(student, teacher.detach())


def _soft_cross_entropy(student, teacher, temperature):
    s, t = F.log_softmax(student / temperature, -1), F.softmax(teacher.detach() / temperature, -1)
    return -(temperature**2) * (t * s).sum(-1).mean()


def _first_dimension(student, teacher, temperature):
    s, t = F.log_softmax(student / temperature, 0), F.log_softmax(teacher.detach() / temperature, 0)
    return temperature**2 * (t.exp() * (t - s)).sum(0).mean()


KD_LOSS = Exercise(
    reference=distill.kd_loss,
    call=_call_kd,
    cases=_kd_cases,
    rtol=1e-4,
    atol=1e-6,
    mistakes=[
        Mistake("the factor T^2 is missing: the gradient shrinks as the temperature rises.",
                lambda s, t, temperature: _kl(s, t, temperature, factor=lambda _: 1.0)),
        Mistake("the factor is T where it should be T^2.",
                lambda s, t, temperature: _kl(s, t, temperature, factor=lambda x: x)),
        Mistake("the gradient also reaches the teacher. It must not change: take its logits detached.",
                lambda s, t, temperature: _kl(s, t, temperature, detach=False)),
        Mistake("KL(student || teacher): the two are exchanged. The teacher's probabilities weigh the "
                "differences.",
                lambda s, t, temperature: _kl(s, t, temperature, towards="student")),
        Mistake("divided by the number of classes too (the default of F.kl_div does that). Sum over the "
                "classes, then take the mean over the rest.",
                lambda s, t, temperature: _kl(s, t, temperature, average="all")),
        Mistake("summed over the rows. Take their mean.",
                lambda s, t, temperature: _kl(s, t, temperature, average="sum")),
        Mistake("divided by the size of the batch alone. With [batch, length, classes] every position "
                "counts as a row.",
                lambda s, t, temperature: _kl(s, t, temperature, average="batch")),
        Mistake("the temperature softens neither model: divide the logits by it before the softmax.",
                _logits_not_softened),
        Mistake("only the student's logits were divided by the temperature. The teacher's need it too.",
                _teacher_not_softened),
        Mistake("shapes that differ were let through: torch stretches [8, 1] to [8, 2] without a word.",
                _unchecked),
        Mistake("this is the squared error of the logits. The loss compares probabilities.",
                _squared_error),
        Mistake("this is the cross-entropy with the teacher's answers. It has the right gradient, but it is "
                "not 0 for a perfect student: subtract the teacher's own entropy.", _soft_cross_entropy),
        Mistake("the softmax runs over the first dimension. Classes are the last one.", _first_dimension),
    ],
    hint="Write KL(teacher || student) as a sum over the classes. Whose probabilities weigh the differences?",
)  # fmt: skip


# --- kd_gradient ------------------------------------------------------------------------------------------


def _gradient_cases():
    return [
        Case(randn(6, 2), randn(6, 2, seed=1), 2.0, label="two classes"),
        Case(randn(4, 5), randn(4, 5, seed=1), 1.0, label="temperature 1"),
        Case(randn(3, 9), randn(3, 9, seed=1), 10.0, label="a high temperature"),
        Case(randn(5, 1), randn(5, 1, seed=1), 2.0, label="a single class"),
        Case(100 + randn(2, 3), 50 * randn(2, 3, seed=1), 0.5, label="large logits"),
        Case(randn(3, 7).t(), randn(3, 7, seed=1).t(), 3.0, label="transposed matrices"),
        Case(randn(1, 4).double(), randn(1, 4, seed=1).double(), 1.5, label="one row, float64"),
        Case(randn(6, 2), randn(2, 6, seed=1), 2.0, label="as many numbers in another shape",
             raises=ValueError),
        Case(randn(4, 3), randn(4, 1, seed=1), 2.0, label="one class against three", raises=ValueError),
        Case(randn(5, 3), randn(1, 3, seed=1), 2.0, label="shapes that differ", raises=ValueError),
    ]


def _gradient(student, teacher, temperature, power=1, rows=True, sign=1, classes=False):
    apart = torch.softmax(student / temperature, -1) - torch.softmax(teacher / temperature, -1)
    result = sign * temperature**power * apart
    result = result / len(student) if rows else result
    return result / student.shape[-1] if classes else result


KD_GRADIENT = Exercise(
    reference=distill.kd_gradient,
    cases=_gradient_cases,
    rtol=1e-4,
    atol=1e-7,
    mistakes=[
        Mistake("without T^2 in the loss there would be 1 / T here. T^2 times that is T.",
                lambda s, t, temperature: _gradient(s, t, temperature, power=-1)),
        Mistake("the temperature before the bracket is missing: T^2 from the loss, 1 / T from the softmax.",
                lambda s, t, temperature: _gradient(s, t, temperature, power=0)),
        Mistake("T^2 is there, but the chain rule through student_logits / T gives another 1 / T.",
                lambda s, t, temperature: _gradient(s, t, temperature, power=2)),
        Mistake("the loss is a mean over the rows: divide by their number.",
                lambda s, t, temperature: _gradient(s, t, temperature, rows=False)),
        Mistake("the sign is turned around: the loss falls when the student moves towards the teacher.",
                lambda s, t, temperature: _gradient(s, t, temperature, sign=-1)),
        Mistake("the loss is a mean over the rows, not over the classes.",
                lambda s, t, temperature: _gradient(s, t, temperature, classes=True)),
    ],
    hint="What is the gradient of a cross-entropy for its logits? Which factors of T come along?",
)  # fmt: skip


# --- layer_map --------------------------------------------------------------------------------------------


def _map_cases():
    return [
        Case(6, 3, label="half of the layers"),
        Case(6, 2, label="a third of them"),
        Case(12, 4, label="BERT-base to four layers"),
        Case(5, 2, label="no whole number of layers a stretch"),
        Case(7, 7, label="as many layers as the teacher"),
        Case(8, 1, label="a single layer"),
        Case(24, 7, label="24 layers to 7"),
        Case(1, 1, label="a teacher of one layer"),
        Case(6, 0, label="no layers", raises=ValueError),
        Case(6, -2, label="fewer layers than none", raises=ValueError),
        Case(0, 0, label="a teacher without layers", raises=ValueError),
        Case(3, 4, label="more layers than the teacher", raises=ValueError),
    ]


def _draw_layers(numbers):
    teachers = [numbers.randint(2, 60) for _ in range(5)]
    return [Case(teacher, numbers.randint(1, teacher)) for teacher in teachers]


LAYER_MAP = Exercise(
    reference=distill.layer_map,
    cases=_map_cases,
    draw=_draw_layers,
    exact_dtype=True,
    mistakes=[
        Mistake("these are the first layers of each stretch. Take the last: it has seen the whole stretch.",
                lambda n, m: [i * n // m for i in range(m)]),
        Mistake("these are the teacher's first layers. Spread them over the whole teacher.",
                lambda n, m: list(range(m))),
        Mistake("these are the teacher's last layers. Spread them over the whole teacher.",
                lambda n, m: list(range(n - m, n))),
        Mistake("counted from 1. Layers count from 0 here.",
                lambda n, m: [(i + 1) * n // m for i in range(m)]),
        Mistake("the width of a stretch was rounded before it was multiplied: the last layer is not reached.",
                lambda n, m: [(i + 1) * (n // m) - 1 for i in range(m)]),
        Mistake("a student of no layers, or of more than the teacher has, must raise ValueError.",
                lambda n, m: [(i + 1) * n // m - 1 for i in range(m)]),
    ],
    hint="With 6 and 3 a stretch has two layers. Where do stretches 0, 1 and 2 end? And with 5 and 2?",
)  # fmt: skip


# --- predictions ------------------------------------------------------------------------------------------


def _saved(kept):
    """Percent of MiniLM's parameters that a student with so many of its layers does without."""
    model, _ = models.load_encoder(num_labels=2)
    blocks = model.bert.encoder.layer
    gone = sum(p.numel() for block in blocks[kept:] for p in block.parameters())
    return 100 * gone / sum(p.numel() for p in model.parameters())


PREDICT_SAVED = Prediction(
    id="predict_saved",
    answer=lambda: _saved(3),
    rtol=0.1,
    unit="percent",
    mistakes=[
        (50, "half of the layers go, but the layers are not the whole model: the embedding table stays."),
        (40, "40 is DistilBERT's figure. BERT-base has wider layers beside a table of the same length."),
        (0.234, "the question asks for percent, from 0 to 100."),
        (77, "that is what stays."),
    ],
    hint="About 1.77 million parameters a layer; the embedding table has 30,522 rows of 384.",
)

EXERCISES = [PREDICT_SAVED, KD_LOSS, KD_GRADIENT, LAYER_MAP]
