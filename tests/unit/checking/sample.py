"""Exercises of a lesson `sample`, and answers to them that do what they like."""

import dataclasses

import numpy as np
import torch

from course_utils.checking import Case, Exercise, Mistake, Prediction, judge


def row_scale(weight, bits=4):
    """Largest magnitude of each row, divided by the largest signed integer of `bits` bits."""
    if bits < 2:
        raise ValueError("bits must be at least 2")
    return weight.abs().amax(1) / (2 ** (bits - 1) - 1)


def own_row_scale(weight, bits=4):
    """`row_scale` as a learner would write it."""
    if bits < 2:
        raise ValueError
    return torch.stack([row.abs().max() for row in weight]) / (2 ** (bits - 1) - 1)


def row_scale_cases():
    generator = torch.Generator().manual_seed(0)
    strided = torch.randn(5, 3, generator=generator).T
    return [
        Case(torch.randn(4, 8, generator=generator), label="plain"),
        Case(strided, bits=3, label="strided"),
        Case(torch.randn(2, 2, generator=generator), bits=1, raises=ValueError, label="one bit"),
    ]


def unsigned(weight, bits=4):
    return weight.abs().amax(1) / (2**bits - 1)


def whole_matrix(weight, bits=4):
    return (weight.abs().amax() / (2 ** (bits - 1) - 1)).expand(len(weight))


def never_ends(weight, bits=4):
    while True:
        pass


class Accumulator:
    """Sums."""

    def __init__(self, start):
        self.total = start

    def add(self, value):
        self.total += value
        return self.total


def add_all(cls, start, values):
    accumulator = cls(start)
    return [accumulator.add(value) for value in values]


@dataclasses.dataclass
class Packed:
    words: torch.Tensor
    scale: float


def packed(values):
    return Packed(torch.tensor(values, dtype=torch.int32), 0.5)


def mean_and_counts(values):
    return {"mean": sum(values) / len(values), "counts": (len(values), np.array(values).max())}


def zero_first(values):
    values[0] = 0
    return None


EXERCISES = [
    Exercise(
        reference=row_scale,
        cases=row_scale_cases,
        mistakes=[
            Mistake("the unsigned range.", unsigned),
            Mistake("one scale for the whole matrix.", whole_matrix),
        ],
        hint="think of one row.",
        seconds=1.0,
    ),
    Exercise(reference=Accumulator, call=add_all, cases=lambda: [Case(1, [2, 3]), Case(0, [])]),
    Exercise(reference=packed, cases=lambda: [Case([1, 2])], exact_dtype=True),
    Exercise(reference=mean_and_counts, cases=lambda: [Case([1.0, 2.0])]),
    Exercise(reference=zero_first, cases=lambda: [Case([3, 4]), Case(torch.ones(2))]),
    Exercise(reference=lambda: torch.rand(3), id="noise", cases=lambda: [Case()]),
    Exercise(reference=lambda x: 1 / 0, id="broken", cases=lambda: [Case(1)]),
    Prediction(
        id="bytes", answer=lambda: 538_060_032, unit="bytes", mistakes=[(269e6, "two bytes each.")]
    ),
    Prediction(id="phase", answer="decode", mistakes=[("prefill", "that one is bound by arithmetic.")]),
]


class Evil:
    """Raises whatever is done with it."""

    def _fail(self, *_):
        raise OSError("evil")

    __eq__ = __repr__ = __len__ = __iter__ = __getitem__ = __bool__ = __float__ = _fail
    __hash__ = None


class Disguised:
    """Cannot even be asked what it is."""

    @property
    def __class__(self):
        raise OSError("evil")


def status(id, answer):
    return judge(id, answer).status
