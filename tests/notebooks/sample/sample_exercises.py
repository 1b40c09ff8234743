"""The exercises of the sample course."""

import sample_library

from course_utils.checking import Case, Exercise, Mistake, Prediction


def count(cls, start, steps):
    counter = cls(start)
    return [counter.up() for _ in range(steps)]


def double(x):
    return 2 * x


EXERCISES = [
    Exercise(
        reference=sample_library.halve,
        cases=lambda: [Case([1.0, 3.0]), Case([8.0], times=3, label="three times"), Case([], label="empty")],
        mistakes=[
            Mistake("halving once, whatever `times` says.", lambda values, times=1: [v / 2 for v in values]),
            Mistake("dividing by 2 x times.", lambda values, times=1: [v / (2 * times) for v in values]),
        ],
        hint="what does halving twice come to?",
        draw=lambda numbers: [Case([numbers.uniform(-9, 9) for _ in range(n)], times=n) for n in (1, 4, 2)],
    ),
    Exercise(
        reference=sample_library.Counter,
        call=count,
        cases=lambda: [Case(0, 3), Case(-5, 1, label="negative")],
    ),
    Exercise(reference=double, cases=lambda: [Case(2), Case(1.5), Case(-1)]),
    Prediction(id="bytes", answer=lambda: 4 * 1000, unit="bytes", mistakes=[(1000, "four bytes each.")]),
]
