"""The page that JupyterLab opens on, notebooks/index.ipynb: the map of the course, the learner's progress."""

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from authoring import generate, links, working_time
from authoring.project import Project

NAME = "index.ipynb"
PROGRESS = "progress"  # id of the cell that shows how far the learner is
TITLE = """\
# Making LLM inference cheaper

Open a lesson below and go from top to bottom: predict a number, derive it, measure it. An exercise that you
leave open stops nothing. **The outputs that a lesson opens with are ours**, from the machine that its header
names; what you run replaces them.

How far are you? Save the lessons that you work on, then run the next cell (Shift+Enter). It reads the
notebooks beside this one."""


def make(project: Project, lessons: list[generate.Lesson], costs: dict[str, dict]) -> NotebookNode:
    """The start page.

    Args:
        project: the course.
        lessons: all lessons in order.
        costs: measured minutes and memory by key.

    Returns:
        The notebook, the same to the byte each time.
    """
    setup = links.setup_line(project.repository, project.ref)
    cells = [
        new_markdown_cell(TITLE, id="title"),
        new_code_cell(f"{setup}\nfrom course_utils import progress; progress.show()", id=PROGRESS),
        new_markdown_cell(f"# The map\n\n{_map(project, lessons, costs)}", id="map"),
    ]
    cells[-1].source += f"\n\n{working_time.sentence(project)}"
    metadata = {"kernelspec": dict(generate.KERNEL), "language_info": {"name": "python"}}
    return new_notebook(cells=cells, metadata=metadata)


def _map(project: Project, lessons: list[generate.Lesson], costs: dict[str, dict]) -> str:
    """For each part what one learns, and its lessons with minutes and goal."""
    by_key = {lesson.key: lesson for lesson in lessons}
    parts = []
    for part in project.parts:
        rows = ["| lesson | your time | minutes | memory | what you measure |", "|---|---|---|---|---|"]
        for key in part.lessons:
            lesson, cost = by_key[key], costs.get(key)
            took = f"{cost['minutes']:.1f} | {cost['peak_gb']:.1f} GB" if cost else "- | -"
            name = f"[{lesson.number}: {lesson.title}]({lesson.stem}.ipynb)"
            rows.append(f"| {name} | {working_time.of(project, lesson.path)} | {took} | {lesson.goal} |")
        above = [f"## Part {part.number}: {part.title}", *[part.learn] * bool(part.learn)]
        parts.append("\n\n".join([*above, "\n".join(rows)]))
    return "\n\n".join(parts)
