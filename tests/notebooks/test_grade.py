"""`course grade` on right, wrong and hostile submissions, and the same notebooks in nbgrader itself."""

import csv
import ctypes
import dataclasses
import errno
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import psutil
import pytest
import torch
from nbformat.v4 import new_code_cell, new_output
from nbgrader.api import Gradebook

from authoring import grade, sync
from authoring.grading import submissions
from authoring.grading.reports import as_csv, feedback_page, page_names
from authoring.grading.results import Answer, Grade, shown
from authoring.grading.starter import Bounds, foreign_imports
from authoring.grading.submissions import cells, collect
from authoring.grading.trees import Trees
from authoring.project import Project
from course_utils import checking
from course_utils.checking.bounds import descendants
from course_utils.checking.cases import private_cases
from course_utils.checking.judge import judge
from course_utils.checking.limits import time_limit
from course_utils.checking.spec import Case, Exercise
from tests.notebooks.conftest import SAMPLE

STUB = "    # About 2 lines.\n    raise NotImplementedError"
HALVED = "    return [value / 2**times for value in values]"


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """The sample course, generated and not executed."""
    root = tmp_path_factory.mktemp("graded") / "course"
    shutil.copytree(SAMPLE, root, ignore=shutil.ignore_patterns("__pycache__"))
    sys.path.insert(0, str(root))
    sync.sync(Project(root), run=False, report=lambda line: None)
    yield Project(root)
    sys.path.remove(str(root))


@pytest.fixture(scope="module")
def grader(course):
    rules = grade.Rules(bounds=Bounds(seconds=8, total=60, memory=2**30))
    with grade.Grader(course, rules) as found:
        yield found


@pytest.fixture
def submit(course, tmp_path):
    """Write a submission: the learner's (or the solved) notebook, changed by a function of its cells."""

    def write(change=None, kind="notebooks", name="alice"):
        notebook = nbformat.read(course.root / kind / "90_sample.ipynb", as_version=4)
        if change:
            change(notebook, {cell.id: cell for cell in notebook.cells})
        path = tmp_path / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(notebook))  # whatever it holds: nbformat refuses half a letter
        return path

    return write


@pytest.fixture
def graded(grader, submit):
    """Grade what `submit` writes."""
    return lambda *args, **kwargs: grader.grade(collect([submit(*args, **kwargs)])[0], "sample")


def wait_for(what, seconds=120):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, f"not within {seconds} seconds"
        time.sleep(0.1)


def points(graded):
    return {name: got for name, (got, _) in graded.cells.items()}


def answer(cells, halve=HALVED, double="    return 2 * x"):
    cells["ex-halve"].source = cells["ex-halve"].source.replace(STUB, halve)
    stub = "    # About 1 line.\n    raise NotImplementedError"
    cells["ex-double"].source = cells["ex-double"].source.replace(stub, double)


def test_right_answers_get_all_points_and_stubs_none(graded):
    solved = graded(kind="solutions")
    assert (solved.points, solved.maximum, solved.notes, solved.error) == (7, 7, [], "")
    empty = graded()
    assert (empty.points, empty.maximum, empty.notes) == (0, 7, [])
    assert {found.status for found in empty.answers.values()} == {"not attempted"}


def test_each_answer_counts_by_itself_and_the_message_is_that_of_the_notebook(graded):
    def change(notebook, cells):
        answer(cells, halve="    return [value / 2 for value in values]")
        cells["predict-bytes"].source = "prediction = 4000"

    found = graded(change)
    assert points(found) == {"predict-bytes": 1, "ex-halve": 0, "ex-counter": 0, "ex-double": 3}
    message = found.answers["ex-halve"].message
    assert "halving once, whatever `times` says" in message and "called as: halve(<[8.0]" in message


def test_what_the_submission_says_of_points_checks_and_lesson_does_not_count(graded):
    def change(notebook, cells):
        answer(cells, halve="    return values")
        notebook.metadata.course = {"lesson": "gptq", "kind": "solutions"}
        cells["ex-halve-check"].source = "pass  # trust me"
        said = {"exercise": "sample.halve", "status": "passed", "cases": 3, "library": False}
        for name in ("ex-halve-check", "ex-counter-check"):  # forged, and under another one's id
            cells[name].outputs = [new_output("display_data", {"text/plain": "passed"},
                                              metadata={"course": said})]
        cells["ex-double-check"].metadata.nbgrader["points"] = 300
        mark = {"grade": True, "grade_id": "bonus", "points": 50, "solution": False}
        notebook.cells.append(new_code_cell("", id="invented", metadata={"nbgrader": mark}))
        notebook.cells.remove(cells["ex-counter"])

    found = graded(change)
    assert points(found) == {"predict-bytes": 0, "ex-halve": 0, "ex-counter": 0, "ex-double": 3}
    assert (found.maximum, found.lesson, found.notes) == (7, "sample", ["missing answer ex-counter"])


@pytest.mark.parametrize("kind", ["markdown", "raw"])
def test_an_answer_in_a_cell_of_another_type_is_read_as_code(graded, kind):
    def change(notebook, cells):
        answer(cells)
        cells["ex-halve"].cell_type = kind
        for field in ("outputs", "execution_count"):
            cells["ex-halve"].pop(field, None)

    found = graded(change)
    assert points(found)["ex-halve"] == 2
    assert found.notes == [f"answer ex-halve had been turned into {kind}: read as code"]


