"""Which of the mistakes that learners make is this one?"""

from course_utils.checking.outcomes import outcome_difference, same_outcome
from course_utils.checking.running import Outcome, run
from course_utils.checking.spec import Case, Exercise


def likely_mistake(
    exercise: Exercise, cases: list[Case], references: list[Outcome], outcomes: list[Outcome], first: int
) -> str | None:
    """The planted mistake that answers as the learner does wherever it differs from the reference.

    It must explain the case that the learner is shown. Cases that must raise count only there, and for
    mistakes that nothing else shows: a planted function need not repeat the reference's checks.

    Args:
        exercise: has the mistakes.
        cases: of the exercise.
        references: what its reference did in each.
        outcomes: what the answer did; it may have stopped before the last case.
        first: number of the first case in which the answer failed.

    Returns:
        The mistake's message, or None.
    """
    best = None
    for mistake in exercise.mistakes:
        agrees, telling = {}, {True: [], False: []}
        for n, (case, reference, came) in enumerate(zip(cases, references, outcomes, strict=False)):
            planted = run(exercise, mistake.function, case, quiet=True)
            agrees[n] = same_outcome(exercise, case, planted, came)
            if outcome_difference(exercise, case, reference, planted, "value"):
                telling[case.raises is not None].append(n)
        if first not in telling[False] + telling[True] or not agrees[first]:
            continue
        if all(agrees.values()):
            return mistake.message
        if all(agrees[n] for n in telling[False] or telling[True]):
            best = best or mistake.message
    return best
