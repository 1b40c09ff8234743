"""Exercises of the lesson on model merging."""

import math

import torch

from course_utils.checking import Case, Exercise, Mistake, Prediction
from course_utils.checking.cases import seeded
from course_utils.merge import methods, vectors


def _generator():
    return torch.Generator().manual_seed(seeded(9))


# --- predictions ------------------------------------------------------------------------------------------

PREDICT_LENGTH = Prediction(
    id="predict_length",
    answer=math.sqrt(0.5),
    rtol=0.02,
    unit="times the length of the arrows",
    mistakes=[
        (1.0, "that is the arc. The straight line is a short cut through the inside of the sphere."),
        (0.5, "the middle is half of the sum of both arrows, and this sum is longer than one arrow."),
        (math.sqrt(2), "that is the length of the sum. The mean is half of the sum."),
        (2.0, "two arrows at a right angle are not in one line, and the mean is half of their sum."),
    ],
    hint="Draw the arrows (1, 0) and (0, 1). Where is the point half-way between their tips?",
)

PREDICT_TIES = Prediction(
    id="predict_ties",
    answer=0.4,
    rtol=0.02,
    mistakes=[
        (0.1, "the plain mean of all three. TIES leaves out what has the losing sign."),
        (0.8 / 3, "the losing change left out of the sum, but still counted in the divisor."),
        (0.3, "the sum of all three. TIES takes a mean, and of the winning sign only."),
        (-0.5, "the minus side has lost: it has 0.5, the plus side has more."),
        (0.8, "the sum of the agreeing changes. TIES takes their mean."),
    ],
    hint="Add up the plus side and the minus side. Which is larger? Then average that side alone.",
)


# --- slerp ------------------------------------------------------------------------------------------------


def _slerp_cases():
    generator = _generator()

    def random(*shape):
        return torch.randn(shape, generator=generator)

    a, b = random(4, 6), random(4, 6)
    short, long = random(8), random(8) * 25
    near = random(50)
    return [
        Case(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0]), 0.5, label="a right angle, half-way"),
        Case(a, b, 0.3, label="two matrices"),
        Case(short, long, 0.25, label="arrows of unlike length"),
        Case(a, b, 1.0, label="t = 1"),
        Case(random(6, 4).T, random(4, 6), 0.6, label="a transposed view"),
        Case(random(2, 3, 4).bfloat16(), random(2, 3, 4).bfloat16(), 0.4, label="bfloat16"),
        Case(a, -a + 0.6 * b, 0.7, label="an obtuse angle"),
        Case(torch.tensor([0.0, 2.0, 0.0]), torch.tensor([0.0, 3.0, 0.0]), 0.5, label="parallel"),
        Case(near, near + 0.2 * random(50), 0.5, 0.9, label="nearly parallel, with another threshold"),
        Case(torch.tensor([0.0, 2.0, 0.0]), torch.tensor([0.0, -4.0, 0.0]), 0.25, label="opposite"),
        Case(a, torch.zeros(4, 6), 0.5, label="one is zero"),
        Case(torch.zeros(4, 6), a, 0.5, label="the other is zero"),
        Case(torch.zeros(3), torch.zeros(3), 0.4, label="both are zero"),
        Case(a, b, 0.0, label="t = 0"),
        Case(3e-5 * random(5, 3), 3e-5 * random(5, 3), 0.3, label="as tiny as task vectors are"),
        Case(1e-8 * random(6), random(6), 0.5, label="one is tiny, and an arrow all the same"),
        Case(random(7).double(), random(7).double(), 0.8, label="float64"),
        Case(random(2, 3, 4).half(), random(2, 3, 4).half(), 0.3, label="float16"),
        Case(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0]), 0.25, 0.0,
             label="|cos A| >= 0 always: every pair counts as parallel"),
        Case(random(2, 3), random(3, 2), 0.5, label="shapes that differ", raises=ValueError),
        Case(random(3, 2), random(2, 3), 0.5, label="shapes that differ, the other way", raises=ValueError),
        Case(random(4, 6), random(1, 6), 0.5, label="a shape that would broadcast", raises=ValueError),
        Case(random(6), random(2, 3), 0.5, label="as many numbers in other dimensions", raises=ValueError),
    ]