def test_a_file_named_as_it_was_handed_out_needs_its_folder_to_say_whose_it_is():
    alone = page_names([Path("/class/Zoë Å/90_sample.ipynb")], {"90_sample"})
    assert alone == ["Zoë Å_90_sample"]


@pytest.mark.parametrize(
    "halve",
    [
        "halve = sample_library.halve",
        "from sample_library import halve",
        "def halve(values, times=1):\n    return sample_library.halve(values, times)",
        "import inspect\nexec(inspect.getsource(sample_library.halve))",
    ],
)
def test_the_librarys_own_function_is_not_there(graded, halve):
    def change(notebook, cells):
        cells["ex-halve"].source = halve
        cells["ex-counter"].source = "class Counter(sample_library.Counter):\n    pass"
        cells["ex-double"].source = "def double(x):\n    return sum(sample_library.halve([4.0 * x]))"

    found = graded(change)
    statuses = {name: found.answers[name].status for name in ("ex-halve", "ex-counter", "ex-double")}
    assert statuses == {"ex-halve": "not attempted", "ex-counter": "not attempted", "ex-double": "failed"}
    assert found.points == 0  # 2.0 where 2 is expected: the other functions of the library are there


EQUAL = "class Equal(float):\n    __eq__ = lambda self, other: True\n    __hash__ = float.__hash__\n"
TENSOR = """import torch
class Like(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return True
"""
HERE = str(Path(__file__).parents[2])
# Marks without work. Each runs before a wrong `halve`.
TRICKS = {
    "check patched": "from course_utils import checking\nchecking.check = checking.judge = print",
    "judge patched": "import course_utils.checking.compare as c\nc.difference = lambda *a, **k: None",
    "import patched": "import builtins, sys\nbuiltins.__import__ = lambda *a, **k: sys",
    "display patched": "import IPython.display\nIPython.display.display = print",
    "a fake module": "import sys, types\nfor n in ('course_utils.checking', 'sample_exercises', 'torch'):\n"
                     "    sys.modules[n] = types.ModuleType(n)",
    "cases emptied": "import sample_exercises\nsample_exercises.EXERCISES.clear()",
    "find the answer": "from course_utils import checking\nhalve = checking.find('sample.halve').reference",
    "read the exercises": "import importlib\n"
                          "halve = importlib.import_module('sample_exercises').EXERCISES[0].reference",
    "cases replaced": "import dataclasses, sample_exercises as s\n"
                      "s.EXERCISES[:] = [dataclasses.replace(e, cases=list) for e in s.EXERCISES]",
    "read the solutions": "import glob, json\n"
                          f"for p in glob.glob({HERE + '/**/*.ipynb'!r}, recursive=True):\n"
                          "    exec(''.join(json.load(open(p))['cells'][-1]['source']))",
    "always equal": EQUAL,
    "frames": "import gc, sys\nfor o in gc.get_objects():\n    if type(o).__name__ == 'Case': double = o",
    "callers' frames": "import sys\nf = sys._getframe()\nwhile f:\n"
                       "    double = f.f_locals.get('expected', 0); f = f.f_back",
    "reply forged": "import os\nfor n in range(3, 99):\n    try: os.write(n, b'passed' * 99)\n"
                    "    except OSError: pass",
    "message forged": "import json, os\n"
                      "m = json.dumps({'root': None, 'nodes': {}, 'areas': {}, 'lengths': []})\n"
                      "for n in range(3, 99):\n"
                      "    try: os.write(n, len(m).to_bytes(8, 'little') + m.encode())\n"
                      "    except OSError: pass",
    "too long a message": "import os\nfor n in range(3, 99):\n    try: os.write(n, b'\\xff' * 8)\n"
                          "    except OSError: pass",
    "ended": "import os\nos._exit(0)",
    "ended well": "import atexit, sys\nsys.exit(0)",
    "interrupted": "raise KeyboardInterrupt",
    "environment": "import os\nos.environ.update(NBGRADER_EXECUTION='', COURSE_LIBRARY_POINTS='1')",
    "a crash": "import ctypes\nctypes.string_at(0)",
    "the parent killed": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_no_trick_gives_points(graded, trick):
    def change(notebook, cells):
        cells["ex-halve"].source = f"{TRICKS[trick]}\ndef halve(values, times=1):\n    return values"
        cells["ex-double"].source = f"{EQUAL}def double(x):\n    return Equal(7)"
        cells["predict-bytes"].source = f"{EQUAL}prediction = Equal(7)"

    found = graded(change)
    assert (found.points, found.error) == (0, ""), found.answers


@pytest.mark.parametrize(
    "double",
    [
        f"{EQUAL}double = lambda x: Equal(0)",
        f"{TENSOR}double = lambda x: torch.zeros(()).as_subclass(Like)",
        "class double:\n    def __new__(cls, x): return object.__new__(cls)\n    __eq__ = lambda *a: True",
        "import unittest.mock as m\ndouble = lambda x: m.ANY",
        "import unittest.mock as m\ndouble = m.MagicMock()",
        "def double(x):\n    raise type('Complaint', (Exception,), {})('2', '2')",
        "def double(x):\n    yield 2 * x",
    ],
)
def test_what_says_of_itself_that_it_is_equal_is_not(graded, double):
    found = graded(lambda notebook, cells: cells["ex-double"].update(source=double))
    assert found.points == 0 and found.answers["ex-double"].status == "failed"


@pytest.mark.parametrize(
    "prediction",
    [
        "from course_utils import checking\nprediction = checking.find('sample.bytes').answer()",
        "from course_utils.checking import judge\n"
        "prediction = next(n for n in range(9999) if judge('sample.bytes', n).status == 'passed')",
        "class All(int):\n    __eq__ = __le__ = __ge__ = lambda self, other: True\nprediction = All(7)",
        "import torch\nclass Like(torch.Tensor): item = lambda self: float('nan')\n"
        "prediction = torch.zeros(()).as_subclass(Like)",
    ],
    ids=["asked", "guessed with the judge", "equal to all", "a tensor of its own"],
)
def test_a_prediction_cannot_be_looked_up(graded, prediction):
    found = graded(lambda notebook, cells: cells["predict-bytes"].update(source=prediction))
    assert (found.points, found.error) == (0, "") and found.answers["predict-bytes"].status != "passed"


def test_the_solutions_notebook_under_another_name_is_what_it_is(graded, tmp_path):
    """Its answers count, as any right answers do; that many are equal is for `course similar` to show."""
    assert graded(kind="solutions", name="90_sample (1)").points == 7


HARM = """
import glob, os, pathlib, site, sys
for place in [{mark!r}, {here!r}, sample_library.__file__, sys.modules["course_utils"].__file__,
              os.path.expanduser("~/.ipython/profile_default/startup/x.py"),
              os.path.expanduser("~/.cache/llm-inference-course/x"), "left",
              *(f"{{p}}/sitecustomize.py" for p in site.getsitepackages()), *glob.glob({here!r} + "/*")]:
    try: pathlib.Path(place).write_text("from os import *")
    except OSError: pass
for _ in range(50):
    if os.fork() == 0:
        os.setsid()
        import signal, time
        for number in range(1, 60):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        time.sleep(3600)
"""


def test_a_hostile_answer_costs_its_own_points_and_the_next_submission_nothing(
    course, graded, grader, tmp_path
):
    mark = tmp_path / "mark"
    harm = HARM.format(mark=str(mark), here=str(tmp_path))

    def change(notebook, cells):
        answer(cells, halve=HALVED)
        cells["ex-halve"].source = harm + cells["ex-halve"].source

    tree = grader.trees.of("sample_library:halve")
    before = (tree / "sample_library.py").read_text()
    others = [*course.root.rglob("*.*"), *tmp_path.glob("*.ipynb")]
    others = {path: path.read_bytes() for path in others if path.is_file()}
    mine = descendants()
    graded(change)
    assert set(descendants()) <= {*mine, grader.starter._process.pid}
    assert all(path.read_bytes() == content for path, content in others.items())
    if grader.starter.settings.namespaces:
        assert not mark.exists() and (tree / "sample_library.py").read_text() == before
    assert graded(kind="solutions", name="bob").points == 7
    assert graded(name="carol").points == 0
    if not grader.starter.settings.namespaces:  # the library's copies may be changed: others get new ones
        grader.trees = Trees(course, tmp_path / "trees")


def test_an_answer_sees_no_network_no_course_and_no_process_but_its_own(graded, grader, submit):
    neighbour = submit(kind="solutions", name="neighbour")
    if not grader.starter.settings.namespaces:
        pytest.skip("this system allows no namespaces")

    def change(notebook, cells):
        cells["ex-double"].source = f"""
import os, socket
def double(x):
    seen = [name for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc") else []
    places = {HERE!r} + "/lessons", {str(neighbour)!r}, os.path.expanduser("~root/.cache"), "/etc/passwd"
    open_files = [name for name in places if os.path.exists(name)]
    try:
        socket.create_connection(("127.0.0.1", 22), 1)
    except OSError as error:
        reached = error.errno
    raise ValueError([len(seen) < 5, open_files, reached])
"""

    message = graded(change).answers["ex-double"].message
    assert f"[True, [], {errno.ENETUNREACH}]" in message


LOOP = "    while True:\n        try:\n            while True: pass\n        except BaseException: pass"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (LOOP, "stopped"),
        ("    import time\n    time.sleep(10**6)", "stopped"),
        ("    return bytearray(2**40)", "MemoryError"),
        ("    import os\n    for _ in range(4): os.fork()\n    return [bytearray(2**28) for _ in range(9)]",
         "GiB|ended|MemoryError|stopped"),
        ("    import os, time\n    for _ in range(100):\n        if os.fork() == 0: time.sleep(600)\n"
         "    time.sleep(600)", "processes|ended|stopped|Resource"),
        ("    import os\n    os._exit(9)", "ended"),
        ("    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)", "ended"),
        ("    print('x' * 10**8)\n    return None", "came:      None"),
        ("    return 'x' * 10**9", "too large|MemoryError|GiB|stopped"),
        ("    return list(range(10**7))", "too large|MemoryError|ended|GiB|stopped"),
        ("    import torch\n    return torch.zeros(1).expand(10**12)", "too large"),
        ("    import numpy\n    return numpy.broadcast_to(numpy.zeros(1), 10**11)", "too large|came"),
        ("    x = []\n    for _ in range(10**5): x = [x]\n    return x", "cannot|too|came|ended|stopped"),
        ("    x = []; x.append(x)\n    return x", "came|expected"),
        ("    raise ValueError('\\ud800 \\x1b[2J')", "ValueError"),
        ("    raise ExceptionGroup('a', [ValueError('b')])", "ExceptionGroup"),
        ("    raise SystemExit(0)", "SystemExit"),
        ("    import socket\n    socket.create_connection(('127.0.0.1', 9), 1)", "raised"),
        ("    open('/tmp/big', 'wb').write(bytes(2**26))", "OSError|ended"),
    ],
)  # fmt: skip
def test_an_answer_without_bounds_is_stopped_and_the_others_count(graded, body, why):
    def change(notebook, cells):
        answer(cells, halve=body)

    found = graded(change)
    assert points(found) == {"predict-bytes": 0, "ex-halve": 0, "ex-counter": 0, "ex-double": 3}
    assert re.search(why, found.answers["ex-halve"].message), found.answers["ex-halve"].message
    feedback_page(found).encode()  # every file takes it


