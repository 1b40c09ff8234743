"""Lesson merging: wrong answers are rejected for their reason, right ones written otherwise pass."""

import math

import torch
import torch.nn.functional as F

# --- slerp --------------------------------------------------------------------------------------------------


def _angle(a, b):
    cosine = F.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0)
    return math.acos(max(-1.0, min(1.0, cosine.item())))


def _is_linear(a, b, parallel):
    return not a.any() or not b.any() or abs(math.cos(_angle(a, b))) >= parallel


def _mix(a, b, t, angle):
    mixed = math.sin((1 - t) * angle) * a.double() + math.sin(t * angle) * b.double()
    return (mixed / math.sin(angle)).to(a.dtype)


def _same_shape(a, b):
    if a.shape != b.shape:
        raise ValueError("not of one shape")


def _slerp_with_math(a, b, t, parallel=0.9995):
    """Right: plain floats and float64."""
    _same_shape(a, b)
    if _is_linear(a, b, parallel):
        return ((1 - t) * a.double() + t * b.double()).to(a.dtype)
    return _mix(a, b, t, _angle(a, b)).to(a.dtype)


def _slerp_by_two_directions(a, b, t, parallel=0.9995):
    """Right: turn within the plane of the two arrows (Gram-Schmidt), and put the lengths in afterwards."""
    _same_shape(a, b)
    x, y = a.reshape(-1).double(), b.reshape(-1).double()
    long_x, long_y = x.norm(), y.norm()
    if long_x == 0 or long_y == 0 or abs(x @ y) >= parallel * long_x * long_y:
        return torch.lerp(x, y, t).view(a.shape).to(a.dtype)
    side = y / long_y - (x @ y) / long_y / long_x**2 * x
    sine = side.norm()
    angle = torch.atan2(sine, (x @ y) / long_x / long_y)
    share = torch.sin(t * angle) / sine
    start = torch.cos(t * angle) - share * torch.cos(angle)
    return (start * x + share * y).view(a.shape).to(a.dtype)


def _lerp(a, b, t, parallel=0.9995):
    return ((1 - t) * a.float() + t * b.float()).to(a.dtype)


def _swapped(a, b, t, parallel=0.9995):
    return _slerp_with_math(b, a, t, parallel)


def _articles(a, b, t, parallel=0.9995):
    omega = torch.acos(torch.dot(a / torch.norm(a), b / torch.norm(b)))
    so = torch.sin(omega)
    return torch.sin((1.0 - t) * omega) / so * a + torch.sin(t * omega) / so * b


def _not_normalised(a, b, t, parallel=0.9995):
    _same_shape(a, b)
    dot = (a.float() * b.float()).sum().clamp(-1, 1)
    if not a.any() or not b.any() or dot.abs() >= parallel:
        return _lerp(a, b, t)
    return _mix(a, b, t, dot.acos().item()).to(a.dtype)


def _unit_length(a, b, t, parallel=0.9995):
    _same_shape(a, b)
    x, y = a.float() / a.float().norm(), b.float() / b.float().norm()
    return _slerp_with_math(x, y, t, parallel).to(a.dtype)


def _by_rows(a, b, t, parallel=0.9995):
    _same_shape(a, b)
    if a.ndim < 2:
        return _slerp_with_math(a, b, t, parallel)
    return torch.stack([_by_rows(x, y, t, parallel) for x, y in zip(a, b, strict=True)])


def _no_fallback(a, b, t, parallel=0.9995):
    _same_shape(a, b)
    x, y = a.float().flatten(), b.float().flatten()
    angle = torch.acos(((x / x.norm()) @ (y / y.norm())).clamp(-1, 1))
    mixed = (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)
    return mixed.reshape(a.shape).to(a.dtype)


def _not_for_opposite(a, b, t, parallel=0.9995):
    _same_shape(a, b)
    if not a.any() or not b.any() or math.cos(_angle(a, b)) >= parallel:
        return _lerp(a, b, t)
    return _no_fallback(a, b, t)


def _zero_forgotten(a, b, t, parallel=0.9995):
    return _slerp_with_math(a, b, t, parallel) if a.any() and b.any() else _no_fallback(a, b, t)


def _fixed_threshold(a, b, t, parallel=0.9995):
    return _slerp_with_math(a, b, t)


def _shapes_let_through(a, b, t, parallel=0.9995):
    return _slerp_with_math(a.flatten(), b.flatten(), t, parallel).view(a.shape)


def _own_dtype(a, b, t, parallel=0.9995):
    if a.dtype not in (torch.bfloat16, torch.float16):
        return _slerp_with_math(a, b, t, parallel)
    x, y = a.flatten(), b.flatten()
    angle = torch.acos(torch.dot(x / x.norm(), y / y.norm()).clamp(-1, 1))
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


# --- task_vector --------------------------------------------------------------------------------------------


def _checked(finetuned, base):
    if not isinstance(finetuned, dict) or not isinstance(base, dict):
        raise TypeError("no state dict")
    if set(finetuned) != set(base):
        raise ValueError("other names")
    for name in base:
        if finetuned[name].shape != base[name].shape:
            raise ValueError(f"{name}: other shape")


def _task_in_a_loop(finetuned, base):
    _checked(finetuned, base)
    task = {}
    for name in base:
        if base[name].dtype.is_floating_point:
            task[name] = finetuned[name].to(torch.float32).sub(base[name].to(torch.float32))
    return task


def _task_in_double(finetuned, base):
    _checked(finetuned, base)
    apart = {name: finetuned[name].double() - old.double() for name, old in base.items()}
    return {name: apart[name].to(torch.float32) for name in base if base[name].is_floating_point()}


