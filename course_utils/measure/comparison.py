"""Is one result better than another, or is the difference noise? Paired differences and their error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas
from scipy import stats

from course_utils.measure.quality import Accuracy, Perplexity
from course_utils.measure.report import table

BETTER, WORSE, NOT_SHOWN = "better", "worse", "no difference shown"
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """The difference of two results that were measured on the same things, and how sure it is.

    Attributes:
        difference: the first result minus the second.
        error: its standard error; NaN with fewer than two pairs.
        low: lower end of the 95 % interval of the difference.
        high: its upper end.
        pairs: how many pairs of values were compared.
        what: what a pair is: "windows", "answers", "runs", "rows", ...
        unit: of the difference.
        verdict: what this says of the first result: "better", "worse" or "no difference shown".
        detail: what else there is to say, for example the number of tokens.
        comparisons: how many the interval holds for together.
    """

    difference: float
    error: float
    low: float
    high: float
    pairs: int
    what: str
    unit: str
    verdict: str
    detail: str = ""
    comparisons: int = 1

    @property
    def shown(self) -> bool:
        """Whether the measurement tells the two apart."""
        return self.verdict != NOT_SHOWN

    def figures(self) -> str:
        """Difference, standard error, interval and what they rest on, in one line."""
        together = f" for all {self.comparisons}" if self.comparisons > 1 else ""
        return (
            f"{self.difference:+.4f} ± {self.error:.4f} {self.unit} (95 %{together}: {self.low:+.4f} to "
            f"{self.high:+.4f}; {self.pairs:,} {self.what}{', ' if self.detail else ''}{self.detail})"
        )

    def __str__(self) -> str:
        return f"{self.figures()}: {self.verdict}"

    def sentence(self, first: str, second: str) -> str:
        """The verdict in words, with its figures.

        Args:
            first: name of the first result.
            second: name of the second.

        Returns:
            For example "GPTQ is better than rounding: -0.0771 ± 0.0180 nats a token (...)".
        """
        if self.shown:
            return f"{first} is {self.verdict} than {second}: {self.figures()}"
        return f"No difference is shown between {first} and {second}: {self.figures()}"

    def row(self) -> dict[str, str]:
        """The figures as columns of `measure.table`, as texts: a tiny difference keeps its digits.

        Returns:
            Column -> value.
        """
        return {
            f"difference ({self.unit})": f"{self.difference:+.{2 if self.error < 1e-4 else 4}g}",
            "standard error": f"{self.error:.2g}",
            "verdict": self.verdict,
        }


def paired_difference(a: list[float], b: list[float], tokens: list[int]) -> tuple[float, float]:
    """Mean difference of two models for each token, and its standard error, by window.

    The tokens of a window are not independent: a hard passage is hard from its first word to its last. So
    the window is what counts as one observation. Both models read the same windows, so what they find hard
    in common cancels. With D_i the difference of the sums of window i, n_i its tokens and W windows:

        d = sum(D_i) / sum(n_i)
        error = sqrt(W / (W - 1) * sum((D_i - d * n_i)^2)) / sum(n_i)

    That is the error of a ratio of two sums (W. G. Cochran, "Sampling Techniques", 3rd edition, 1977, chapter
    6). If all windows are equally long, it is the spread of the windows' differences / sqrt(W).

    Args:
        a: [windows], the first model's negative log-likelihood of each window, summed over its tokens, in
            nats.
        b: [windows], the second model's.
        tokens: [windows], how many tokens each sum is over.

    Returns:
        The difference a - b in nats a token and its standard error. One window alone has no spread: its
        error is NaN.

    Raises:
        ValueError: a, b and tokens have not the same number of windows.
    """
    gaps = [x - y for x, y in zip(a, b, strict=True)]
    total, count = sum(tokens), len(gaps)
    mean = sum(gaps) / total
    squares = sum((gap - mean * n) ** 2 for gap, n in zip(gaps, tokens, strict=True))
    if count == 1:
        return mean, math.nan
    return mean, math.sqrt(count / (count - 1) * squares) / total


def compare(
    a: Any, b: Any, *, higher_is_better: bool = False, unit: str = "", what: str = "runs",
    comparisons: int = 1,
) -> Comparison:
    """Compare two results that belong together pair by pair, and say what is shown.

    - Two perplexities of one text: the mean difference in nats a token, by window, with a t interval.
    - Two accuracies on the same examples: only the examples that one of them alone got right tell anything.
      Examples are told apart by their labels only: two sets with the same labels in the same order pass.
      Verdict by McNemar's exact test (Q. McNemar, Psychometrika 12, 1947); the interval is the usual
      approximation by a normal distribution, so at the border the two may disagree: the test decides.
    - Two lists of numbers, one for each training run, of which run i of both had the same seed (or one for
      each row of a matrix, or whatever belongs together in pairs): the mean difference with a t interval.

    A verdict other than "no difference shown" means that a difference of this size would come by chance in
    fewer than 1 of 20 measurements, were there none. Who makes many comparisons will meet that one, unless
    `comparisons` says how many: then all of them together err in fewer than 1 of 20 measurements, because
    each is asked for more (C. E. Bonferroni, 1936).

    Args:
        a: the first `Perplexity`, `Accuracy` or list of numbers.
        b: the second, of the same kind.
        higher_is_better: of lists: whether a larger number is better.
        unit: of lists: what the numbers are.
        what: of lists: what there is one number of.
        comparisons: how many such comparisons the same question is decided by.

    Returns:
        a - b, its error and a verdict on a.

    Raises:
        TypeError: the two are of different kinds, or of a kind that cannot be paired.
        ValueError: they were measured on different text, examples or numbers of runs, or `comparisons` is
            less than 1.
    """
    if comparisons < 1:
        raise ValueError(f"comparisons says how many there are, so at least 1, got {comparisons}")
    if isinstance(a, Perplexity) and isinstance(b, Perplexity):
        return _compare_perplexities(a, b, comparisons)
    if isinstance(a, Accuracy) and isinstance(b, Accuracy):
        return _compare_accuracies(a, b, comparisons)
    if not _is_list(a) or not _is_list(b):
        raise TypeError(
            f"cannot pair {type(a).__name__} with {type(b).__name__}: give two perplexities, two "
            "accuracies or two lists of numbers, one for each run"
        )
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"{len(a)} runs do not pair with {len(b)}: give one number for each seed in both")
    difference, error = paired_difference(a, b, [1] * len(a))
    return _by_t(difference, error, len(a), what, unit, higher_is_better, comparisons=comparisons)


def ranking(results: Mapping[str, Any], reference: str) -> pandas.DataFrame:
    """A table of results, each compared with one of them.

    Args:
        results: name -> `Perplexity` or `Accuracy`, all on the same text or examples.
        reference: name of the result that the others are compared with.

    Returns:
        One row a result: its figure, the difference to the reference, its standard error and the verdict.

    Raises:
        ValueError: there is no result of that name, or they were measured on different things.
    """
    if reference not in results:
        raise ValueError(f"no result {reference!r}: choose from {', '.join(map(repr, results))}")
    rows = {}
    for name, result in results.items():
        compared = compare(result, results[reference]).row()
        if name == reference:
            compared = dict.fromkeys(compared, "") | {"verdict": "the reference"}
        rows[name] = result.row() | compared
    return table(rows)


def _is_list(values: Any) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str)


def _compare_perplexities(a: Perplexity, b: Perplexity, comparisons: int) -> Comparison:
    if not a.text or (a.text, tuple(a.window_tokens)) != (b.text, tuple(b.window_tokens)):
        raise ValueError(
            f"the two were not measured on the same tokens and windows ({a.tokens:,} tokens in windows of "
            f"{a.window}, and {b.tokens:,} in windows of {b.window}): measure both on one text"
        )
    difference, error = paired_difference(a.window_nll, b.window_nll, a.window_tokens)
    if not math.isfinite(difference):  # a ruined model: its windows have no finite sum
        difference = a.nll - b.nll
        verdict = _ruined(math.isfinite(a.nll), math.isfinite(b.nll))
        return Comparison(
            difference,
            math.nan,
            -math.inf,
            math.inf,
            len(a.window_nll),
            "windows",
            "nats a token",
            verdict,
            f"{a.tokens:,} tokens",
            comparisons,
        )
    windows, tokens = len(a.window_nll), f"{a.tokens:,} tokens"
    return _by_t(difference, error, windows, "windows", "nats a token", False, tokens, comparisons)


def _ruined(a_works: bool, b_works: bool) -> str:
    if a_works == b_works:
        return NOT_SHOWN
    return BETTER if a_works else WORSE


def _by_t(
    difference: float,
    error: float,
    pairs: int,
    what: str,
    unit: str,
    higher_is_better: bool,
    detail: str = "",
    comparisons: int = 1,
) -> Comparison:
    """Student's t interval: with few pairs their spread itself is uncertain, so it is wider than 2 errors."""
    half = stats.t.ppf(1 - (1 - CONFIDENCE) / comparisons / 2, pairs - 1) * error if pairs > 1 else math.inf
    low, high = difference - half, difference + half
    verdict = _verdict(low, high, higher_is_better)
    return Comparison(difference, error, low, high, pairs, what, unit, verdict, detail, comparisons)


