"""Judge a number (or a short text) that the learner predicted before it is measured."""

import re
from typing import Any

from course_utils.checking.describe import describe, shorten
from course_utils.checking.scalars import as_number, numbers_agree
from course_utils.checking.spec import FAILED, NOT_ATTEMPTED, PASSED, Prediction, Result

PREFIXES = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def judge_prediction(prediction: Prediction, value: Any, id: str) -> Result:
    """Judge a predicted value.

    Args:
        prediction: what was asked.
        value: what the learner predicts; None or ... when nothing was predicted.
        id: what the prediction is called in the message.

    Returns:
        What came of it. The message never holds the answer unless the prediction passed.
    """
    if value is None or value is ...:
        text = f"{id}: not attempted. Write your prediction in the cell above: a guess costs nothing."
        return Result(NOT_ATTEMPTED, 1, text)
    right = prediction.answer() if callable(prediction.answer) else prediction.answer
    if isinstance(right, str):
        return _judge_choice(prediction, right, value, id)
    wanted, number = as_number(right), _as_number(value)
    if isinstance(number, int) and abs(number) > 1e300:  # too large for a float
        number = float("inf") if number > 0 else -float("inf")
    unit = f" {prediction.unit}" if prediction.unit else ""
    if number is None or isinstance(number, complex) or number != number:
        asked = f"a number in {prediction.unit}" if prediction.unit else "a number"
        return Result(FAILED, 1, f"{id}: failed\n  expected:  {asked}\n  came:      {describe(value)}")
    if numbers_agree(wanted, number, prediction.rtol, 0.0):
        text = f"{id}: passed. You said {_figure(number)}{unit}, it is {_figure(wanted)}{unit}."
        return Result(PASSED, 1, text)
    lines = [
        f"{id}: failed. {_figure(number)}{unit} is {_how_far(wanted, number)} "
        f"(accepted: {_accuracy(prediction.rtol)})."
    ]
    advice = _advice(prediction, wanted, number)
    return Result(FAILED, 1, "\n  ".join(lines + [advice] * bool(advice)))


def _accuracy(rtol: float) -> str:
    return f"within {100 * rtol:.3g} % of the answer" if rtol else "the exact number"


def _as_number(value: Any) -> int | float | complex | None:
    try:
        return as_number(value)
    except Exception:  # an object that cannot even be asked for its type is no number
        return None


def _judge_choice(prediction: Prediction, right: str, value: Any, id: str) -> Result:
    value = str.__str__(value) if issubclass(type(value), str) else describe(value)
    if value.strip().lower() == right.strip().lower():
        return Result(PASSED, 1, f"{id}: passed. It is {right!r}.")
    advice = prediction.hint and f"Hint: {prediction.hint}"
    for planted, message in prediction.mistakes:
        planted = planted() if callable(planted) else planted
        if value.strip().lower() == str(planted).strip().lower():
            advice = f"Likely mistake: {message}"
    lines = [f"{id}: failed. {shorten(repr(value))} is not the answer."] + [advice] * bool(advice)
    return Result(FAILED, 1, "\n  ".join(lines))


def _advice(prediction: Prediction, wanted: float, number: float) -> str:
    for planted, message in prediction.mistakes:
        planted = as_number(planted() if callable(planted) else planted)
        if planted is not None and numbers_agree(planted, number, prediction.rtol, 0.0):
            return f"Likely mistake: {message}"
    if mistake := _unit_mistake(prediction, wanted, number):
        return f"Likely mistake: the unit{mistake}"
    return f"Hint: {prediction.hint}" if prediction.hint else ""


def _unit_mistake(prediction: Prediction, wanted: float, number: float) -> str:
    """What is wrong with the unit, if that is all that is wrong; only units that the question may be in."""

    def is_it(factor: float, rtol: float = prediction.rtol) -> bool:
        return any(numbers_agree(wanted * f, number, rtol, 0.0) for f in (factor, 1 / factor))

    unit = prediction.unit
    asked = f" (it is asked in {unit})" if unit else ""
    words = " ".join([unit, *(message for _, message in prediction.mistakes)])
    if found := re.fullmatch(r"([kMGT]?)B|bytes", unit):
        for n, name in enumerate(("KiB", "MiB", "GiB", "TiB"), start=1):
            # 2 to 10 % apart when both have the same prefix: close enough to mistake one for the other.
            if is_it(PREFIXES[found[1] or ""] / 2 ** (10 * n), min(prediction.rtol, 0.01)):
                return f"{asked}: {name} have 2^{10 * n} bytes, {name[0]}B have 10^{3 * n}."
    ratio = re.search(r"%|\bper ?cent|\bshare\b", words)
    if ratio and is_it(100):
        return f"{asked}, a share or a percentage; the digits are right."
    if re.search(r"\b([Bb]its?|[Bb]ytes?|[kMGT]i?B)\b", words) and is_it(8):
        return f"{asked}: a byte has 8 bits."
    if unit and not re.match(r"%|per ?cent|share|times|bits", unit):
        if any(is_it(size) for size in (1e3, 1e6, 1e9, 1e12)):
            return f"{asked}; the digits are right."
    return ""


def _how_far(wanted: float, number: float) -> str:
    """Too high or too low, and roughly by how much: enough to think again, not enough to copy."""
    side = "too high" if number > wanted else "too low"
    if not wanted * number > 0:  # of unlike sign, or zero, or zero against infinity
        return side
    ratio = max(number / wanted, wanted / number)
    for bound in (2, 10, 100):
        if ratio < bound:
            return f"{side}, by less than a factor of {bound}"
    return f"{side}, by more than a factor of 100"


def _figure(number: float) -> str:
    if isinstance(number, int) or float(number).is_integer() and abs(number) < 1e15:
        return f"{int(number):,}"
    return f"{number:.4g}"