FORGE = """
import inspect, json, os
here = "NotImplementedError" in inspect.getsource(sample_library.halve)  # in the process for this answer
def forge(**more):
    text = json.dumps({"root": None, "nodes": {}, "areas": {}, "lengths": []} | more).encode()
    data = len(text).to_bytes(8, "little") + text
    for handle in range(3, 99):
        try:
            rest = data
            while rest: rest = rest[os.write(handle, rest):]
        except OSError: pass
"""
ALIKE = "[n * (2**61 - 1) for n in range(200_000)]"  # numbers of one hash: a dict of them takes hours


@pytest.mark.parametrize(
    "message",
    [
        "error={'types': 5}", "error={'types': [[]], 'message': 3}", "error=[1]",
        f"nodes={{str(n): 0 for n in {ALIKE}}}",
        f"root={{'n': 0}}, nodes={{'0': {{'k': 'dict', 'ordered': 0, 'v': [[n, 0] for n in {ALIKE}]}}}}",
        f"root={{'n': 0}}, nodes={{'0': {{'k': 'set', 'v': {ALIKE}}}}}",
        "root={'named': 'types:SimpleNamespace'}, kind='value'",  # a class that is here must not be judged
    ],
)  # fmt: skip
def test_a_forged_message_costs_its_own_answer_and_no_time(graded, message):
    def change(notebook, cells):
        answer(cells)
        cells["ex-halve"].source = f"{FORGE}if here: forge({message})\nhalve = print"

    found = graded(change)
    assert found.error == "" and points(found)["ex-double"] == 3
    assert found.answers["ex-halve"].status == "failed"


