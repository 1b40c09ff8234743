"""The sources of the site's pages. What the README, docs/ or a record has already is taken from there."""

import ast
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from authoring import generate, sync, working_time
from authoring.project import LessonError, Part, Project
from authoring.site import lessons as lesson_pages
from course_utils import lesson_needs, records
from course_utils.errors import read_json

# Pages that are files of the repository: file -> page. Those that do not exist (yet) are left out.
FILES = {"docs/claims.md": "claims", "docs/glossary.md": "glossary", "docs/teaching.md": "teaching",
         "docs/where-it-runs.md": "where-it-runs",
         "docs/data-and-models.md": "data-and-models", "CONTRIBUTING.md": "contributing",
         "AGENTS.md": "assistants"}
MADE_OF = {"README.md": "start.md", "docs/picture.png": "picture.png"}
START = ("Start", "How to work through it", "Without a network", "Licences")  # sections of the README
BAR = ("start", "lessons/index", "claims", "glossary", "teaching", "recorded", "where-it-runs", "api/index",
       "data-and-models", "contributing", "assistants")  # pages in the order of the site's bar
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
BOLD = re.compile(r"\*\*([^*]+?)\*\*")
# An entry of the glossary, to its last line.
ENTRY = re.compile(r"^- (\*\*[^*\n]+\*\*(?:, \*\*[^*\n]+\*\*)*):(?:[^\n]|\n(?=  ))+", re.MULTILINE)
MODULE = """\
{name}
{line}

.. automodule:: {name}
   :members:
   :member-order: bysource
{imported}"""
LIBRARY = """\
The library
===========

Lessons import ``course_utils``, a small library made to be read: each function has a link to its source.

.. toctree::
   :maxdepth: 1

"""
RECORDED = """\
# Recorded machines

What a learner's machine cannot measure, or not in two minutes, was measured once and is kept with its
machine, versions, date and commit. The lessons show these records beside what you measure. A commit with `+`
had changes that were not committed yet. A rented machine knows its processor only by the name that its host
passes on. Memory is in GB of 10^9 bytes.

"""
NOT_IN_API = {"exercises", "lesson_setup", "lesson_needs"}  # what is asked; what notebooks begin with


def write_all(project: Project) -> dict[str, str | bytes]:
    """Every source of the site.

    Args:
        project: the course.

    Returns:
        Path of a source -> its content.

    Raises:
        LessonError: a lesson or the README is not as it must be.
    """
    lessons = [generate.read_lesson(project, path) for path in project.lessons()]
    made = {
        "start.md": relink(project, "README.md", "start", _start(project)),
        "lessons/index.md": _lesson_index(project, lessons),
        "recorded.md": _recorded(project),
        **dict(_api(project)),
        "picture.png": project.picture_file.read_bytes(),
    }
    files = [project.root / file for file in FILES if (project.root / file).exists()]
    places = lesson_pages.linked(path.read_text(encoding="utf-8")
                                 for path in [*files, *project.notebooks("solutions")])
    for lesson in lessons:
        made[f"lessons/{lesson.stem}.ipynb"] = lesson_pages.page(project, lesson.stem, places)
    for file, page in FILES.items():
        if (project.root / file).exists():
            text = (project.root / file).read_text(encoding="utf-8")
            text = _with_first_places(text, project, lessons) if page == "glossary" else text
            made[f"{page}.md"] = relink(project, file, page, text)
    listed = [page for page in BAR if any(f"{page}{ending}" in made for ending in (".md", ".rst"))]
    made["index.md"] = _landing(project, lessons, listed)
    return made


def read_section(project: Project, title: str) -> str:
    """A section of the README.

    Args:
        project: the course.
        title: of the section; "" for what stands before the first one.

    Returns:
        Markdown with its heading.

    Raises:
        LessonError: the README has no such section.
    """
    text = (project.root / "README.md").read_text(encoding="utf-8")
    for section in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        heading = section.partition("\n")[0].removeprefix("## ") if section.startswith("## ") else ""
        if heading == title:
            return section.strip()
    raise LessonError("README.md", None, f"has no section {title!r}, which the site shows.")


