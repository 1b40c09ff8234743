"""The solutions of the lessons count as answers of one's own, the library's own functions do not."""

import ast

import pytest

from authoring import generate, library
from authoring.project import Project
from course_utils import checking

PROJECT = Project()
LESSONS = {lesson.key: lesson
           for lesson in (generate.read_lesson(PROJECT, path) for path in PROJECT.lessons())}
ASKED = [
    (lesson.key, cell.options["exercise"])
    for lesson in LESSONS.values()
    for cell in lesson.cells
    if cell.options.get("exercise", "inline") != "inline"
]


def imported(lesson):
    """What the lesson's notebook imports: the solution's cell finds nothing else."""
    notebook = generate.make_notebook(PROJECT, lesson, "solutions", {})
    names = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            imports = [node for node in ast.parse(cell.source).body
                       if isinstance(node, ast.Import | ast.ImportFrom)]
            exec(compile(ast.Module(imports, []), "imports", "exec"), names)
    return names


@pytest.mark.parametrize(("key", "target"), ASKED)
def test_a_solution_passes_as_its_own_and_the_function_it_was_taken_from_does_not(key, target):
    name = target.partition(":")[2]
    reference = checking.find(f"{key}.{name}").reference
    names = imported(LESSONS[key])
    source = library.mark_solution(library.find_source(PROJECT.root, target))
    exec(compile(source, "cell of a notebook", "exec"), names)
    solved = checking.judge(f"{key}.{name}", names[name])
    assert (solved.status, solved.library) == (checking.PASSED, False), solved.message
    copied = checking.judge(f"{key}.{name}", reference)
    assert (copied.status, copied.library) == (checking.PASSED, True), copied.message