def test_a_judge_that_is_no_main_thread_has_its_time_limits_too(graded):
    """As in a dask worker. 40 lists in 40 in 40 ...: their text would have 10^11 letters."""
    body = "    x = [1]\n    for _ in range(7): x = [x] * 40\n    return x"
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(graded, lambda notebook, cells: answer(cells, halve=body)).result()
        assert points(found) == {"predict-bytes": 0, "ex-halve": 0, "ex-counter": 0, "ex-double": 3}
        began = pool.submit(endless, 0.2)
        assert began.exception(timeout=60).args == () and "0.2 seconds" in str(began.exception())
        assert pool.submit(sum, range(10**6)).result() == 499_999_500_000  # no interrupt comes later


def endless(seconds):
    with time_limit(seconds):
        spin()


def spin():
    while True:
        time.monotonic()


KEYS = """
import ctypes, inspect
call = ctypes.CDLL(None).syscall
space = ctypes.create_string_buffer(4000)
number = call(250, 10, -3, b"user", b"taken", 0)
left = space.raw[:max(call(250, 11, number, space, 4000), 0)]
for thing in (sample_library.halve, sample_library.Counter):
    source = inspect.getsource(thing)
    if "NotImplementedError" not in source: call(248, b"user", b"taken", source.encode(), len(source), -3)
"""


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="its numbers of calls")
def test_no_answer_leaves_the_next_one_a_key_of_the_login(course, submit):
    """A login has a ring of keys that its processes share; the grader is begun in one here, too."""
    if ctypes.CDLL(None).syscall(250, 1, None) < 0:
        pytest.skip("this system has no keys")

    def change(notebook, cells):
        cells["ex-halve"].source = f"{KEYS}exec(left.decode())"
        cells["ex-counter"].source = f"{KEYS}exec(left.decode())"

    with grade.Grader(course, grade.Rules(bounds=Bounds(seconds=8, memory=2**30))) as own:
        found = [own.grade(collect([submit(change)])[0], "sample") for _ in range(2)]
    assert [graded.points for graded in found] == [0, 0]


def test_what_a_judge_looks_through_is_bounded():
    """Many places of one tensor, and a name that stands before each of many parts."""
    start = torch.ones(2, requires_grad=True)
    large = Exercise(reference=lambda x: 2 * x, cases=lambda: [Case(start)], gradients=True)
    found = judge(large, lambda x: [(0 * x).sum().expand(2**20)] * 1_000, "large")
    assert "elements with a gradient" in found.message

    def fill(values):
        values.append({"x" * 1_000_000: [0] * 1_000})
        raise ValueError

    def refuse(values):
        raise ValueError

    long = Exercise(reference=refuse, cases=lambda: [Case([], raises=ValueError)])
    tracemalloc.start()
    found = judge(long, fill, "long")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.status == "failed" and most < 2**28, most


