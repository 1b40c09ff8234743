"""Lesson distillation: wrong answers are rejected for their reason, right ones written otherwise pass.

A shared test walks these dictionaries; see tests/exercises/common.py for what it asserts.
"""

import torch
import torch.nn.functional as F

from course_utils import distill

# --- kd_loss ----------------------------------------------------------------------------------------------


def _with_kl_div(student, teacher, temperature):
    distill.check_logits(student, teacher, temperature)
    log_student = F.log_softmax(student / temperature, dim=-1).flatten(0, -2)
    log_teacher = F.log_softmax(teacher.detach() / temperature, dim=-1).flatten(0, -2)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def _entropies(student, teacher, temperature):
    """Cross-entropy with the teacher's answers, less the teacher's entropy."""
    if student.shape != teacher.shape:
        raise ValueError("shapes")
    with torch.no_grad():
        target = torch.softmax(teacher / temperature, dim=-1)
        own = -torch.xlogy(target, target).sum(-1)
    crossed = -(target * torch.log_softmax(student / temperature, dim=-1)).sum(-1)
    return (crossed - own).mean() * temperature * temperature


def _kl_div_defaults(student, teacher, temperature):
    log_student = F.log_softmax(student / temperature, dim=-1)
    target = F.softmax(teacher.detach() / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_student, target, reduction="mean")


def _no_square(student, teacher, temperature):
    return _with_kl_div(student, teacher, temperature) / temperature**2


def _not_detached(student, teacher, temperature):
    s, t = (F.log_softmax(x / temperature, dim=-1) for x in (student, teacher))
    return temperature**2 * (t.exp() * (t - s)).sum(-1).mean()


def _exchanged(student, teacher, temperature):
    t, s = (F.log_softmax(x / temperature, dim=-1) for x in (teacher.detach(), student))
    return temperature**2 * (s.exp() * (s - t)).sum(-1).mean()


def _overflows(student, teacher, temperature):
    """Softmax by hand, without subtracting the largest logit."""
    s, t = (x / temperature for x in (student, teacher.detach()))
    p, q = (x.exp() / x.exp().sum(-1, keepdim=True) for x in (t, s))
    return temperature**2 * (p * (p / q).log()).sum(-1).mean()


# --- kd_gradient ------------------------------------------------------------------------------------------


def _by_autograd(student_logits, teacher_logits, temperature):
    s = student_logits.clone().requires_grad_()
    _with_kl_div(s, teacher_logits, temperature).backward()
    return s.grad


def _by_exponents(student_logits, teacher_logits, temperature):
    distill.check_logits(student_logits, teacher_logits)
    s, t = (torch.exp(x / temperature - torch.logsumexp(x / temperature, 1, True))
            for x in (student_logits, teacher_logits))  # fmt: skip
    return (s - t).mul(temperature / student_logits.shape[0])


def _inverse_temperature(s, t, temperature):
    return (torch.softmax(s / temperature, 1) - torch.softmax(t / temperature, 1)) / temperature / len(s)


def _summed(s, t, temperature):
    return temperature * (torch.softmax(s / temperature, 1) - torch.softmax(t / temperature, 1))


def _turned_around(s, t, temperature):
    return temperature * (torch.softmax(t / temperature, 1) - torch.softmax(s / temperature, 1)) / len(s)


def _no_temperature(s, t, temperature):
    return (torch.softmax(s / temperature, 1) - torch.softmax(t / temperature, 1)) / len(s)


def _naive(s, t, temperature):
    """A softmax without the largest logit taken out: exp overflows."""
    p, q = ((x / temperature).exp() / (x / temperature).exp().sum(1, keepdim=True) for x in (s, t))
    return temperature * (p - q) / len(s)


# --- layer_map --------------------------------------------------------------------------------------------


def _loop(teacher_layers, student_layers):
    if student_layers < 1 or student_layers > teacher_layers:
        raise ValueError("too few or too many layers")
    found = []
    for stretch in range(1, student_layers + 1):
        end = stretch * teacher_layers
        found.append((end - end % student_layers) // student_layers - 1)
    return found


def _from_a_tensor(teacher_layers, student_layers):
    if not 0 < student_layers <= teacher_layers:
        raise ValueError(f"{student_layers} layers")
    ends = torch.arange(1, student_layers + 1) * teacher_layers
    return (torch.div(ends, student_layers, rounding_mode="floor") - 1).tolist()


def _evenly_from_zero(teacher_layers, student_layers):
    if not 0 < student_layers <= teacher_layers:
        raise ValueError
    return [layer * teacher_layers // student_layers for layer in range(student_layers)]


def _first(teacher_layers, student_layers):
    if not 0 < student_layers <= teacher_layers:
        raise ValueError
    return list(range(student_layers))


def _unchecked(teacher_layers, student_layers):
    return [(layer + 1) * teacher_layers // student_layers - 1 for layer in range(student_layers)]


def _counted_from_one(teacher_layers, student_layers):
    return [layer + 1 for layer in _loop(teacher_layers, student_layers)]


def _checked_kl(s, t, temperature, shape=torch.Tensor.size):
    if shape(s) != shape(t):
        raise ValueError("shapes")
    return _no_look(s, t, temperature)


def _no_look(s, t, temperature):
    s, t = torch.log_softmax(s / temperature, -1), torch.log_softmax(t.detach() / temperature, -1)
    return temperature**2 * (t.exp() * (t - s)).sum(-1).mean()


RIGHT = {
    "kd_loss": [_with_kl_div, _entropies],
    "kd_gradient": [_by_autograd, _by_exponents],
    "layer_map": [_loop, _from_a_tensor],
    "predict_saved": [23.4, 24],
}

WRONG = {
    "kd_loss": [
        (_kl_div_defaults, "number of classes"),
        (_no_square, r"T\^2 is missing"),
        (_not_detached, "reaches the teacher"),
        (_exchanged, "exchanged"),
        (_overflows, "nan|inf|exp overflows"),
        (_no_look, "let through"),
        (lambda s, t, temperature: _checked_kl(s.float(), t.float(), temperature, torch.numel), "ValueError"),
        (lambda s, t, temperature: _checked_kl(s, t.detach(), temperature).detach(), "gradient of student"),
    ],
    "kd_gradient": [
        (_inverse_temperature, r"1 / T here"),
        (_summed, "divide by their number"),
        (_turned_around, "turned around"),
        (_no_temperature, "before the bracket"),
        (lambda s, t, temperature: _summed(s, t, temperature) / s.numel(), "not over the classes"),
        (lambda s, t, temperature: _naive(s, t, temperature), "large logits"),
    ],
    "layer_map": [
        (_evenly_from_zero, "first layers of each stretch"),
        (_first, "teacher's first layers"),
        (_unchecked, "must raise ValueError"),
        (_counted_from_one, "counted from 1"),
        (lambda n, m: [float(layer) for layer in _loop(n, m)], r"\(float\)"),
        (lambda n, m: _unchecked(n, m) if m else _loop(n, m), "ValueError"),
    ],
    "predict_saved": [(50, "embedding table"), (40, "DistilBERT"), (0.234, "percent"), (77, "what stays")],
}