def relink(project: Project, file: str, page: str, text: str) -> str:
    """Let the links of a file of the repository lead to pages of the site, or else into the repository.

    Args:
        project: the course.
        file: the file, from the root.
        page: name of the page that shows it.
        text: its Markdown.

    Returns:
        The text with other links.
    """

    def target(found: re.Match[str]) -> str:
        path, place = posixpath.normpath(posixpath.join(posixpath.dirname(file), found[1])), found[2] or ""
        lesson = re.fullmatch(r"(?:notebooks|solutions)/(\d\d_\w+\.ipynb)", path)
        if lesson and place.startswith("#cell-id="):
            return "#" + lesson_pages.place(lesson[1].removesuffix(".ipynb"), place.removeprefix("#cell-id="))
        if lesson:
            inside = f"lessons/{lesson[1]}"
        elif path in FILES and (project.root / path).exists():
            inside = f"{FILES[path]}.md"
        elif path in MADE_OF:
            inside = MADE_OF[path]
        else:
            return f"{project.repository}/blob/{project.ref}/{path}{place}"
        return posixpath.relpath(inside, posixpath.dirname(page) or ".") + place

    return LINK.sub(target, text)


def _start(project: Project) -> str:
    """The README's sections for learners, without its HTML comments; the first one's title is the page's."""
    text = "\n\n".join(read_section(project, title) for title in START)
    return re.sub(r"<!--.*?-->\n?", "", text.removeprefix("#"), flags=re.DOTALL)


# --- the first page and the lessons -------------------------------------------------------------------------


def _landing(project: Project, lessons: list[generate.Lesson], listed: list[str]) -> str:
    """The first page: what the course is, its map, a picture."""
    head, _, rest = read_section(project, "").partition("<!-- picture:begin -->")
    picture = relink(project, "README.md", "index", rest.partition("<!-- picture:end -->")[0].strip())
    first = lessons[0]
    begin = f"**[Start](start.md)** or look at the first lesson: [{first.title}](lessons/{first.stem}.ipynb)."
    bar = "\n".join(["```{toctree}", ":hidden:", "", *listed, "```"])
    return "\n\n".join([head.strip(), begin, "## The map of the course", _map(project, lessons),
                        "## One of its pictures", picture, bar]) + "\n"


def _map(project: Project, lessons: list[generate.Lesson]) -> str:
    """A box for each part: what one can do after it, and its lessons with minutes and goal."""
    costs = sync.read_costs(project)
    by_key = {lesson.key: lesson for lesson in lessons}
    boxes = []
    for part in project.parts:
        rows = []
        for number, key in enumerate(part.lessons, start=1):
            lesson, cost = by_key[key], costs.get(key)
            minutes = f", {cost['minutes']:.1f} minutes of the machine" if cost else ""
            rows.append(f"{number}. [{lesson.number}: {lesson.title}](lessons/{lesson.stem}.ipynb)\\\n"
                        f"   {lesson.goal}. {working_time.of(project, lesson.path)}{minutes}.")
        boxes.append(f"::::{{container}} course-part\n:::{{rubric}} Part {part.number}: {part.title}\n"
                     f":heading-level: 3\n:::\n\n{part.learn}\n\n" + "\n".join(rows) + "\n::::")
    return ":::::{container} course-map\n" + "\n\n".join(boxes) + "\n:::::"


def _lesson_index(project: Project, lessons: list[generate.Lesson]) -> str:
    """The lesson table, and a list for each part, which the left bar shows."""
    table = sync.lesson_table(project, lessons, sync.read_costs(project))
    needs = "\n".join(f"- *{need}*: {text}." for need, text in lesson_needs.NEEDS.items())
    return "\n\n".join([
        "# Lessons",
        "A lesson asks you to predict a number, derives it, and measures it. Here you read it with the "
        "author's outputs; a solution is folded behind the exercise that it answers. [Start](../start.md) "
        "says how to run it on your own machine.",
        "Minutes and memory were measured when the lesson was last executed, on two CPU cores with a warm "
        "cache.",
        relink(project, "README.md", "lessons/index", table),
        "## What a model needs",
        "Another model may stand for the embedded one. A lesson tries what it needs right after loading it.",
        needs,
        *(_part_list(part, lessons) for part in project.parts),
    ]) + "\n"