def test_a_submission_has_a_time_of_its_own(course, submit):
    def change(notebook, cells):
        answer(cells, halve=LOOP)

    rules = grade.Rules(bounds=Bounds(seconds=30, total=1))
    found = grade.grade(course, submit(change), lesson="sample", rules=rules)
    assert "took all of the 1 seconds" in found.answers["ex-double"].message and found.points == 0


def test_a_source_that_is_hard_to_read_is_no_one_elses_trouble(graded):
    def change(notebook, cells):
        answer(cells, halve="    return " + "(" * 10_000)
        notebook.cells.append(new_code_cell("x = " + "-" * 50_000 + "1", id="deep"))
        notebook.cells.append(new_code_cell("\x00 \ud800 = 1", id="odd"))

    found = graded(change)
    assert points(found)["ex-double"] == 3 and found.error == ""


def test_cases_of_a_seed_find_an_answer_that_knows_the_others_and_do_not_show_themselves(
    course, submit, graded
):
    known = """    known = {(1.0, 3.0): [0.5, 1.5], (8.0,): [1.0], (): []}
    return known.get(tuple(values), [0.0])"""
    def change(notebook, cells):
        answer(cells, halve=known)

    assert points(graded(change))["ex-halve"] == 2
    with grade.Grader(course, grade.Rules(seed="autumn")) as grader:
        found, again, solved = (grader.grade(collect([path])[0], "sample") for path in (
            submit(change), submit(change), submit(kind="solutions", name="bob")))
    assert points(found)["ex-halve"] == 0 and points(found)["ex-double"] == 3
    message = found.answers["ex-halve"].message
    assert "not in the notebook" in message and "expected" not in message and "called as" not in message
    assert again.answers == found.answers and solved.points == 7


TOLD = """seen, given = [], []
def halve(values, times=1):
    seen.append(list(values))
    given.append([value / 2**times for value in values])
    if len(seen) > 9: %s
    return given[-1]"""


def test_an_answer_cannot_have_a_seed_s_values_written_on_its_page(course, submit):
    with grade.Grader(course, grade.Rules(seed="autumn")) as grader:
        for tell in ("raise ValueError(seen)", "given[1][:] = seen[3:6]", "return seen"):
            def change(notebook, cells, tell=tell):
                cells["ex-halve"].source = TOLD % tell

            found = grader.grade(collect([submit(change)])[0], "sample")
            message = found.answers["ex-halve"].message
            private = private_cases(checking.find("sample.halve"), "autumn", "sample.halve")
            assert found.points == 0 and "failed in case" in message
            assert not any(str(value)[:6] in message for case in private for value in case.args[0])


def test_partial_credit_is_the_share_of_the_cases_that_are_right(course, submit):
    def change(notebook, cells):
        answer(cells, halve="    return [value / 2 for value in values]", double="    return x + 2")

    found = grade.grade(course, submit(change), lesson="sample", rules=grade.Rules(partial=True))
    assert points(found) == {"predict-bytes": 0, "ex-halve": round(2 * 2 / 3, 2), "ex-counter": 0,
                             "ex-double": 1}


