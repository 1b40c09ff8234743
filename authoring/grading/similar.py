"""Answers that are alike beyond what the stub gives: a list to look at, not a verdict.

The comparison is copydetect's: token by token, names and comments left out, by fingerprints of several tokens
in a row (winnowing; Schleimer, Wilkerson and Aiken, SIGMOD 2003).
"""

import dataclasses
import io
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from authoring.grade import answer_to
from authoring.grading.results import shown
from authoring.grading.submissions import Submission, cells
from authoring.grading.trees import Task
from course_utils.checking.limits import TimeLimit, time_limit

LENGTH = 12  # signs of which one fingerprint is made, each name counted as one
SECONDS = 5.0  # that reading one answer may take: some sources are hard to split into tokens
WINDOW = 4  # of so many neighbours one fingerprint is kept


@dataclasses.dataclass(frozen=True)
class Alike:
    """How alike two answers are.

    Attributes:
        share: of the shorter answer's tokens that stand in the other one, too; 0 to 1, the stub's left out.
        same_text: whether they are equal to the letter, comments included.
        others: how many answers of others are as close to one of the two.
    """

    share: float
    same_text: bool
    others: int


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two submissions with answers that are alike.

    Attributes:
        students: who handed them in.
        answers: name of the cell -> how alike they are there.
    """

    students: tuple[str, str]
    answers: dict[str, Alike]

    @property
    def rarity(self) -> float:
        """Sum over the answers; one that many others gave as well counts little."""
        return sum(alike.share / (1 + alike.others) for alike in self.answers.values())


def similar(submissions: list[Submission], tasks: list[Task], least: float = 0.8) -> list[Pair]:
    """Pairs of submissions with answers that are alike. No answer is run.

    Args:
        submissions: notebooks of one lesson.
        tasks: of that lesson. Predictions are left out: they are numbers.
        least: share from which on an answer is listed.

    Returns:
        The pairs, those with the rarest likeness first. Where most answers are alike the exercise leaves
        little choice, which says nothing of two of them.
    """
    pairs = defaultdict(dict)
    for task in tasks:
        written = list(_written(submissions, task)) if task.name != "prediction" else []
        marks = [_fingerprint(source, task.stub) for _, _, source in written]
        shares = {}
        for n, m in itertools.combinations(range(len(written)), 2):
            same = written[n][2] == written[m][2]
            share = 1.0 if same else _share(marks[n], marks[m])
            if share >= least:
                shares[n, m] = share, same
        near = {n: [(share, pair) for pair, (share, _) in shares.items() if n in pair]
                for n in range(len(written))}
        for pair, (share, same) in shares.items():
            others = {k for n in pair for other, both in near[n] if other >= share for k in both} - set(pair)
            who = written[pair[0]][:2], written[pair[1]][:2]
            pairs[who][task.cell] = Alike(round(share, 3), same, len(others))
    found = [Pair((one, other), answers) for ((_, one), (_, other)), answers in pairs.items()]
    return sorted(found, key=lambda pair: (-pair.rarity, pair.students))


def _written(submissions: list[Submission], task: Task) -> Iterator[tuple[int, str, str]]:
    """(number of the submission, student, source) of the answers that are not the stub.

    Where two students have one name, the number on the learning platform or the file stands behind it.
    """
    names = Counter(submission.student for submission in submissions)
    for number, submission in enumerate(submissions):
        try:
            source = answer_to(task, cells(submission.text), [])
        except ValueError:
            continue  # no notebook: `course grade` says so
        if source is not None and source.strip() != task.stub.strip():
            more = f" ({submission.id or shown(submission.path)})" * (names[submission.student] > 1)
            yield number, submission.student + more, source


def _fingerprint(source: str, stub: str) -> Any:
    from copydetect import CodeFingerprint
    from copydetect.utils import get_token_coverage

    given = CodeFingerprint("stub", LENGTH, 1, language="python", fp=io.StringIO(stub))
    lines = "\n".join(line.rstrip() for line in source.splitlines() if line.strip())
    try:
        with time_limit(SECONDS):
            found = CodeFingerprint("answer", LENGTH, WINDOW, language="python", fp=io.StringIO(lines))
    except TimeLimit:
        found = CodeFingerprint("answer", LENGTH, WINDOW, language="python", fp=io.StringIO(""))
    found.hash_idx = {mark: places for mark, places in found.hash_idx.items() if mark not in given.hashes}
    found.hashes = set(found.hash_idx)
    found.token_coverage = get_token_coverage(found.hash_idx, LENGTH, len(found.filtered_code))
    return found


def _share(one: Any, other: Any) -> float:
    from copydetect import compare_files

    if not one.hashes or not other.hashes:  # too short to say anything of
        return 0.0
    _, shares, _ = compare_files(one, other)
    return float(max(shares))


def main(submissions: list[Submission], tasks: list[Task], least: float) -> None:
    """Print the pairs as a table.

    Args:
        submissions: as of `similar`.
        tasks: as of `similar`.
        least: as of `similar`.
    """
    from rich.console import Console
    from rich.table import Table

    from authoring.progress import table_width
    from course_utils.checking.describe import printable

    table = Table("students", "answer", "tokens alike", "text", "as close in others")
    for pair in similar(submissions, tasks, least):
        for n, (cell, alike) in enumerate(pair.answers.items()):
            table.add_row("" if n else printable(" / ".join(pair.students)), cell,
                          f"{100 * alike.share:.0f} %", "the same" if alike.same_text else "",
                          str(alike.others))
        table.add_section()
    console = Console(width=table_width(), markup=False)
    console.print(table if table.row_count else f"No two answers share {100 * least:g} % of their tokens.")
    console.print("A list to look at: short exercises have few right answers.")