def _slerp(a, b, t, parallel=0.9995, *, normalize=True, lengths=True, absolute=True, zero=True,
           swap=False, by_row=False, check=True):
    """The right `slerp` with one thing done wrongly."""
    if a.numel() != b.numel() or check and a.shape != b.shape:
        raise ValueError("the shapes differ")
    t = 1 - t if swap else t
    x, y = a.float(), b.float()
    if not by_row:
        x, y = x.flatten(), y.flatten()
    long_x, long_y = (v.norm(dim=-1, keepdim=True) for v in (x, y))
    if not lengths:
        x, y = x / long_x, y / long_y
    unit_x, unit_y = (x / long_x, y / long_y) if normalize and lengths else (x, y)
    cosine = (unit_x * unit_y).sum(dim=-1, keepdim=True).clamp(-1, 1)
    linear = (cosine.abs() if absolute else cosine) >= parallel
    if zero:
        linear = linear | (long_x == 0) | (long_y == 0)
    angle = torch.acos(cosine)
    from_a = torch.where(linear, 1 - t, torch.sin((1 - t) * angle) / torch.sin(angle))
    from_b = torch.where(linear, t, torch.sin(t * angle) / torch.sin(angle))
    return (from_a * x + from_b * y).reshape(a.shape).to(a.dtype)


def _dot_of_tensors(a, b, t, parallel=0.9995):
    angle = torch.acos(torch.dot(a, b) / (torch.norm(a) * torch.norm(b)))
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def _in_own_dtype(a, b, t, parallel=0.9995):
    x, y = a.flatten(), b.flatten()
    cosine = torch.dot(x / x.norm(), y / y.norm()).clamp(-1, 1)
    if x.norm() == 0 or y.norm() == 0 or cosine.abs() >= parallel:
        return (1 - t) * a + t * b
    angle = torch.acos(cosine)
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


SLERP = Exercise(
    reference=vectors.slerp,
    cases=_slerp_cases,
    rtol=1e-4,
    atol=1e-6,
    exact_dtype=True,
    mistakes=[
        Mistake(
            "LERP everywhere. SLERP weighs the tensors by sines of the angle.",
            lambda a, b, t, parallel=0.9995: vectors.lerp(a, b, t),
        ),
        Mistake(
            "a and b changed places: t = 0 must give a.",
            lambda a, b, t, parallel=0.9995: _slerp(a, b, t, parallel, swap=True),
        ),
        Mistake(
            "the tensors were not flattened. torch.dot takes vectors only.",
            _dot_of_tensors,
        ),
        Mistake(
            "the cosine of tensors that were not normalised: a . b is |a| |b| cos A.",
            lambda a, b, t, parallel=0.9995: _slerp(a, b, t, parallel, normalize=False),
        ),
        Mistake(
            "the result mixes the normalised tensors. They are for the angle only; mix a and b themselves.",
            lambda a, b, t, parallel=0.9995: _slerp(a, b, t, parallel, lengths=False),
        ),
        Mistake(
            "an angle for each row. The whole tensor is one arrow.",
            lambda a, b, t, parallel=0.9995: _slerp(a, b, t, parallel, by_row=True),
        ),
        Mistake(
            "no LERP where sin A is (nearly) 0: the division gives NaN, or noise.",
            lambda a, b, t, parallel=0.9995: _slerp(a, b, t, 2.0, zero=False),
        ),
        Mistake(
            "LERP for parallel tensors, but not for opposite ones. There sin A is 0 as well.",
            lambda a, b, t, parallel=0.9995: _slerp(a, b, t, parallel, absolute=False),
        ),
        Mistake(
            "a tensor of zeros has no direction: 0/0 is NaN. Use LERP there.",
            lambda a, b, t, parallel=0.9995: _slerp(a, b, t, parallel, zero=False),
        ),
        Mistake(
            "the threshold is fixed in your code. Use the argument `parallel`.",
            lambda a, b, t, parallel=0.9995: _slerp(a, b, t),
        ),
        Mistake(
            "shapes that differ were let through. Flattened, [2, 3] and [3, 2] fit, but they mean nothing "
            "together.",
            lambda a, b, t, parallel=0.9995: _slerp(a, b, t, parallel, check=False),
        ),
        Mistake(
            "computed in the dtype of the input. bfloat16 keeps two to three digits: convert to float32 "
            "first, and back at the end.",
            _in_own_dtype,
        ),
    ],
    hint="Try the arrows (3, 0) and (0, 3) on paper: which angle, which two weights? When is sin A zero?",
)