def _task_reversed(finetuned, base):
    return _task_in_a_loop(base, finetuned)


def _task_in_place(finetuned, base):
    _checked(finetuned, base)
    return {name: finetuned[name].sub_(base[name]).float() for name in base if base[name].is_floating_point()}


def _task_with_buffers(finetuned, base):
    _checked(finetuned, base)
    return {name: finetuned[name].float() - base[name].float() for name in base}


def _task_rounded(finetuned, base):
    _checked(finetuned, base)
    return {name: finetuned[name] - base[name] for name in base if base[name].is_floating_point()}


def _task_by_place(finetuned, base):
    task = {}
    for name, new in zip(base, finetuned.values(), strict=True):
        if base[name].is_floating_point():
            task[name] = new.float() - base[name].float()
    return task


def _task_of_common_names(finetuned, base):
    if not isinstance(finetuned, dict) or not isinstance(base, dict):
        raise TypeError("no state dict")
    common = [name for name in base if name in finetuned and base[name].is_floating_point()]
    return {name: finetuned[name].float() - base[name].float() for name in common}


def _task_broadcast(finetuned, base):
    assert_names = set(finetuned) ^ set(base)
    if assert_names:
        raise ValueError(assert_names)
    return _task_of_common_names(finetuned, base)


# --- elect_sign ---------------------------------------------------------------------------------------------


def _sign_by_sides(deltas):
    deltas = deltas.to(torch.float64)
    up, down = deltas.clamp(min=0).sum(0), (-deltas).clamp(min=0).sum(0)
    return (up > down).float() - (down > up).float()


def _sign_by_mean(deltas):
    mean = torch.einsum("t...->...", deltas.float()) / deltas.shape[0]
    return torch.where(mean > 0, 1.0, torch.where(mean < 0, -1.0, 0.0))


def _sign_by_count(deltas):
    votes = (deltas > 0).sum(0) - (deltas < 0).sum(0)
    return votes.sign().float()


def _sign_of_largest(deltas):
    top, bottom = deltas.float().amax(0), deltas.float().amin(0)
    return torch.sign(torch.where(top >= -bottom, top, bottom))


WRONG = {
    "predict_length": [
        (1, "short cut"),
        (0.5, "longer than one arrow"),
        (1.414, "half of the sum"),
        (2, "not in one line"),
        (0.9, "too high"),
    ],
    "predict_ties": [
        (0.1, "plain mean"),
        (0.267, "still counted in the divisor"),
        (0.3, "sum of all three"),
        (0.8, "takes their mean"),
        (-0.5, "has lost"),
    ],
    "slerp": [
        (_lerp, "LERP everywhere"),
        (_swapped, "changed places"),
        (_articles, "vectors only"),
        (_not_normalised, "not normalised"),
        (_unit_length, "mixes the normalised"),
        (_by_rows, "one arrow"),
        (_no_fallback, "NaN, or noise"),
        (_not_for_opposite, "opposite ones"),
        (_zero_forgotten, "no direction"),
        (_fixed_threshold, "Use the argument"),
        (_shapes_let_through, "mean nothing"),
        (_own_dtype, "two to three digits"),
        (lambda a, b, t, parallel=0.9995: None, "is a `return` missing"),
        (lambda a, b, t, parallel=0.9995: _slerp_with_math(a, b, t, parallel).float(), "float32"),
        (lambda a, b, t, parallel=0.9995: _lerp(a, b, t) if a.norm() < 1e-6
         else _slerp_with_math(a, b, t, parallel), "an arrow all the same"),
        (lambda a, b, t, parallel=0.9995: a if t == 0 else _slerp_with_math(a, b, t, parallel), "memory"),
    ],
    "task_vector": [
        (_task_reversed, "base - finetuned"),
        (_task_in_place, "in place"),
        (_task_with_buffers, "integer buffers"),
        (_task_rounded, "rounded to the dtype"),
        (_task_by_place, "Pair them by name"),
        (_task_of_common_names, "passed over"),
        (_task_broadcast, "shapes are not"),
        (lambda tuned, base: {k: v.double() for k, v in _task_in_a_loop(tuned, base).items()}, "float64"),
        (lambda tuned, base: {k: v for k, v in _task_in_a_loop(tuned, base).items()
                              if k.endswith(("weight", "bias"))}, "other names"),
        (lambda tuned, base: {k: v.where(v.abs() > 1e-4, 0) for k, v in _task_in_a_loop(tuned, base).items()},
         "1e-5"),
    ],
    "elect_sign": [
        (_sign_by_count, "one task, one vote"),
        (_sign_of_largest, "largest change alone"),
        (lambda deltas: deltas.float().sum(0), "the sum itself"),
        (lambda deltas: deltas.float().sum(-1).sign(), "over the weights instead"),
        (lambda deltas: torch.sign(deltas.float()).clone(), "a sign for each task"),
        (lambda deltas: 2.0 * (deltas.float().sum(0) >= 0) - 1, "Nobody has won"),
        (lambda deltas: (deltas.float().sum(0) * (deltas.float().sum(0).abs() > 1e-6)).sign(), "as small"),
        (lambda deltas: deltas.float().sum(0).sign().long(), "int64"),
    ],
}

RIGHT = {
    "predict_length": [2**0.5 / 2, 0.71],
    "predict_ties": [0.4, 0.8 / 2],
    "slerp": [_slerp_with_math, _slerp_by_two_directions],
    "task_vector": [_task_in_a_loop, _task_in_double],
    "elect_sign": [_sign_by_sides, _sign_by_mean],
}