def _verdict(low: float, high: float, higher_is_better: bool) -> str:
    if low <= 0 <= high or math.isnan(low):
        return NOT_SHOWN
    return BETTER if (low > 0) == higher_is_better else WORSE


def _compare_accuracies(a: Accuracy, b: Accuracy, comparisons: int) -> Comparison:
    if not a.examples or a.examples != b.examples:
        raise ValueError("the two accuracies are not of the same examples: measure both on one set")
    only_a = sum(x and not y for x, y in zip(a.right, b.right, strict=True))
    only_b = sum(y and not x for x, y in zip(a.right, b.right, strict=True))
    n, differ = a.total, only_a + only_b
    difference = (only_a - only_b) / n
    # Of a mean of n values +1, 0, -1.
    error = math.sqrt((differ / n - difference**2) / (n - 1)) if n > 1 else math.nan
    risk = (1 - CONFIDENCE) / comparisons
    half = stats.norm.ppf(1 - risk / 2) * error
    shown = differ > 0 and stats.binomtest(only_a, differ).pvalue < risk
    verdict = NOT_SHOWN if not shown else BETTER if only_a > only_b else WORSE
    return Comparison(
        100 * difference,
        100 * error,
        100 * (difference - half),
        100 * (difference + half),
        n,
        "answers",
        "percentage points",
        verdict,
        f"{only_a} right in the first alone, {only_b} in the second alone",
        comparisons,
    )
