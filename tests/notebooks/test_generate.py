"""Notebooks generated from a lesson's source: what is in them, and that they are the same every time."""

import ast
import os
import subprocess
import sys

import pytest
from nbgrader.nbgraderformat import MetadataValidator
from nbgrader.preprocessors import ClearSolutions

from authoring import generate, library
from authoring.project import LessonError, Project

LESSON = "lessons/90_sample.py"


def cells(project, kind, costs=None):
    lesson = generate.read_lesson(project, project.root / LESSON)
    return {cell.id: cell for cell in generate.make_notebook(project, lesson, kind, costs or {}).cells}


def generated_text(project, kind):
    lesson = generate.read_lesson(project, project.root / LESSON)
    return generate.to_text(generate.make_notebook(project, lesson, kind, {}))


def test_the_title_cell_is_read_as_jupytext_reads_it(unsynced):
    for project in (unsynced, Project()):
        for path in project.lessons():
            title, lesson = generate.read_title(project, path), generate.read_lesson(project, path)
            assert title.cells == lesson.cells[:1] and title.goal == lesson.goal != ""


def test_lessons_are_listed_without_what_only_authors_have():
    script = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(['jupytext', 'nbgrader', 'pytest'])\n"
        "sys.argv = ['course', 'list']\n"
        "from authoring.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    assert all(generate.read_title(Project(), path).goal in done.stdout for path in Project().lessons())


@pytest.mark.parametrize("kind", ["notebooks", "solutions"])
def test_the_same_bytes_every_time_and_in_another_process(unsynced, kind):
    script = (
        "import sys; from pathlib import Path; from authoring.project import Project; "
        "from tests.notebooks.test_generate import generated_text; "
        "sys.stdout.buffer.write(generated_text(Project(Path(sys.argv[1])), sys.argv[2]).encode())"
    )
    texts = {generated_text(unsynced, kind).encode(), generated_text(unsynced, kind).encode()}
    for seed in ("1", "271828"):
        texts.add(
            subprocess.run(
                [sys.executable, "-c", script, str(unsynced.root), kind],
                env=os.environ | {"PYTHONHASHSEED": seed},
                capture_output=True,
                check=True,
            ).stdout
        )
    assert len(texts) == 1


def test_stub_keeps_signature_and_docstring_and_tells_the_effort(unsynced):
    stub = cells(unsynced, "notebooks")["ex-halve"].source
    assert stub == (
        "def halve(values, times=1):\n"
        '    """Halve each value `times` times.\n'
        "\n"
        "    Returns a list.\n"
        '    """\n'
        "    # About 2 lines.\n"
        "    raise NotImplementedError"
    )


def test_solution_is_the_library_s_source_between_the_marks(unsynced):
    solution = cells(unsynced, "solutions")["ex-halve"].source
    lines = [line for line in solution.splitlines() if "SOLUTION" not in line]
    assert "\n".join(lines) in (unsynced.root / "sample_library.py").read_text()
    assert solution.splitlines()[5:7] == ["    ### BEGIN SOLUTION", "    # Shifting would not do for floats."]
    assert solution.endswith("for value in values]\n    ### END SOLUTION")


def test_each_method_of_a_class_is_a_stub(unsynced):
    stub = cells(unsynced, "notebooks")["ex-counter"].source
    assert stub.count("raise NotImplementedError") == 2
    assert "step = 1" in stub and "# About 1 line.\n" in stub and "self.value" not in stub


@pytest.mark.parametrize(
    ("fields", "comment"),
    [
        ('unit="bytes"', "# In bytes; accepted: within 5 % of the answer."),
        ('unit="MB", rtol=0.005', "# In MB; accepted: within 0.5 % of the answer."),
        ("rtol=0", "# Accepted: the exact number."),
        ('answer="decode"', ""),
        ("rtol=tolerance()", ""),
    ],
)
def test_a_prediction_states_how_close_it_must_come(unsynced, fields, comment):
    module = unsynced.root / "course_utils/exercises/sample.py"
    module.parent.mkdir(parents=True)
    module.write_text(f'EXERCISES = [Prediction(id="bits"), Prediction(id="bytes", {fields})]\n')
    for kind in ("notebooks", "solutions"):
        lines = cells(unsynced, kind)["predict-bytes"].source.splitlines()
        assert lines[0] == (comment or lines[0]) and ("ccepted" in lines[0]) is bool(comment)
        assert any(line.startswith("prediction = ") for line in lines)


