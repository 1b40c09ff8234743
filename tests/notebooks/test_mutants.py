"""`course mutants`: which changes are made, and what is said of those that a check does not notice."""

import inspect
import json
import sys
import textwrap
import tomllib

import pytest
from typer.testing import CliRunner

from authoring import cli, mutants, mutation
from course_utils import checking


@pytest.fixture
def course(unsynced, monkeypatch):
    """The sample course, its exercises known to the checks."""
    monkeypatch.syspath_prepend(unsynced.root)
    monkeypatch.setitem(checking.MODULES, "sample", "sample_exercises")
    return unsynced


def changes(source, **which):
    """(before, after) of each mutant of a source."""
    source = textwrap.dedent(source)
    lines = which.get("lines", range(1, 1 + len(source.splitlines())))
    return [(m.before, m.after) for m in mutation.mutants(source, lines)]


@pytest.mark.parametrize(("line", "expected"), [
    ("y = x * 3", ["y = x / 3", "y = x", "y = 3", "y = x * 4", "y = x * 2"]),
    ("y = -x", ["y = x"]),
    ("y = x - -1", ["y = x - 0", "y = x - -2"]),
    ("y = x / 0.5", ["y = x / 1.0", "y = x / 0.25", "y = x // 0.5"]),
    ("y = x > 0", ["y = x >= 0", "y = x <= 0", "y = x > 1e-06", "y = x > 1"]),
    ("y = 1 <= x <= z", ["y = 1 < x <= z", "y = 1 <= x", "y = x <= z"]),
    ("y = x == 'nan'", ["y = x == 'nan_'", "y = x != 'nan'"]),
    ("y = not x", ["y = x"]),
    ("y = x and z", ["y = x or z", "y = x", "y = z"]),
    ("y = 1 if x else z", ["y = 1", "y = z"]),
    ("y = x.sum(dim=-1, keepdim=True)", [
        "y = x", "y = x.sum(dim=0, keepdim=True)", "y = x.sum(dim=1, keepdim=True)",
        "y = x.sum(keepdim=True)", "y = x.sum(dim=-1)", "y = x.sum(dim=-1, keepdim=False)",
        "y = x.mean(dim=-1, keepdim=True)"]),
    ("y = x.shape[1]", ["y = x.shape[0]", "y = x.shape[2]"]),
    ("y = x.clone()", ["y = x"]),
    ("y = torch.round(x)", ["y = x", "y = torch.floor(x)", "y = torch.trunc(x)"]),
    ("y = x.clamp(0, 9)", ["y = x", "y = x.clamp(None, 9)", "y = x.clamp(0)", "y = x.clamp(0, 8)"]),
    ("y = x.reshape(4)", ["y = x.view(4)"]),
    ("y = max(x, z)", ["y = min(x, z)", "y = x"]),
    ("y = f(x, z)", ["y = f(z, x)", "y = f(x)"]),
    ("y = x.to(torch.int32)", ["y = x.to(torch.int64)", "y = x"]),
    ("y = x[1:]", ["y = x[:]", "y = x[0:]", "y = x[2:]"]),
    ("y = [z for z in x if z]", ["y = [z for z in x]"]),
    ("y = x.T", ["y = x"]),
    ("y += x", ["y -= x", "y = x", "pass"]),
    ("x = x + z", ["pass"]),
    ("x[0] = z", ["pass"]),
    ("x.append(z)", ["pass"]),
    ("y = x.pop()", ["y = x.pop(0)"]),
])  # fmt: skip
def test_what_is_changed_in_a_line(line, expected):
    found = changes(f"def f(x, z, y):\n    {line}\n    return y")
    assert {before for before, _ in found} <= {line, "return y", ""}
    assert set(expected) <= {after for _, after in found}


def test_a_guard_is_dropped_turned_round_and_moved():
    found = changes("""
        def f(x, free):
            if not free:
                raise ValueError(f"none free of {len(x) + 1}")
            x.append(1)
            return x
    """)
    guard = "if not free:\n    raise ValueError(f'none free of {len(x) + 1}')\n"
    assert (guard + "x.append(1)", "x.append(1)\n" + guard.strip()) in found
    assert (guard.splitlines()[1].strip(), "pass") in found
    assert ("if not free:", "if free:") in found


def test_a_loop_ends_after_a_round():
    assert ("", "break") in changes("def f(x):\n    for y in x:\n        x += y\n    return x")


@pytest.mark.parametrize(("hint", "value", "expected"), [
    ("int", "x", "return float(x)"),
    ("Tensor", "x", "return x.double()"),
    ("tuple[Tensor, Tensor]", "(x, x)", "return (x, x.int())"),
])
def test_another_type_is_returned(hint, value, expected):
    assert (f"return {value}", expected) in changes(f"def f(x) -> {hint}:\n    return {value}")