@pytest.mark.parametrize(
    "text",
    [
        "not a notebook", "[]", "{}", '{"cells": 7}', '{"cells": [1, null, {"cell_type": []}]}',
        '{"cells": [{"metadata": {"nbgrader": [1]}}, {"metadata": [], "source": 3}]}', "[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_notebook_is_said_to_be_none(grader, tmp_path, text):
    path = tmp_path / "odd.ipynb"
    path.write_text(text)
    assert grader.grade(collect([path])[0], "sample").error.startswith("not graded: ")


def test_old_and_odd_notebooks_are_read():
    old = {"nbformat": 3, "worksheets": [{"cells": [{"cell_type": "code", "input": ["x = 1\n", "y"]}]}]}
    assert cells(json.dumps(old))[0].source == "x = 1\ny"
    odd = {"cells": [{"cell_type": "code", "metadata": {"nbgrader": {"grade_id": ["a"]}}, "id": "b"}]}
    assert (cells(json.dumps(odd))[0].name, cells(json.dumps(odd))[0].source) == ("b", "")


def test_folders_and_archives_are_looked_into(submit, tmp_path):
    path = submit(name="submitted/Zoë Å/lesson/90_sample")
    (tmp_path / "submitted/bob").symlink_to(tmp_path / "nowhere")
    (tmp_path / "submitted/carol.ipynb").symlink_to(path)
    with zipfile.ZipFile(tmp_path / "class.zip", "w") as archive:
        for name in ("bob_123/90_sample.ipynb", "../../evil.ipynb", "__MACOSX/90_sample.ipynb"):
            archive.write(path, name)
    found = collect([tmp_path / "submitted", tmp_path / "class.zip", tmp_path / "none.ipynb"])
    names = [str(submission.path.relative_to(tmp_path)) for submission in found]
    assert names == ["submitted/Zoë Å/lesson/90_sample.ipynb", "submitted/carol.ipynb", "class/evil.ipynb",
                     "class/bob_123/90_sample.ipynb", "none.ipynb"]
    assert [bool(submission.error) for submission in found] == [False, True, False, False, True]
    assert [submission.student for submission in found][0] == "Zoë Å"


@pytest.mark.parametrize(
    ("name", "student", "id"),
    [
        ("Ann Doe_31_assignsubmission_file/90_sample.ipynb", "Ann Doe", "31"),
        ("Ann Doe_31_assignsubmission_file_/90_sample.ipynb", "Ann Doe", "31"),
        ("Müller-Åse Li_4_assignsubmission_file_90_sample.ipynb", "Müller-Åse Li", "4"),
        ("doeann_12345_678_90_sample.ipynb", "doeann", "12345"),
        ("doeann_LATE_12345_678_90_sample-1.ipynb", "doeann", "12345"),
        ("ann/90_sample (1).ipynb", "ann", ""),
        ("ann/sample/work/90_sample-Copy1.ipynb", "ann", ""),
    ],
)
def test_an_archive_of_a_learning_platform_says_whose_and_which_lesson(grader, submit, tmp_path, name,
                                                                      student, id):
    path = submit(kind="solutions")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(path, name)
    (found,) = collect([tmp_path / "all.zip"])
    got = grader.grade(found)
    assert (got.student, got.id, got.points, got.error) == (student, id, 7, "")


def test_nobody_hands_in_for_somebody_else(submit, tmp_path):
    """By the names of files and folders that the student has given."""
    other = ["Bob_2_assignsubmission_file_/90_sample.ipynb", "bob_2_3_90_sample.ipynb",
             "submitted/bob/sample/90_sample.ipynb"]
    path = submit()

    def handed_in(place, *names):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(tmp_path / place, "w") as archive:
            for name in names:
                archive.write(path, name)
        return tmp_path / place

    def students(given):
        return {(found.student, found.id) for found in collect([given])}

    assert students(handed_in("class/ann.zip", *other).parent) == {("ann", "")}
    below = [f"submitted/ann/sample/{name}" for name in other]
    assert students(handed_in("all.zip", *below)) == {("ann", "")}
    flat = "Ann_4_assignsubmission_file_x_9_assignsubmission_file_y.ipynb"
    assert students(handed_in("moodle.zip", flat)) == {("Ann", "4")}


def test_files_named_as_they_were_handed_out_are_of_the_folder_s_student(submit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [submit(name=f"{student}/90_sample").relative_to(tmp_path) for student in ("anna", "bert")]
    assert [found.student for found in collect(files)] == ["anna", "bert"]
    assert [found.student for found in collect([file.parent for file in files])] == ["anna", "bert"]


def test_one_student_does_not_fill_the_memory_and_one_file_does_not_cost_the_archive(submit, tmp_path,
                                                                                    monkeypatch):
    path = submit()
    monkeypatch.setattr(submissions, "MOST_HANDED_IN", 2 * path.stat().st_size + 9)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for n in range(4):
            archive.write(path, f"ann_1_2_{n}.ipynb")
        for name in ("bob_3_4_x.ipynb", "carol_5_6_x.ipynb"):
            archive.write(path, name)
    content = (tmp_path / "all.zip").read_bytes()
    place = content.index(b"bob_3_4_x.ipynb") + 300
    (tmp_path / "all.zip").write_bytes(content[:place] + b"#" + content[place + 1:])
    found = collect([tmp_path / "all.zip"])
    assert [bool(each.error) for each in found] == [False, False, True, True, True, False]
    assert "with what else ann handed in" in found[2].error and "CRC" in found[4].error


def test_an_archive_that_a_student_handed_in_is_opened_too(submit, tmp_path):
    path = submit()
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.write(path, "work/90_sample.ipynb")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("ann_1_assignsubmission_file/work.zip", inner.getvalue())
        archive.writestr("bob_2_assignsubmission_file/work.zip", b"PK no archive")
    ann, bob = collect([tmp_path / "all.zip"])
    assert (ann.student, ann.file, ann.error) == ("ann", "90_sample.ipynb", "")
    assert bob.student == "bob" and "no archive" in bob.error


def test_an_archive_that_unpacks_to_very_much_is_said_to(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("90_sample.ipynb", bytes(2**27))
    (found,) = collect([tmp_path / "bomb.zip"])
    assert "larger than" in found.error and not found.text


def test_what_runs_in_a_notebook_runs_here(graded):
    """Its commands, `display`, and what the learner has put into cells of their own or the lesson's."""

    def change(notebook, cells):
        answer(cells, halve="    display(statistics)\n    return deque(half(v, times) / one for v in values)",
               double="    return factor * x\n\n%timeit double(2)\n!ls\ndouble?")
        cells["ex-halve"].source = "%%time\n" + cells["ex-halve"].source
        cells["predict-bytes"].source = "prediction = (5000\n    % 5001\n    - 1000)"
        cells["imports"].source += "\nimport statistics\nfrom collections import deque"
        notebook.cells.insert(2, new_code_cell(
            "factor: int = 2\nhalf = lambda v, n: v / float(2) ** n\none = int('1')", id="mine"))

    found = graded(change)
    assert points(found) == {"predict-bytes": 1, "ex-halve": 2, "ex-counter": 0, "ex-double": 3}


def test_answers_are_found_where_an_editor_has_left_them(graded):
    """Moved, duplicated, in cells with other ids, as Colab and VS Code save them."""

    def change(notebook, cells):
        answer(cells)
        cells["predict-bytes"].source = "# my guess\nprediction = 4000"
        for n, cell in enumerate(notebook.cells):
            cell.metadata = {"id": f"colab{n}"}
            cell.id = f"colab{n}"
        notebook.cells.append(notebook.cells.pop(notebook.cells.index(cells["ex-halve"])))
        notebook.cells.insert(0, nbformat.from_dict(cells["ex-double"] | {"id": "again"}))

    found = graded(change)
    assert points(found) == {"predict-bytes": 1, "ex-halve": 2, "ex-counter": 0, "ex-double": 3}
    assert "answer ex-double stands in 2 cells: the first one counts" in found.notes


def test_a_table_has_students_totals_and_no_formulas():
    def graded(student, lesson, points, id="", error=""):
        found = Grade(Path(f"{student}/x.ipynb"), lesson, student, id, error=error)
        return found if error else dataclasses.replace(found, answers={"a": Answer(points, 4, "", "")})

    grades = [graded("=1+1", "ptq", 1, "7"), graded("=1+1", "gptq", 4, "7"), graded("=1+1", "gptq", 2, "7"),
              graded("bob", "gptq", 0, "8"), graded("carol", "", 0, "9", error="not graded: x")]
    rows = list(csv.DictReader(io.StringIO(as_csv(grades))))
    total = [(row["student"], row["points"], row["maximum"], row["percent"])
             for row in rows if row["cell"] == "all"]
    assert total == [("'=1+1", "5", "8", "62.5"), ("bob", "0", "4", "0.0"), ("carol", "0", "0", "")]
    canvas = list(csv.reader(io.StringIO(as_csv(grades, "canvas"))))
    assert canvas[0][:2] + canvas[0][5:] == ["Student", "ID", "ptq", "gptq"]
    assert canvas[1][5:] == ["4", "4"]
    assert canvas[2][:2] + canvas[2][5:] == ["'=1+1", "7", "1", "4"]
    assert canvas[4][5:] == ["", ""]  # not graded: no number
    moodle = list(csv.DictReader(io.StringIO(as_csv(grades, "moodle"))))
    assert [(row["Identifier"], row["Grade"]) for row in moodle] == [
        ("Participant 7", "1"), ("Participant 7", "4"), ("Participant 8", "0")]


def test_every_file_name_has_a_page_and_a_line(course, grader, tmp_path):
    names = ["\U0001f642" * 60, ".", "..", "a\n7 of 7: bob", "\x1b[2J", "\uff1d1+1"]
    for name in names:
        (tmp_path / f"{name}.ipynb").write_text("{}")
    pages = tmp_path / "pages"
    options = {"lesson": "sample", "results": pages, "feedback": pages, "grader": grader}
    papers = collect([tmp_path])
    found = list(grade.grade_all(course, papers, **options))
    assert len(papers) >= 4 and len(list(pages.iterdir())) == 2 * len(papers) == 2 * len(found)
    assert all("\n" not in each.student and "\n" not in shown(each.submission) for each in found)
    assert not any(row[0].startswith("\uff1d") for row in csv.reader(io.StringIO(as_csv(found))))


def test_a_kept_result_is_that_of_the_file_that_is_graded(course, grader, submit, tmp_path):
    options = {"lesson": "sample", "results": tmp_path / "results", "grader": grader}
    paper = dataclasses.replace(collect([submit(kind="solutions")])[0], id="7")
    list(grade.grade_all(course, [paper], **options))
    moved = dataclasses.replace(paper, path=tmp_path / "moved/alice.ipynb", id="8")
    (found,) = grade.grade_all(course, [moved], **options)
    assert (found.points, found.id, found.submission) == (7, "8", moved.path)


def test_results_are_kept_and_taken_up_again(course, grader, submit, tmp_path):
    papers = collect([submit(name="one"), submit(name="two")])
    options = {"lesson": "sample", "results": tmp_path / "results", "grader": grader}
    options["results"].mkdir()
    next(grade.grade_all(course, papers, **options))  # ended after the first
    kept = tmp_path / "results/one.json"
    assert kept.exists() and not (tmp_path / "results/two.json").exists()
    written = kept.stat().st_mtime_ns
    assert [found.points for found in grade.grade_all(course, papers, **options)] == [0, 0]
    assert kept.stat().st_mtime_ns == written
    papers = collect([submit(name="one", kind="solutions")])
    assert [found.points for found in grade.grade_all(course, papers, **options)] == [7]


def test_a_killed_command_leaves_no_process_and_goes_on_where_it_was(course, submit, tmp_path):
    def change(notebook, cells):
        answer(cells, halve="    import time\n    time.sleep(600)")

    names = [submit(kind="solutions").name, submit(change, name="bob").name]
    command = [sys.executable, "-m", "authoring.cli", "--root", course.root, "grade", *names,
               "--lesson", "sample", "--results", "results"]  # fmt: skip
    path = os.pathsep.join(filter(None, [str(course.root), os.environ.get("PYTHONPATH", "")]))
    options = {"cwd": tmp_path, "env": os.environ | {"COLUMNS": "300", "PYTHONPATH": path}}
    (tmp_path / "results").mkdir()
    kept = tmp_path / "results/alice.json"
    with subprocess.Popen(command, **options) as process:
        own = psutil.Process(process.pid)
        wait_for(lambda: kept.exists() and len(own.children(recursive=True)) > 0)
        started = own.children(recursive=True)
        process.kill()
    wait_for(lambda: not any(child.is_running() and child.status() != "zombie" for child in started))
    written = kept.stat().st_mtime_ns
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["alice.json"]
    submit(lambda notebook, cells: answer(cells), name="bob")
    done = subprocess.run(command, **options, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("7/7") == 1 and done.stdout.count("5/7") == 1, done.stdout
    assert kept.stat().st_mtime_ns == written


def test_what_a_lesson_imports_from_elsewhere_is_found_by_reading(grader):
    tree, own = grader.trees.of(""), grader.trees.own
    assert own == ["course_utils", "authoring", "sample_library"]
    found = foreign_imports(tree, own, ["import sample_library", "from os import path"])
    assert found == ["import math", "from os import path"]
    found = foreign_imports(tree, own, ["from course_utils.quantize import affine"])
    assert "import torch" in found and not [line for line in found if "course_utils" in line]


def test_what_the_course_itself_cannot_judge_is_an_error_and_no_zero(course, grader, submit, tmp_path,
                                                                     monkeypatch):
    papers = collect([submit(kind="solutions")])
    options = {"lesson": "sample", "results": tmp_path / "results", "grader": grader}
    options["results"].mkdir()
    grader.assignment("sample")
    monkeypatch.setitem(checking.MODULES, "sample", "a_package_that_is_not_here")
    (found,) = grade.grade_all(course, papers, **options)
    assert "sample.bytes could not be judged (ModuleNotFoundError" in found.error and not found.answers
    total, student = csv.DictReader(io.StringIO(as_csv([found])))
    assert (total["points"], total["percent"], student["percent"]) == ("", "", "")
    assert json.loads((tmp_path / "results/alice.json").read_text())["points"] is None
    monkeypatch.undo()  # it is installed now
    assert [found.points for found in grade.grade_all(course, papers, **options)] == [7]


def test_the_command_line_writes_table_csv_and_feedback(course, submit, tmp_path):
    def change(notebook, cells):
        answer(cells, halve="    return '<script>alert(1)</script>'")

    alice, evil = submit(kind="solutions"), submit(change, name="=1+1")
    (tmp_path / "carol.ipynb").write_text("not a notebook")
    command = [sys.executable, "-m", "authoring.cli", "--root", str(course.root), "grade", alice.name,
               evil.name, "carol.ipynb", "--lesson", "sample", "--csv", "points.csv",
               "--feedback", "feedback"]
    path = os.pathsep.join(filter(None, [str(course.root), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"COLUMNS": "300", "PYTHONPATH": path})
    assert done.returncode == 1, done.stderr  # carol's could not be graded
    assert "7/7" in done.stdout and "3/7" in done.stdout and "not graded" in done.stdout
    assert "Bounds: " in done.stdout
    with open(tmp_path / "points.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["points"] for row in rows if row["cell"] == "total"] == ["7", "3", ""]
    assert {row["submission"] for row in rows} == {"alice.ipynb", "'=1+1.ipynb", "carol.ipynb", ""}
    page = (tmp_path / "feedback/=1+1.html").read_text()
    assert "3 of 7 points" in page and "&lt;script&gt;" in page and "<script" not in page


@pytest.mark.slow  # it executes the sample twice
def test_nbgrader_itself_releases_and_grades_the_solutions(synced, tmp_path):
    course = tmp_path / "nbgrader"
    source = course / "source/lesson/90_sample.ipynb"
    source.parent.mkdir(parents=True)
    shutil.copy(synced.root / "solutions/90_sample.ipynb", source)
    (course / "nbgrader_config.py").write_text("c = get_config()\nc.CourseDirectory.course_id = 'sample'\n")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # nbgrader calls alembic
    environment = os.environ | {"PYTHONPATH": str(synced.root), "PATH": path}

    def nbgrader(*arguments):
        command = [sys.executable, "-m", "nbgrader", *arguments]
        done = subprocess.run(command, cwd=course, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr

    nbgrader("generate_assignment", "lesson", "--create")
    release = nbformat.read(course / "release/lesson/90_sample.ipynb", as_version=4)
    assert not any("SOLUTION" in cell.source for cell in release.cells)
    for student, kind in (("alice", "solutions"), ("bob", "notebooks")):
        submitted = course / "submitted" / student / "lesson/90_sample.ipynb"
        submitted.parent.mkdir(parents=True)
        solved = nbformat.read(synced.root / kind / "90_sample.ipynb", as_version=4)
        answers = {cell.id: cell.source for cell in solved.cells}
        for cell in (copy := nbformat.from_dict(release)).cells:
            if cell.metadata.get("nbgrader", {}).get("solution"):
                cell.source = answers[cell.id]
        nbformat.write(copy, submitted)
    nbgrader("autograde", "lesson", "--create")
    with Gradebook(f"sqlite:///{course}/gradebook.db") as gradebook:
        scores = {s.student.id: (s.score, s.max_score) for s in gradebook.assignment_submissions("lesson")}
    assert scores == {"alice": (7, 7), "bob": (0, 7)}


@pytest.mark.slow  # it executes the sample
def test_nbgrader_s_validator_runs_the_learner_s_notebook(synced):
    from nbgrader.validator import Validator

    def found(kind):
        return Validator().validate(str(synced.root / kind / "90_sample.ipynb"))

    assert found("solutions") == {}
    failed = found("notebooks")["failed"]
    assert len(failed) == 4 and "AssertionError" in failed[0]["error"]
    path = synced.root / "notebooks/90_sample.ipynb"
    path.write_text(path.read_text().replace('check(\\"sample.halve\\", halve)', 'print(\\"passed\\")'))
    (changed,) = found("notebooks")["changed"]
    assert 'print("passed")' in changed["source"]