# --- task_vector ------------------------------------------------------------------------------------------


def _state(generator, dtype=torch.float32, **change):
    shapes = {"encoder.weight": (4, 3), "encoder.bias": (4,), "head.weight": (2, 4)}
    made = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return made | {"position_ids": torch.arange(6)} | change


def _task_cases():
    generator = _generator()
    base, tuned = _state(generator), _state(generator)
    low = _state(generator, torch.bfloat16)
    moved = low | {name: low[name] * -1.7 for name in _floats(low)}
    return [
        Case(tuned, base, label="two models, with an integer buffer"),
        Case(base, base, label="nothing learned"),
        Case(moved, low, label="bfloat16"),
        Case(dict(reversed(tuned.items())), base, label="the same names in another order"),
        Case({name: value for name, value in tuned.items() if name != "encoder.bias"}, base,
             label="a name is missing", raises=ValueError),
        Case(tuned, {name: value for name, value in base.items() if name != "head.weight"},
             label="a name too many", raises=ValueError),
        Case(tuned | {"encoder.bias": torch.ones(1)}, base, label="a shape that would broadcast",
             raises=ValueError),
        Case({name: base[name] + 1e-5 * tuned[name] if base[name].is_floating_point() else base[name]
              for name in base}, base, label="changes of 1e-5"),
        Case(_state(generator, torch.float64), _state(generator, torch.float64), label="float64"),
        Case({"A_log": torch.randn(3, generator=generator), "scale": torch.tensor(2.0)},
             {"A_log": torch.randn(3, generator=generator), "scale": torch.tensor(0.5)},
             label="other names, and a tensor without dimensions"),
        Case(_state(generator, torch.float16), _state(generator, torch.float16), label="float16"),
        Case(tuned | {"head.bias": torch.ones(2)}, base | {"head.offset": torch.ones(2)},
             label="as many names, but others", raises=ValueError),
        Case(tuned, base | {"encoder.weight": base["encoder.weight"].T}, label="a transposed shape",
             raises=ValueError),
        Case(list(tuned.items()), base, label="no state dict", raises=TypeError),
        Case(tuned, None, label="no base", raises=TypeError),
    ]  # fmt: skip


def _floats(base):
    return [name for name, value in base.items() if value.is_floating_point()]


def _in_place(finetuned, base):
    for name in _floats(base):
        finetuned[name] -= base[name]
    return {name: finetuned[name].float() for name in _floats(base)}


def _dicts_only(finetuned, base):
    if not (isinstance(finetuned, dict) and isinstance(base, dict)):
        raise TypeError("no state dict")


def _passed_over(finetuned, base):
    _dicts_only(finetuned, base)
    common = [name for name in _floats(base) if name in finetuned]
    return {name: finetuned[name].float() - base[name].float() for name in common}


def _names_checked(finetuned, base):
    _dicts_only(finetuned, base)
    if finetuned.keys() != base.keys():
        raise ValueError("the names differ")
    return {name: finetuned[name].float() - base[name].float() for name in _floats(base)}


