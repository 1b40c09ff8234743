"""The article's claims in one table: its words, what was measured here, the verdict, the cell that shows it.

The words stand once, in lessons/claims.toml. Verdict and figures are what the cells of the executed solutions
printed: a line that begins with a claim's id, "C4: false. ...", and the lines behind it.
"""

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from authoring.project import LessonError, Project, key_of

FILE = Path("lessons/claims.toml")
PAGE = Path("docs/claims.md")
PART = "claims"  # between <!-- claims:begin --> and <!-- claims:end --> in the README
TABLE = "{claims}"  # in a lesson's prose: the table
WORDS = re.compile(r"\{claim:([^{}]*)\}")  # in a lesson's prose: the article's words

LINE = re.compile(r"^(C\d+)\b(?: \(([^()]*)\))?(:?) ?(.*)$")
# A verdict is the first sentence behind the id. It is short and begins with one of these words.
FIRST_WORDS = ("right", "half right", "true", "still", "false", "too", "stale", "outdated", "not", "no")
LONGEST = 8  # words
NO_VERDICT = "no verdict"
RULE = (f"goes on with a verdict of at most {LONGEST} words and a full stop, beginning with "
        f"{', '.join(map(repr, FIRST_WORDS[:-1]))} or {FIRST_WORDS[-1]!r}, as in 'C4: false. ...'")


@dataclass(frozen=True)
class Claim:
    """One claim of the article.

    Attributes:
        id: "C1" and so on.
        says: the article's words, Markdown.
    """

    id: str
    says: str


@dataclass(frozen=True)
class Shown:
    """What one cell printed about a claim.

    Attributes:
        id: of the claim.
        part: which part of the claim, "" for all of it: "speed" of "C3 (speed): ...".
        verdict: the first sentence behind the id, without its full stop; `NO_VERDICT` where that is none.
        figures: all that follows, on one line.
        stem: of the lesson's files, "04_gptq".
        cell: id of the cell.
    """

    id: str
    part: str
    verdict: str
    figures: str
    stem: str
    cell: str


def read_claims(project: Project) -> list[Claim]:
    """The article's claims.

    Args:
        project: the course.

    Returns:
        The claims in the order of the file; [] where the course has no such file.

    Raises:
        LessonError: an entry is not as it must be, or an id is there twice.
    """
    path = project.root / FILE
    if not path.exists():
        return []
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("claim", [])
    except tomllib.TOMLDecodeError as error:
        raise LessonError(FILE, None, f"is no TOML: {error}.") from error
    found: dict[str, Claim] = {}
    for entry in entries:
        if set(entry) != {"id", "says"} or not re.fullmatch(r"C\d+", str(entry["id"])):
            raise LessonError(FILE, None, f'a claim has id = "C..." and says = "...", not {entry}.')
        if entry["id"] in found:
            raise LessonError(FILE, None, f"{entry['id']} is there twice.")
        found[entry["id"]] = Claim(entry["id"], entry["says"])
    return list(found.values())