def test_gradients_are_cut_where_the_answer_takes_care_of_them():
    cared = "def f(x: Tensor, b: Tensor) -> Tensor:\n    return x.detach() + b"
    assert ("return x.detach() + b", "return x.detach() + b.detach()") in changes(cared)
    assert not [after for _, after in changes(cared.replace(".detach()", "")) if "detach" in after]


def test_what_is_given_and_what_is_only_read_stays_as_it_is():
    source = """
        @torch.no_grad()
        def f(x: int = 1, y: dict[str, int] = None) -> int:
            '''A docstring of 1 line.'''
            z: list[int] = x + 1
            if x > 1:
                raise ValueError(f"more than {1 + 1}")
            return z
    """
    texts = [m.source for m in mutation.mutants(textwrap.dedent(source), range(5, 9))]
    head = '@torch.no_grad()\ndef f(x: int=1, y: dict[str, int]=None) -> int:\n    """A docstring of 1 line.'
    assert texts
    assert all(head in text and ("z: list[int] =" in text) for text in texts)
    assert all("raise ValueError(f'more than {1 + 1}')" in text or "        pass" in text for text in texts)


def test_an_argument_is_overwritten_or_confused_with_another_of_its_type():
    found = changes("def f(a: Tensor, b: Tensor, n: int) -> Tensor:\n    return (a - b) * n")
    assert {("return (a - b) * n", "return a.sub_(b) * n"),
            ("return (a - b) * n", "return (b - b) * n")} <= set(found)
    assert not [after for _, after in found if after.startswith("return (n")]
    sizes = changes("def f(config: Config) -> int:\n    return config.rows * config.columns * 2")
    assert ("return config.rows * config.columns * 2", "return config.rows * config.rows * 2") in sizes


def test_each_mutant_is_another_function_and_the_next_run_has_the_same():
    source = "def f(x):\n    if x > 0 and x * 2 > 1.0:\n        return x.clamp(0)\n    return x + 0"
    found = list(mutation.mutants(source, range(2, 5)))
    assert len({m.source for m in found}) == len(found) > 10
    assert found == list(mutation.mutants(source, range(2, 5)))


def test_comments_and_line_breaks_change_nothing():
    one = "def f(x):\n    return x.sum(dim=1)  # rows\n"
    other = "def f(x):\n    # of each row\n    return x.sum(\n        dim=1,\n    )\n"
    assert changes(one) == changes(other)


# --- what is said of them -----------------------------------------------------------------------------------

WEAK = """
import sample_library
from course_utils.checking import Case, Exercise

def count(cls, start, steps):
    counter = cls(start)
    return [counter.up() for _ in range(steps)]

EXERCISES = [
    Exercise(reference=sample_library.halve, cases=lambda: [Case([4.0], label="once only")]),
    Exercise(reference=sample_library.Counter, call=count, cases=lambda: [Case(0, 3), Case(2, 1)]),
    Exercise(reference=lambda x: x + x, id="double", cases=lambda: [Case(2)]),
]
"""


@pytest.fixture
def weak(course, monkeypatch):
    """The sample course with checks that notice little."""
    (course.root / "weak_exercises.py").write_text(WEAK)
    monkeypatch.setitem(checking.MODULES, "sample", "weak_exercises")
    monkeypatch.delitem(sys.modules, "weak_exercises", raising=False)
    return course


def write_list(project, *entries):
    path = project.root / "tests" / "mutants" / "sample.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(entries))


def listed(id, before, after, reason="equal"):
    """An entry of the list."""
    return mutants.entry(id, mutation.Mutant("", "", before, after)).replace(
        'reason = ""', f'reason = "{reason}"')


def reports(project):
    return {r.id: r for r in (mutants.report(project, a) for a in mutants.select(project, ["sample"]))}


def command(project, *arguments):
    return CliRunner().invoke(cli.app, ["--root", str(project.root), "mutants", *arguments])


def test_the_answers_are_what_the_learner_has_to_write(course):
    halve, counter, double = mutants.select(course)
    assert [halve.id, counter.id, double.id] == ["sample.halve", "sample.Counter", "sample.double"]
    source = halve.source.splitlines()
    assert [source[n - 1].strip() for n in halve.lines if "SOLUTION" not in source[n - 1]] == [
        "# Shifting would not do for floats.", "factor = 0.5**times", "",
        "return [value * factor for value in values]"]  # fmt: skip
    assert not any("step = 1" in counter.source.splitlines()[n - 1] for n in counter.lines)


def test_good_cases_leave_no_survivor(course):
    for report in reports(course).values():
        assert report.settled and report.killed == report.mutants > 1, report


