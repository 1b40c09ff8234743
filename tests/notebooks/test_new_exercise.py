"""`course new-exercise`: what it writes fails until it is filled in, and passes then."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from authoring import generate, new_exercise
from authoring.new_exercise import new_exercise as write
from authoring.project import Project

REPOSITORY = Project().root
MODULE, TEST = "course_utils/exercises/sample.py", "tests/exercises/test_sample.py"


def read(project, name):
    return (project.root / name).read_text()


def files(project):
    return {path: path.read_bytes() for path in project.root.rglob("*") if path.is_file()}


def cells(project, lesson="90_sample"):
    path = project.root / "lessons" / f"{lesson}.py"
    return {cell.name: cell for cell in generate.read_lesson(project, path).cells}


def value_of(text, variable):
    (value,) = [node.value for node in ast.parse(text).body
                if isinstance(node, ast.Assign) and node.targets[0].id == variable]
    return value


def test_all_three_places_are_written(unsynced):
    said = write(unsynced, "sample", "square_root", function="sample_library:square_root", points=3)
    names = list(cells(unsynced))
    assert names.index("ex-square-root") == names.index("recap") - 1
    assert cells(unsynced)["ex-square-root"].options == {
        "exercise": "sample_library:square_root", "points": 3}
    module = read(unsynced, MODULE)
    assert "import sample_library" in module and "reference=sample_library.square_root" in module
    assert ast.unparse(value_of(module, "EXERCISES")) == "[SQUARE_ROOT]"
    for variable in ("WRONG", "RIGHT"):
        assert ast.literal_eval(value_of(read(unsynced, TEST), variable)) == {"square_root": []}
    assert said[:3] == [f"wrote {MODULE}", f"wrote {TEST}", "wrote lessons/90_sample.py"]
    assert any("course sync sample" in line for line in said)


def test_a_second_one_keeps_the_first_and_goes_after_the_cell_that_is_named(unsynced):
    write(unsynced, "90", "square_root", function="sample_library:square_root")
    write(unsynced, "sample", "predict_root", predict=True, after="timed")
    names = list(cells(unsynced))
    assert names.index("predict-root") == names.index("timed") + 1
    assert cells(unsynced)["predict-root"].options["predict"] == "sample.predict_root"
    module = read(unsynced, MODULE)
    assert ast.unparse(value_of(module, "EXERCISES")) == "[SQUARE_ROOT, PREDICT_ROOT]"
    assert "from course_utils.checking import Case, Exercise, Mistake, Prediction" in module
    right = value_of(read(unsynced, TEST), "RIGHT")
    assert ast.literal_eval(right) == {"square_root": [], "predict_root": []}


def test_a_class_says_how_it_is_called(unsynced):
    lesson = unsynced.root / "lessons/90_sample.py"
    lesson.write_text(lesson.read_text().replace(
        '# %% name="ex-counter" exercise="sample_library:Counter"\n\n', ""))
    write(unsynced, "sample", "Counter", function="sample_library:Counter")
    assert "call=_Counter_call" in read(unsynced, MODULE)
    assert "ex-counter" in cells(unsynced)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "square_root"}, "write square_root in course_utils first, .*package.module:square_root"),
        ({"name": "parameter_count"}, "function is: --function course_utils.costs:parameter_count"),
        ({"name": "cube", "function": "sample_library:cube"}, "defines no function or class 'cube'"),
        ({"name": "cube", "function": "sample_libary:cube"}, "is no function of this repository"),
        ({"name": "cube", "function": "sample_library"}, "write it as package.module:function"),
        ({"name": "root", "function": "sample_library:square_root"}, "the name of its function: 'square"),
        ({"name": "halve", "function": "sample_library:halve"}, "sample.halve is there already: see less"),
        ({"name": "bytes", "predict": True}, "sample.bytes is there already"),
        ({"name": "predict_bytes", "predict": True}, "sample.predict_bytes is there already"),
        ({"name": "new", "predict": True, "after": "measurd"}, "no such cell .* near it: measured"),
        ({"name": "new", "predict": True, "function": "sample_library:halve"}, "leave out --function or"),
        ({"name": "two words", "predict": True}, "'two words' is no name for an exercise"),
        ({"name": "class", "predict": True}, "'class' is no name for an exercise"),
        ({"lesson": "smaple", "name": "new", "predict": True}, "no lesson 'smaple'"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(unsynced, arguments, message):
    library = unsynced.root / "course_utils/costs.py"
    library.parent.mkdir()
    library.write_text("def parameter_count(config):\n    return 1\n")
    before = files(unsynced)
    with pytest.raises(ValueError, match=message) as caught:
        write(unsynced, **{"lesson": "sample"} | arguments)
    assert "\n" not in str(caught.value)
    assert files(unsynced) == before


@pytest.mark.parametrize("place", [MODULE, TEST])
def test_a_name_that_is_taken_in_one_place_only_is_refused(unsynced, place):
    taken = {
        MODULE: 'EXERCISES = [Exercise(reference=sample_library.square_root, cases=list)]\n',
        TEST: 'WRONG = {"square_root": []}\nRIGHT = {}\n',
    }
    path = unsynced.root / place
    path.parent.mkdir(parents=True)
    path.write_text(taken[place])
    before = files(unsynced)
    with pytest.raises(ValueError, match=f"sample.square_root is there already: see {place}"):
        write(unsynced, "sample", "square_root", function="sample_library:square_root")
    path.write_text("EXERCISES = [")
    with pytest.raises(ValueError, match=f"{place}, line 1: .*; mend it first"):
        write(unsynced, "sample", "square_root", function="sample_library:square_root")
    path.write_text(taken[place])
    assert files(unsynced) == before


def test_a_failure_while_writing_leaves_every_file_as_it_was(unsynced):
    (unsynced.root / "tests").write_text("a file where a folder is needed")
    before = files(unsynced)
    with pytest.raises(OSError):
        write(unsynced, "sample", "square_root", function="sample_library:square_root")
    assert files(unsynced) == before


@pytest.mark.parametrize(
    ("before", "item", "after"),
    [
        ("X = []\n", "B", "X = [B]\n"),
        ("X = [A, *REST]\n", "B", "X = [A, *REST, B]\n"),
        ("X = [\n    A,\n    call(\n        1,\n    ),\n]  # why\n", "B",
         "X = [\n    A,\n    call(\n        1,\n    ),\n    B,\n]  # why\n"),
        (f"X = [{'A' * 100}]\n", "B" * 9, f"X = [\n    {'A' * 100},\n    {'B' * 9},\n]\n"),
        ("X = {}\n", '"b": []', 'X = {\n    "b": [],\n}\n'),
        ('é = "ü"; X = {\n    "a": [("ä",\n         1)],\n}\nY = 1\n', '"b": []',
         'é = "ü"; X = {\n    "a": [("ä",\n         1)],\n    "b": [],\n}\nY = 1\n'),
    ],
)
def test_one_more_item_changes_nothing_else(before, item, after):
    value = new_exercise._literal(before, "X", Path("x.py"))
    assert new_exercise._with_item(before, value, item) == after


# --- the whole way: from the command to a lesson that passes ----------------------------------------------

LESSON = '''\
# %% [markdown] name="title"
# # Tiny
#
# You count what a layer holds.

# %% name="measured"
print(6 * 7)

# %% [markdown] name="recap"
# ## Recap
'''
LIBRARY = '''\
"""A function to ask for."""


def weight_count(rows, columns, bias=False):
    """Numbers in a linear layer of `rows` outputs and `columns` inputs."""
    return rows * columns + (rows if bias else 0)
'''
FILLED = {
    "lessons/90_tiny.py": [("prediction = None  # unit", "prediction = 12  # numbers")],
    "course_utils/exercises/tiny.py": [
        ('    raise NotImplementedError("tiny.weight_count: its cases are not written yet")\n',
         "    return [Case(3, 4), Case(3, 4, bias=True), Case(1, 1)]\n"),
        ('    raise NotImplementedError("tiny.predict_count: its answer is not written yet")\n',
         "    return tiny_library.weight_count(3, 4)\n"),
        ("        # Mistake(", '        Mistake("columns left out.", lambda r, c, bias=False: r),\n # ('),
        ("        # (a wrong number", '        (7, "3 + 4: multiply."),\n        # ('),
        ('hint=""', 'hint="rows times columns."'),
        ('hint=""', 'hint="rows times columns."'),
    ],
    "tests/exercises/test_tiny.py": [
        ("        # (answer", '        (lambda r, c, bias=False: r, "columns left out"),\n'
         '        (lambda r, c, bias=False: r * c, "rows times"),\n'
         '        (lambda r, c, bias=False: 0, "Hint"),\n # ('),
        ("        # (answer", '        (7, "multiply"), (1, "Hint"), (100, "Hint"),\n        # ('),
        ("        # answer", "        lambda r, c, bias=False: r * (c + bias),\n"
         "        lambda r, c, bias=False: sum(c + bias for _ in range(r)),\n        # "),
        ("        # answer", "        12, 12.0,\n        # "),
    ],
}


@pytest.fixture
def tiny(tmp_path):
    """A course of one lesson without exercises, with the real package and the real shared test."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "course_utils", tmp_path / "course_utils", ignore=ignored)
    exercises, tests = tmp_path / "course_utils/exercises", tmp_path / "tests/exercises"
    tests.mkdir(parents=True)
    for file in exercises.glob("[a-z]*.py"):
        file.unlink()
    for name in ("__init__.py", "exercises/__init__.py", "exercises/common.py", "exercises/test_all.py"):
        shutil.copy(REPOSITORY / "tests" / name, tmp_path / "tests" / name)
    shutil.copy(Path(__file__).parent / "sample/pyproject.toml", tmp_path)
    (tmp_path / "course_utils/tiny_library.py").write_text(LIBRARY)
    (tmp_path / "lessons").mkdir()
    (tmp_path / "lessons/90_tiny.py").write_text(LESSON)
    return Project(tmp_path)