def _part_list(part: Part, lessons: list[generate.Lesson]) -> str:
    stems = [lesson.stem for lesson in lessons if lesson.key in part.lessons]
    caption = json.dumps(f"Part {part.number}: {part.title}")
    return "\n".join(["```{toctree}", f":caption: {caption}", ":hidden:", "", *stems, "```"])


def _with_first_places(text: str, project: Project, lessons: list[generate.Lesson]) -> str:
    """The glossary, each entry ("- **term**: ...") with a link to the lesson that explains it first.

    A lesson explains a term where its prose has it in bold.
    """
    places = {}
    for lesson in lessons:
        for cell in lesson.cells:
            for term in BOLD.findall(cell.source) if cell.type == "markdown" else []:
                places.setdefault(" ".join(term.split()).lower(), lesson)

    def with_place(found: re.Match[str]) -> str:
        names = [name.lower() for name in BOLD.findall(found[1])]
        found_in = [places[name] for name in names if name in places]
        lesson = min(found_in, key=lambda lesson: lesson.number, default=None)
        link = f" ([{lesson.title}](../notebooks/{lesson.stem}.ipynb))" if lesson else ""
        return found[0].rstrip() + link

    return ENTRY.sub(with_place, text)


# --- recorded machines --------------------------------------------------------------------------------------


def _recorded(project: Project) -> str:
    """Where each record comes from, grouped by machine."""
    machines: dict[str, list[str]] = {}
    for path in sorted(project.costs_file.parent.glob("*.json")):
        record = read_json(path, records.ADVICE)
        if "provenance" not in record:
            continue  # the lessons' costs: the lesson table shows them
        card = record["provenance"]
        gpu = f", {card['gpu']} with {card['gpu_memory'] / 1e9:.0f} GB" if card.get("gpu") else ""
        machine = f"{card['cpu']}, {card['cores']} cores, {card['memory'] / 1e9:.0f} GB{gpu}"
        file = f"[{path.stem}](recorded/{path.name})"
        what = [card["date"], f"`{card['commit']}`", card["python"], card["torch"], card["transformers"],
                str(card["threads"])]
        machines.setdefault(machine, []).append(" | ".join(["", file, *what, ""]).strip())
    head = "| record | date | commit | Python | torch | transformers | threads |\n" + 7 * "|---" + "|"
    tables = [f"## {machine}\n\n{head}\n" + "\n".join(rows) for machine, rows in sorted(machines.items())]
    return relink(project, "README.md", "recorded", RECORDED + "\n\n".join(tables) + "\n")


# --- the library --------------------------------------------------------------------------------------------


def _api(project: Project) -> Iterator[tuple[str, str]]:
    """A page for each module of course_utils that offers something, and their list."""
    names = []
    for name, passes_on in _modules(project.root / "course_utils", project.root):
        names.append(name)
        imported = ""
        if passes_on:
            imported = f"   :imported-members:\n   :exclude-members: {_foreign(project, name)}\n"
        yield f"api/{name}.rst", MODULE.format(name=name, line="=" * len(name), imported=imported)
    yield "api/index.rst", LIBRARY + "".join(f"   {name}\n" for name in names)


def _foreign(project: Project, package: str) -> str:
    """Names that a package passes on from outside of it: they are described where they belong."""
    path = project.root.joinpath(*package.split("."), "__init__.py")
    imports = [node for node in ast.parse(path.read_text(encoding="utf-8")).body
               if isinstance(node, ast.ImportFrom) and not node.module.startswith(f"{package}.")]
    return ", ".join(alias.asname or alias.name for node in imports for alias in node.names)


def _modules(folder: Path, root: Path) -> Iterator[tuple[str, bool]]:
    """Name of each module to show, and whether it is a package that passes on names of its modules.

    Such a package, one with `__all__`, stands for all that is in its folder.
    """
    for path in sorted(folder.iterdir()):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        if path.stem in NOT_IN_API or path.stem.startswith("_"):
            continue
        if path.suffix == ".py":
            yield name, False
        elif (path / "__init__.py").is_file():
            passes_on = "__all__" in (path / "__init__.py").read_text(encoding="utf-8")
            yield name, passes_on
            if not passes_on:
                yield from _modules(path, root)