def test_a_survivor_is_unexplained_until_the_list_has_it_with_a_reason(weak):
    found = reports(weak)
    survivor = next(m for m in found["sample.halve"].unexplained if m.after == "factor = 0.5 * times")
    assert found["sample.Counter"].settled and not found["sample.halve"].settled
    assert "sample.halve accepts this change" in mutants.problems(found["sample.halve"])[0]
    text = mutants.entry("sample.halve", survivor)
    write_list(weak, text)
    with pytest.raises(ValueError, match=r"tests/mutants/sample.toml, entry 1: .*lacks reason"):
        reports(weak)
    write_list(weak, text.replace('reason = ""', 'reason = "nobody halves twice"'))
    after = reports(weak)["sample.halve"]
    assert after.equal == [survivor] and survivor not in after.unexplained and not after.stale


@pytest.mark.parametrize(("id", "before", "after"), [
    ("sample.halve", "factor = 0.5 ** times", "factor = 0.5 * times"),  # a case tells them apart
    ("sample.double", "return x + y", "return x"),  # there is no such line
])
def test_an_entry_without_its_survivor_is_stale(course, id, before, after):
    write_list(course, listed(id, before, after))
    report = reports(course)[id]
    assert report.stale == [(before, after)] and not report.settled
    assert "is stale" in mutants.problems(report)[0]


@pytest.mark.parametrize(("entries", "message"), [
    ([listed("sample.third", "a", "b")], "no exercise 'third'"),
    ([listed("sample.halve", "a", "b")] * 2, "entry 2: the same change stands there twice"),
    ([listed("sample.halve", "a", "b") + "\nremark = 'x'"], "entry 1: .*has .*remark"),
    (["[[equal]]\nbefore = ''"], "entry 1: .*lacks exercise, after, reason"),
    (["[[equal"], "sample.toml is no TOML"),
])
def test_a_list_that_is_not_as_it_must_be_is_an_error(course, entries, message):
    write_list(course, *entries)
    with pytest.raises(ValueError, match=message):
        mutants.select(course)


def test_a_list_of_no_lesson_is_an_error(course):
    write_list(course)
    path = course.root / "tests" / "mutants"
    (path / "sample.toml").rename(path / "gone.toml")
    with pytest.raises(ValueError, match="gone.toml belongs to no lesson"):
        mutants.select(course)


@pytest.mark.parametrize("text", [
    "a", "it's", "a\nb", "", "'''a\nb'", 'two "quotes"\n\\ and \'more\'', "a\n'b'",
])
def test_an_entry_reads_as_it_was_written(text):
    read = tomllib.loads(mutants.entry("sample.halve", mutation.Mutant("operand", "", text, text)))
    assert read == {"equal": [{"exercise": "halve", "before": text, "after": text, "reason": ""}]}


def test_a_mutant_that_never_ends_is_killed(course, monkeypatch):
    monkeypatch.setattr(mutants, "SECONDS", 0.2)
    (course.root / "endless_library.py").write_text(
        "def down(x):\n    while x > 1:\n        x -= 1\n    return x\n")
    (course.root / "endless_exercises.py").write_text(
        "import endless_library\nfrom course_utils.checking import Case, Exercise\n"
        "EXERCISES = [Exercise(reference=endless_library.down, cases=lambda: [Case(5.5), Case(0)])]\n")
    lesson = course.root / "lessons" / "90_sample.py"
    title = lesson.read_text().partition("# %% name")[0]
    lesson.write_text(title + '# %% name="down" exercise="endless_library:down"\n')
    monkeypatch.setitem(checking.MODULES, "sample", "endless_exercises")
    (answer,) = mutants.select(course)
    judged = {m.after: passes for m, passes in mutants.survivors(answer)}
    assert judged["x += 1"] is False and judged["pass"] is False


def test_the_source_of_a_mutant_can_be_read(course):
    answer = mutants.select(course, ["sample.halve"])[0]
    assert "0.5**times" in inspect.getsource(mutants.define(answer, answer.source, "<a mutant>"))


def test_the_command_prints_a_table_and_fails_on_what_is_unexplained(weak, tmp_path):
    path = tmp_path / "numbers.json"
    result = command(weak, "sample.halve", "--show", "--json", str(path))
    assert result.exit_code == 1
    assert "after = 'factor = 0.5 * times'" in result.stdout
    (row,) = json.loads(path.read_text())
    assert row["id"] == "sample.halve" and row["mutants"] == row["killed"] + len(row["unexplained"])
    assert command(weak, "sample.Counter").exit_code == 0


@pytest.mark.parametrize(("name", "message"), [
    ("sample.third", "has no exercise 'third'"), ("nowhere", "no lesson 'nowhere'"),
])
def test_what_does_not_exist_is_named(course, name, message):
    with pytest.raises(ValueError, match=message):
        mutants.select(course, [name])