def test_predictions_and_inline_exercises(unsynced):
    stubs, solved = cells(unsynced, "notebooks"), cells(unsynced, "solutions")
    assert stubs["predict-bytes"].source == "prediction = None"
    assert "prediction = 4e3  # bytes" in solved["predict-bytes"].source
    assert "# About 1 line." in stubs["ex-double"].source and "x + x" not in stubs["ex-double"].source
    assert solved["ex-double-check"].source.endswith('check("sample.double", double)')


def test_no_solution_is_left_in_the_learner_s_notebook(unsynced):
    for cell in cells(unsynced, "notebooks").values():
        assert "SOLUTION" not in cell.source
        if cell.id.startswith("ex-") and not cell.id.endswith("-check"):
            ast.parse(cell.source)


@pytest.mark.parametrize("kind", ["notebooks", "solutions"])
def test_nbgrader_s_own_validator_accepts_the_metadata(unsynced, kind):
    lesson = generate.read_lesson(unsynced, unsynced.root / LESSON)
    notebook = generate.make_notebook(unsynced, lesson, kind, {})
    MetadataValidator().validate_nb(notebook)
    graded = [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("grade")]
    assert [cell.metadata.nbgrader.points for cell in graded] == [1, 2, 1, 3]
    assert all(cell.metadata.nbgrader.locked and not cell.metadata.nbgrader.solution for cell in graded)


def test_nbgrader_clears_our_solutions_into_code_that_runs(unsynced):
    lesson = generate.read_lesson(unsynced, unsynced.root / LESSON)
    notebook = generate.make_notebook(unsynced, lesson, "solutions", {})
    cleared, _ = ClearSolutions().preprocess(notebook, {})
    by_id = {cell.id: cell.source for cell in cleared.cells}
    space = {}
    exec(by_id["ex-halve"] + "\n" + by_id["ex-counter"], space)
    with pytest.raises(NotImplementedError):
        space["halve"]([1])
    with pytest.raises(NotImplementedError):
        space["Counter"](1)


def test_header_setup_and_parameters(unsynced):
    notebook = cells(unsynced, "notebooks")
    assert list(notebook)[:3] == ["title", "setup", "parameters"]
    title = notebook["title"].source
    assert title.startswith("# Lesson 90: A sample\n\n[Open in Colab](https://colab")
    assert "github/example/sample-course/blob/v1.2/notebooks/90_sample.ipynb" in title
    assert "mybinder.org/v2/gh/example/sample-course/v1.2?urlpath=lab/tree/notebooks/90_sample.ipynb" in title
    assert "not measured yet" in title and "A third paragraph." in title
    comment, line = notebook["setup"].source.split("\n")
    assert comment.startswith("# On your own machine") and "sample-course@v1.2" in line
    assert notebook["parameters"].metadata.tags == ["parameters"]
    cost = {"minutes": 1.234, "peak_gb": 1.56, "date": "2026-11-23", "cores": 2, "cpu": "X", "torch": "2.1"}
    measured = cells(unsynced, "solutions", {"sample": cost})["title"].source
    assert "about 1.2 minutes and 1.6 GB of memory (measured 2026-11-23 on 2 cores, X, torch 2.1)" in measured


def test_kernelspec_has_its_language(unsynced):
    lesson = generate.read_lesson(unsynced, unsynced.root / LESSON)
    metadata = generate.make_notebook(unsynced, lesson, "notebooks", {}).metadata
    assert metadata.kernelspec == {
        "display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"
    }  # fmt: skip


def test_cells_say_how_their_numbers_are_compared(unsynced):
    notebook = cells(unsynced, "solutions")
    assert notebook["measured"].source.startswith("# compared within 2 %\n")
    assert notebook["measured"].metadata.course.tolerance == 0.02
    assert notebook["timed"].source.startswith("# timing, not compared\n")
    assert notebook["timed"].metadata.tags == ["nbval-ignore-output"]