@pytest.mark.slow
def test_from_the_command_to_a_lesson_that_passes(tiny):
    def python(*arguments):
        environment = os.environ | {"PYTHONPATH": f"{tiny.root}{os.pathsep}{REPOSITORY}", "COLUMNS": "200"}
        return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=tiny.root,
                              env=environment)

    def course(*arguments):
        return python("-m", "authoring.cli", "--root", str(tiny.root), *arguments)

    def exercise_tests():
        return python("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/exercises")

    where = "course_utils.tiny_library:weight_count"
    made = course("new-exercise", "tiny", "weight_count", "--function", where)
    assert made.returncode == 0, made.stderr
    assert course("new-exercise", "tiny", "predict_count", "--predict").returncode == 0
    again = course("new-exercise", "tiny", "predict_count", "--predict")
    assert again.returncode == 1 and again.stderr.startswith("error: tiny.predict_count is there already")

    unfilled = exercise_tests()
    assert unfilled.returncode == 1 and "at least three wrong answers" in unfilled.stdout
    refused = course("sync", "tiny")
    assert refused.returncode == 1 and "its cases are not written yet" in refused.stderr

    for name, changes in FILLED.items():
        path = tiny.root / name
        text = path.read_text()
        for old, new in changes:
            assert old in text, f"{old!r} not in {name}"
            text = text.replace(old, new, 1)
        path.write_text(text)
    passed = exercise_tests()
    assert passed.returncode == 0, passed.stdout
    assert course("sync", "tiny", "--no-run").returncode == 0
    notebook = (tiny.root / "notebooks/90_tiny.ipynb").read_text()
    assert "def weight_count(rows, columns, bias=False)" in notebook and "rows if bias" not in notebook
    run = course("sync", "tiny")
    assert run.returncode == 0, run.stderr
    solved = (tiny.root / "solutions/90_tiny.ipynb").read_text()
    assert "tiny.weight_count: passed (3 cases)" in solved and "tiny.predict_count: passed" in solved