TASK_VECTOR = Exercise(
    reference=methods.task_vector,
    cases=_task_cases,
    exact_dtype=True,
    mistakes=[
        Mistake(
            "base - finetuned. Added to the base, the task vector must give the fine-tuned model.",
            lambda finetuned, base: {name: -value for name, value in _names_checked(finetuned, base).items()},
        ),
        Mistake(
            "the fine-tuned model was changed in place. Subtract into a new tensor.",
            _in_place,
        ),
        Mistake(
            "integer buffers are in the result. They are no weights: leave them out.",
            lambda finetuned, base: {name: finetuned[name].float() - base[name].float() for name in base},
        ),
        Mistake(
            "the difference was rounded to the dtype of the model. Convert to float32 before you subtract, "
            "and leave it there.",
            lambda finetuned, base: {name: finetuned[name] - base[name] for name in _floats(base)},
        ),
        Mistake(
            "the tensors were paired by their place in the dict. Pair them by name.",
            lambda finetuned, base: {
                name: new.float() - old.float()
                for (name, old), new in zip(base.items(), finetuned.values(), strict=True)
                if old.is_floating_point()
            },
        ),
        Mistake(
            "names that only one model has were passed over. Such models do not belong together: say so.",
            _passed_over,
        ),
        Mistake(
            "names are checked, shapes are not. A shape that broadcasts gives something without meaning.",
            _names_checked,
        ),
    ],
    hint="What must be true of two models before a subtraction means anything? Which tensors are weights?",
)


# --- elect_sign -------------------------------------------------------------------------------------------


def _sign_cases():
    generator = _generator()
    return [
        Case(torch.tensor([[-3.0, 2.0, 0.5], [1.0, -1.0, 0.5], [1.0, -1.5, 0.5]]), label="three tasks"),
        Case(torch.randn(5, 4, 6, generator=generator), label="five tasks, a matrix"),
        Case(torch.randn(1, 7, generator=generator), label="one task"),
        Case(torch.tensor([[1.0, 0.0, 2.0], [-1.0, 0.0, 0.0]]), label="a draw, and nothing at all"),
        Case(torch.randn(6, 3, generator=generator).T, label="a transposed view"),
        Case(torch.randn(5, 8, generator=generator).bfloat16(), label="bfloat16"),
        Case(torch.randn(4, generator=generator), label="tasks with one number each"),
        Case(1e-30 * torch.randn(3, 5, generator=generator), label="as small as numbers get"),
        Case(torch.tensor([[1e4, 1e-3], [-1e4, 2e-3], [1e-2, -1e-3]]), label="large against tiny"),
        Case(torch.randn(2, 3, 3, generator=generator).double(), label="two tasks, float64"),
    ]


def _count(deltas):
    return torch.sign(torch.sign(deltas).sum(dim=0).float())


def _largest(deltas):
    index = deltas.abs().argmax(dim=0, keepdim=True)
    return torch.sign(deltas.gather(0, index)[0].float())


ELECT_SIGN = Exercise(
    reference=methods.elect_sign,
    cases=_sign_cases,
    mistakes=[
        Mistake(
            "one task, one vote. TIES weighs the votes: one large change outvotes two small ones.",
            _count,
        ),
        Mistake(
            "the sign of the largest change alone. Two middling ones together can outweigh it.",
            _largest,
        ),
        Mistake(
            "the sum itself. It is asked for its sign.",
            lambda deltas: deltas.float().sum(dim=0),
        ),
        Mistake(
            "summed over the weights instead of the tasks. The tasks are the first dimension.",
            lambda deltas: torch.sign(deltas.float().sum(dim=-1)),
        ),
        Mistake(
            "plus where both sides pull alike. Nobody has won there: 0.",
            lambda deltas: torch.where(deltas.float().sum(dim=0) >= 0, 1.0, -1.0),
        ),
        Mistake(
            "a sign for each task. The tasks elect one together.",
            lambda deltas: torch.sign(deltas.float()),
        ),
    ],
    hint="A weight's votes are the numbers deltas[:, i]. Which side has the larger sum?",
)


EXERCISES = [PREDICT_LENGTH, SLERP, TASK_VECTOR, PREDICT_TIES, ELECT_SIGN]
