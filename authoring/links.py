"""How lessons point to one another, to Colab and to Binder, without a number being typed.

Prose says `{lesson:awq}`; the generated notebooks say "lesson" and its number, linked to the file beside.
"""

import re
from pathlib import Path

from authoring.project import LessonError, Project, key_of, number_of

REFERENCE = re.compile(r"\{([Ll])esson:([^{}]*)\}")
# The word and its number, also with a line break or a comment sign of the source between the two.
TYPED = re.compile(r"\blessons?\b[\s#]+\d+", re.IGNORECASE)
ADVICE = {
    "markdown": "write {lesson:key}.",
    "code": 'say what the lesson is about ("the lesson on GPTQ"); {lesson:key} works in prose only.',
}


def typed_number(text: str) -> str | None:
    """The first place where a text names a lesson by a number.

    Args:
        text: prose or source.

    Returns:
        The words, on one line; None when it names none so.
    """
    found = TYPED.search(text)
    return " ".join(found[0].replace("#", " ").split()) if found else None


def resolve(project: Project, source: Path, cell: str, text: str) -> str:
    """Replace each `{lesson:key}` of a markdown cell by a link to that lesson's notebook.

    Args:
        project: the course.
        source: path of the lesson's source, for the error.
        cell: name of the cell, for the error.
        text: of the cell.

    Returns:
        Markdown.

    Raises:
        LessonError: there is no such lesson.
    """

    def link(found: re.Match[str]) -> str:
        try:
            target = project.lesson(found[2])
        except ValueError as error:
            raise LessonError(source, cell, str(error)) from error
        return f"[{found[1]}esson {number_of(target)}]({target.stem}.ipynb)"

    return REFERENCE.sub(link, text)


def place(project: Project, source: Path) -> str:
    """Where a lesson stands in the course.

    Args:
        project: the course.
        source: path of the lesson's source.

    Returns:
        Its part, and links to the lessons before and after, in Markdown; "" when the course has no parts.
    """
    part = next((part for part in project.parts if key_of(source) in part.lessons), None)
    if part is None:
        return ""
    position = part.lessons.index(key_of(source)) + 1
    of = len(project.parts), part.title, position, len(part.lessons)
    text = ["Part {} of {}, {}: lesson {} of {}.".format(part.number, *of)]
    stems = [path.stem for path in project.lessons()]
    here = stems.index(source.stem)
    for word, n in (("Before", here - 1), ("After", here + 1)):
        if 0 <= n < len(stems):
            text.append(f"{word} it: [{_title(project, stems[n])}]({stems[n]}.ipynb).")
    return " ".join(text)


def _title(project: Project, stem: str) -> str:
    """A lesson's title, read from the first heading of its source."""
    for line in (project.root / "lessons" / f"{stem}.py").read_text(encoding="utf-8").splitlines():
        if line.startswith("# # "):
            return line.removeprefix("# # ").strip()
    return stem


def renumber(project: Project, text: str) -> str:
    """Bring the links of a page to lessons' notebooks and sources in step with the lessons' numbers.

    Args:
        project: the course.
        text: of the page.

    Returns:
        The text with the links as the lessons are numbered now.
    """
    by_key = {key_of(path): path.stem for path in project.lessons()}

    def stem(found: re.Match[str]) -> str:
        return f"{found[1]}/{by_key.get(found[3], f'{found[2]}_{found[3]}')}.{found[4]}"

    return re.sub(r"\b(notebooks|solutions|lessons)/(\d\d)_([a-z][a-z0-9_]*)\.(ipynb|py)\b", stem, text)


def setup_line(repository: str, ref: str) -> str:
    """Source of the cell that begins every notebook.

    Args:
        repository: its address.
        ref: branch or tag to install from.

    Returns:
        A comment and one line of code.
    """
    return (
        "# On your own machine: does nothing. On Colab: installs the course; if that fails, run it again.\n"
        'import importlib.util; importlib.util.find_spec("course_utils") or get_ipython().system('
        f'"pip install -q --no-deps git+{repository}@{ref}"); '
        "from course_utils import lesson_setup; lesson_setup.prepare()"
    )


def badges(repository: str, ref: str, path: str) -> str:
    """Links that open a notebook in Colab and in Binder. Words, no badges: a picture would come from outside.

    Args:
        repository: its address.
        ref: branch or tag to open.
        path: of the notebook in the repository.

    Returns:
        Markdown, one line.
    """
    name = repository.removeprefix("https://github.com/").removesuffix(".git").strip("/")
    colab = f"https://colab.research.google.com/github/{name}/blob/{ref}/{path}"
    binder = f"https://mybinder.org/v2/gh/{name}/{ref}?urlpath=lab/tree/{path}"
    return f"[Open in Colab]({colab}) | [Open in Binder]({binder})"