def broken(project, old, new):
    path = project.root / LESSON
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    lesson = generate.read_lesson(project, path)
    generate.make_notebook(project, lesson, "notebooks", {})
    generate.make_notebook(project, lesson, "solutions", {})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name="timed"', 'name="measured"', "90_sample.py, cell 'measured': the name is taken"),
        ('name="timed"', 'name="ex-halve-check"', "cell 'ex-halve-check': the name is taken"),
        ('name="timed"', 'name="setup"', "cell 'setup': the name is taken"),
        ('name="timed"', 'name="no spaces"', "cell 'no spaces': needs name="),
        ('name="timed"', "", "cell 'number 9': needs name="),
        ("sample_library:halve", "sample_library:third", "cell 'ex-halve': .*no function or class 'third'"),
        ("sample_library:halve", "no_library:halve", "cell 'ex-halve': 'no_library:halve' is no function"),
        ("sample_library:halve", "../sample_library:halve", "cell 'ex-halve': .*is no function"),
        ("sample_library:halve", "halve", "cell 'ex-halve': .*is no function"),
        ("points=2\n", "points=2\nx = 1\n", "cell 'ex-halve': must be empty"),
        ("points=2", "points=-2", "cell 'ex-halve': points must be"),
        ('predict="sample.bytes"', 'predict="other.bytes"', "cell 'predict-bytes': .*must be \"sample.\""),
        ("tolerance=0.02", 'tolerance="2 %"', "cell 'measured': tolerance must be a number"),
        ("tolerance=0.02", "tolerence=0.02", "cell 'measured': unknown tolerence"),
        ("tolerance=0.02", "tolerance=0.02 timing=true", "cell 'measured': timing cells are not compared"),
        ("    ### END SOLUTION\n\n", "\n", "cell 'ex-double': ### BEGIN SOLUTION without ### END"),
        ("    ### BEGIN SOLUTION\n    return x", "    return x", "cell 'ex-double'"),
        ("    ### BEGIN SOLUTION\n    return x", "    # BEGIN SOLUTION\n    return x", "cell 'ex-double'"),
        ("# # A sample", "# A sample", "cell 'title': the first cell must be markdown"),
        ('name="title"', 'name="start"', "cell 'start': the first cell must be markdown"),
    ],
)
def test_a_mistake_in_the_source_names_file_and_cell(unsynced, old, new, message):
    with pytest.raises(LessonError, match=message):
        broken(unsynced, old, new)


def test_a_function_passed_on_by_a_package_is_found(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("from package.part import work as job\nfrom .part import other\n")
    source = "import math\n\n\n@decorator\ndef work():\n    return 1\n\n\ndef other():\n    pass\n"
    (package / "part.py").write_text(source)
    assert library.find_source(tmp_path, "package:job") == "@decorator\ndef work():\n    return 1"
    assert library.find_source(tmp_path, "package:other").startswith("def other")


def test_bodies_are_found_under_long_signatures_and_comments():
    source = (
        "def work(\n"
        "    a,\n"
        "    # a comment inside the signature\n"
        "    b='no docstring',\n"
        "):\n"
        "    # a remark\n"
        "    @cached\n"
        "    def inner():\n"
        '        return """text\n'
        'not indented"""\n'
        "    return inner()"
    )
    marked = library.mark_solution(source)
    assert library.stub(marked) == (
        "def work(\n    a,\n    # a comment inside the signature\n    b='no docstring',\n):\n"
        "    # About 5 lines.\n    raise NotImplementedError"
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(x): return x", "lines of its own"),
        ('def f(x):\n    """Only this."""', "no body"),
        ("class A:\n    x = 1", "no method"),
    ],
)
def test_functions_that_cannot_be_exercises(source, message):
    with pytest.raises(ValueError, match=message):
        library.mark_solution(source)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("x = 1  # a remark", "x = 1", True),
        ("# first\nx = 1", "x = 1", True),
        ('def f():\n    """Says."""\n    return 1',
         'def f():\n    """Says\n\n    more."""\n    return 1', True),
        ('def f():\n    """Says."""\n    return 1', "def f():\n    return 1", True),
        ("def f(a, *b, c=1):\n    return a",
         "def f(a: int, *b: str, c: int = 1) -> int:\n    return a", True),
        ("def f(\n    a: 'Long',  # first\n    b=1,\n):\n    return a",
         "def f(a, b=1):\n    return a", True),
        ("def f(a):\n    def g(b: int): return b\n    return g",
         "def f(a: int):\n    def g(b: int): return b\n    return g", True),
        ("def f(a):\n    @g\n    def h(b: int):\n        pass",
         "def f(a):\n    @g\n    def h(b):\n        pass", True),
        ("def f(a=1):\n    return a", "def f(a=2):\n    return a", False),
        ("def f(a, b):\n    return a", "def f(b, a):\n    return a", False),
        ("def f(a): return 1", "def f(a): return 2", False),
        ("def f(\n  a): return 1", "def f(\n  a): return 2", False),
        ("x: int = 1", "x: int = 2", False),
        ('x = "# no remark"', 'x = "# a remark"', False),
        ('x = """a\n\nb"""', 'x = """a\nb"""', False),
        ('"""shown"""', '"""shown as output"""', False),
        ('def f(): "one"', 'def f(): "two"', False),
        ("%time x = 1  # a", "%time x = 1", False),
        ("x = [1,\n  2]", "x = [1,\n  3]", False),
    ],
)
def test_only_what_is_computed_counts_as_code(one, other, same):
    assert (library.without_comments(one) == library.without_comments(other)) is same
