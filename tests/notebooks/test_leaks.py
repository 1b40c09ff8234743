"""Nothing in a learner's notebook shows the solution of one of its exercises."""

import importlib
import inspect
import textwrap

import nbformat
import pytest

from authoring import leaks, sync
from authoring.project import Project, key_of

PROJECT = Project()
LESSONS = [path.stem for path in PROJECT.lessons()]
HALVE = "factor = 0.5**times\n\nreturn [value * factor for value in values]"


def notebook(kind, lesson):
    return nbformat.read(PROJECT.root / kind / f"{lesson}.ipynb", as_version=4)


@pytest.mark.parametrize("lesson", LESSONS)
def test_no_other_cell_or_output_holds_a_solution(lesson):
    solved, learner = notebook("solutions", lesson), notebook("notebooks", lesson)
    found = leaks.exercises(solved, learner)
    assert found and all(found.values()), "an exercise without a line to compare"
    assert leaks.leaks(solved, learner) == []


def planted_answers(lesson):
    """(name, lines) of each right answer in tests/exercises that is a function or class of its own."""
    for name, answers in importlib.import_module(f"tests.exercises.test_{key_of(lesson)}").RIGHT.items():
        for answer in filter(callable, answers):
            owner = getattr(answer, "__self__", None)
            source = inspect.getsource(owner if inspect.isclass(owner) else answer)
            yield name, leaks.lines(textwrap.dedent(source))


@pytest.mark.parametrize("lesson", LESSONS)
def test_no_cell_holds_a_right_answer_written_differently(lesson):
    """An answer of another kind (an autograd function, a loop) is a solution just as well."""
    seen = {line for found in leaks.visible(notebook("notebooks", lesson)).values() for line in found}
    for name, answer in planted_answers(lesson):
        assert leaks.shown(answer, seen) == [], f"a right answer to {name} can be read in the notebook"


def cell_in_sample(project, source):
    path = project.root / "lessons/90_sample.py"
    text, recap = path.read_text(), '# %% [markdown] name="recap"'
    assert recap in text
    path.write_text(text.replace(recap, f'# %% name="spoils"\n{source}\n\n{recap}'))


@pytest.mark.parametrize(
    "source",
    [
        f"def other(values, times=1):\n{textwrap.indent(HALVE, '    ')}",
        "for times in range(2):\n    factor = (0.5 ** times)   # as above\n    print(factor)",
        "class Same:\n    def up(self):\n        self.value += self.step",
    ],
)
def test_check_names_the_cell_that_shows_a_solution(unsynced, source):
    cell_in_sample(unsynced, source)
    (problem,) = [line for line in sync.check(unsynced) if "read its solution" in line]
    assert "lessons/90_sample.py, cell 'ex-" in problem and "in cell 'spoils'" in problem


@pytest.mark.parametrize(
    "source", ["sample_library.halve([2.0], times=3)", "# factor = 0.5**times", '"factor = 0.5**times"'])
def test_using_and_naming_the_function_is_no_leak(unsynced, source):
    cell_in_sample(unsynced, source)
    assert not [line for line in sync.check(unsynced) if "read its solution" in line]


def test_outputs_and_fenced_code_count_as_well(synced):
    solved, learner = (nbformat.read(synced.root / kind / "90_sample.ipynb", as_version=4)
                       for kind in ("solutions", "notebooks"))
    assert leaks.leaks(solved, learner) == []
    cells = {cell.id: cell for cell in learner.cells}
    cells["timed"].outputs[0].text = f"def halve(values, times=1):\n{textwrap.indent(HALVE, '    ')}\n"
    assert "in cell 'timed'" in leaks.leaks(solved, learner)[0]
    cells["timed"].outputs[0].text = "now"
    cells["recap"].source = f"So it goes:\n\n```python\n{HALVE}\n```\n"
    assert "in cell 'recap'" in leaks.leaks(solved, learner)[0]


@pytest.mark.parametrize(
    ("solution", "elsewhere", "told"),
    [
        ("abcdef", "", ""),
        ("abcdef", "a", ""),  # one of six
        ("abcdef", "ac", "ac"),  # a third
        ("abcdefg", "ac", ""),  # less than a third, and not in a row
        ("abcdefg", "fg", "fg"),  # two in a row
        ("a", "a", "a"),
    ],
)
def test_how_much_is_too_much(solution, elsewhere, told):
    assert leaks.shown(list(solution), set(elsewhere)) == list(told)


def test_lines_that_tell_something():
    source = '''
    @decorator
    def function(x):
        """Docstring of the function."""
        import math

        with torch.no_grad():  # a comment
            result = math.sqrt(
                x * x,
            )
        return result
    '''
    assert leaks.lines(source) == ["result = math.sqrt(x * x)"]
    assert leaks.lines("%pip install something\nvalue = 1 + another") == ["value = 1 + another"]
    assert leaks.lines("no python at all\n  but a line of text  # more") == ["no python at all",
                                                                           "but a line of text"]