def read_shown(project: Project) -> list[Shown]:
    """What the cells of the executed solutions say about the claims.

    Args:
        project: the course.

    Returns:
        In the order of the lessons and of their cells. A notebook that is missing or damaged has none:
        `course sync --check` names it.
    """
    found = []
    for lesson in project.lessons():
        try:
            cells = json.loads(project.notebook("solutions", lesson).read_text(encoding="utf-8"))["cells"]
            shown = [(cell, "".join("".join(output["text"]) for output in cell.get("outputs", [])
                                    if output.get("name") == "stdout")) for cell in cells]
            found += [_shown(lesson, cell["id"], block) for cell, text in shown for block in _blocks(text)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return found


def _blocks(text: str) -> Iterator[list[str]]:
    """Each line that begins with a claim's id, with the lines up to the next such line."""
    block: list[str] = []
    for line in text.splitlines():
        if LINE.match(line):
            if block:
                yield block
            block = [line]
        elif block:
            block.append(line)
    if block:
        yield block


def _shown(lesson: Path, cell: str, block: list[str]) -> Shown:
    id, part, colon, rest = LINE.match(block[0]).groups()
    verdict, stop, figures = rest.partition(". ") if ". " in rest else rest.rstrip().partition(".")
    known = re.match(rf"(?:{'|'.join(FIRST_WORDS)})\b", verdict)
    if not colon or not stop or not known or len(verdict.split()) > LONGEST:
        verdict, figures = NO_VERDICT, rest
    figures = " ".join(" ".join([figures, *block[1:]]).split())
    return Shown(id, part or "", verdict, figures, lesson.stem, cell)


def problems(project: Project) -> list[str]:
    """What is wrong with what cells print, and whether the page is in step. Writes nothing.

    Args:
        project: the course.

    Returns:
        One line for each finding.

    Raises:
        LessonError: see `read_claims`.
    """
    text, path = page(project), project.root / PAGE
    if text is None:
        return []
    known, found = {claim.id for claim in read_claims(project)}, []
    for one in read_shown(project):
        where = f"lessons/{one.stem}.py, cell {one.cell!r}"
        if one.id not in known:
            found.append(f"{where}: {one.id} is no claim of {FILE}.")
        if one.verdict == NO_VERDICT:
            found.append(f"{where}: the line that begins with {one.id!r} {RULE}.")
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        found.append(f"{PAGE}: the table of claims is out of step. Run `course claims`.")
    return found


def rows(project: Project) -> list[tuple[Claim, Shown | None]]:
    """Each claim with each cell that shows something about it.

    Args:
        project: the course.

    Returns:
        In the order of the claims; a claim that no cell takes up once, with None.

    Raises:
        LessonError: see `read_claims`.
    """
    shown = read_shown(project)
    return [(claim, one) for claim in read_claims(project)
            for one in [each for each in shown if each.id == claim.id] or [None]]


def table(project: Project, folder: str, *, short: bool = False) -> str:
    """The table in Markdown.

    Args:
        project: the course.
        folder: path from the page to solutions/, such as "../solutions".
        short: no column of figures.

    Returns:
        A row for each claim and cell; the article's words in the first row of a claim.

    Raises:
        LessonError: see `read_claims`.
    """
    heads = ["claim", "the article says", "verdict", *["measured here"] * (not short), "cell"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    before = None
    for claim, one in rows(project):
        first = claim.id != before
        before = claim.id
        cells = [claim.id, claim.says] if first else ["", ""]
        if one is None:
            cells += ["open", *["no lesson shows it yet"] * (not short), ""]
        else:
            verdict = f"{one.verdict} ({one.part})" if one.part else one.verdict
            link = f"[{key_of(one.stem)}: {one.cell}]({folder}/{one.stem}.ipynb#cell-id={one.cell})"
            cells += [f"**{_plain(verdict)}**", *[_plain(one.figures)] * (not short), link]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text of an output as Markdown that shows the same."""
    return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", text)


def page(project: Project) -> str | None:
    """Content of the page with the whole table.

    Args:
        project: the course.

    Returns:
        Markdown; None where the course has no claims.

    Raises:
        LessonError: see `read_claims`.
    """
    if not read_claims(project):
        return None
    return f"""\
# The article's claims, and what was measured instead

The course grew out of an article for beginners. Its claims stand here in its words. Verdict and figures are
what the named cell of the solved lesson printed when it was last executed; timings are of that machine.
*Open* means that no lesson takes the claim up yet. `course claims` writes this page.

{table(project, "../solutions")}
"""


def fill(project: Project, source: Path, cell: str, text: str) -> str:
    """Replace `{claim:C4}` of a markdown cell by the article's words, `{claims}` by the table.

    Args:
        project: the course.
        source: path of the lesson's source, for the error.
        cell: name of the cell, for the error.
        text: of the cell.

    Returns:
        Markdown.

    Raises:
        LessonError: there is no such claim; see also `read_claims`.
    """
    if TABLE in text:
        text = text.replace(TABLE, table(project, "../solutions"))
    if not WORDS.search(text):
        return text
    says = {claim.id: claim.says for claim in read_claims(project)}

    def words(found: re.Match[str]) -> str:
        if found[1] not in says:
            raise LessonError(source, cell, f"there is no claim {found[1]!r} in {FILE}.")
        return f"*{says[found[1]]}*"

    return WORDS.sub(words, text)


def shows_table(lesson: Path) -> bool:
    """Whether a lesson's prose holds the table, so that it changes with any other lesson's outputs.

    Args:
        lesson: path of its source.

    Returns:
        True when it does.
    """
    return TABLE in lesson.read_text(encoding="utf-8")
