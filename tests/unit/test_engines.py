"""Calling engines: whatever way a process goes wrong ends in a clear result, never in an exception."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from importlib.machinery import PathFinder
from pathlib import Path

import numpy as np
import pytest

from course_utils import engines
from course_utils.engines import environment, process
from course_utils.engines.entry import Engine
from course_utils.errors import CourseError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Makes an engine of worker code. Its environment is complete, with this Python as its interpreter."""
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))

    def make(code, installed=True):
        made = Engine(tmp_path / "fake", "a test", megabytes=12)
        made.home.mkdir()
        made.requirements.write_text("")
        made.worker.write_text(textwrap.dedent(code))
        if installed:
            made.python.parent.mkdir(parents=True)
            made.python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
            made.python.chmod(0o755)
            (made.folder / "installed.json").write_text(json.dumps({"pins": environment.fingerprint(made)}))
        return made

    return make


ECHO = """
    import json, sys
    request = json.load(sys.stdin)
    print("chatter on standard output")
    print("chatter on standard error", file=sys.stderr)
    print(json.dumps({"twice": 2 * request["n"]}))
"""


def test_answer(engine):
    answer = engines.run(engine(ECHO), {"n": 21})
    assert answer and answer.values == {"twice": 42} and answer.seconds > 0


def test_logs_of_good_runs_are_not_kept(engine):
    fake = engine(ECHO)
    engines.run(fake, {"n": 1})
    assert not list(fake.folder.glob("*.log"))


def test_missing_environment_says_how_to_install(engine):
    result = engines.run(engine(ECHO, installed=False), {"n": 1})
    assert not result and result.reason == "missing"
    assert "course engines install fake" in str(result) and "12 MB" in str(result)


def test_changed_pins_make_the_environment_stale(engine):
    fake = engine(ECHO)
    fake.requirements.write_text("# a comment is no pin\n")
    assert engines.run(fake, {"n": 1})
    fake.requirements.write_text("numpy==2.2.6\n")
    assert engines.run(fake, {"n": 1}).reason == "missing"


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        ("raise RuntimeError('no such kernel')", "crashed", "no such kernel"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed", "signal 11"),
        ("print('{\"half\": ')", "garbage", "no JSON object"),
        ("print('[1, 2]')", "garbage", "no JSON object"),
        ("pass", "garbage", "no JSON object"),
        ("import sys; sys.stdout.buffer.write(b'\\xff\\xfe\\n')", "garbage", "no JSON object"),
        ("print('{\"ok\": 1}'); raise SystemExit(3)", "crashed", "exit code 3"),
        ("print('{\"error\": \"only Llama\"}')", "refused", "only Llama"),
        ("import time; time.sleep(600)", "timeout", "2 seconds"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_a_result(engine, code, reason, words):
    result = engines.run(engine(code), {}, timeout=2 if reason == "timeout" else 60)
    assert not result and result.reason == reason, result
    assert words in str(result)
    assert result.log.exists()


def test_log_holds_what_the_worker_printed(engine):
    result = engines.run(engine("import sys; print('out'); print('err', file=sys.stderr)"), {})
    assert {"out", "err"} <= set(result.log.read_text().split())


def test_timeout_ends_the_workers_own_children(engine, tmp_path):
    pid_file = tmp_path / "pid"
    code = f"""
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open({str(pid_file)!r}, "w").write(str(child.pid))
        time.sleep(600)
    """
    start = time.monotonic()
    assert engines.run(engine(code), {}, timeout=8).reason == "timeout"
    assert time.monotonic() - start < 60
    pid = int(pid_file.read_text())
    for _ in range(100):  # an orphan may stay as a zombie until it is reaped
        try:
            state = Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} is still alive")


def test_large_requests_and_answers_pass(engine):
    code = """
        import json, sys
        request = json.load(sys.stdin)
        print("x" * 1_000_000)
        print(json.dumps({"back": request["numbers"]}))
    """
    numbers = list(range(200_000))
    assert engines.run(engine(code), {"numbers": numbers}).values["back"] == numbers


def test_interpreter_that_does_not_start(engine):
    fake = engine(ECHO)
    fake.python.write_text("")
    fake.python.chmod(0o644)
    result = engines.run(fake, {"n": 1})
    assert result.reason == "crashed" and "--again" in str(result)


def test_worker_does_not_see_our_packages(engine, monkeypatch):
    """Its own folder and what workers share: nothing else of ours, whatever this process was told."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    code = "import json, sys; print(json.dumps({'path': sys.path}))"
    fake = engine(code)
    answer = engines.run(fake, {})
    assert answer.values["path"][:2] == [str(fake.home), str(process.SHARED)]
    ours = {str(ROOT), str(ROOT / "course_utils"), str(ROOT / "course_utils" / "engines")}
    assert not ours & set(answer.values["path"])


def test_a_worker_in_the_courses_own_python_finds_its_packages(engine, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere/of/ours")
    code = "import json, os; print(json.dumps({'path': os.environ.get('PYTHONPATH')}))"
    answer = engines.run(replace(engine(code), modules=("json",)), {})
    assert answer.values["path"].split(os.pathsep)[-1] == "/somewhere/of/ours"


def test_wrong_arguments_raise(engine):
    with pytest.raises(ValueError, match="known: torch"):
        engines.run("nothing", {})
    fake = engine(ECHO)
    with pytest.raises(ValueError, match="timeout"):
        engines.run(fake, {}, timeout=0)
    with pytest.raises(TypeError):
        engines.run(fake, {"n": object()})


# ---- installing ------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path):
    """A package that can be installed without any index."""
    source = tmp_path / "package"
    source.mkdir()
    (source / "tiny_engine.py").write_text("NAME = 'tiny'\n")
    (source / "setup.py").write_text(
        "from setuptools import setup\nsetup(name='tiny-engine', version='1', py_modules=['tiny_engine'])\n")
    return source


USES_IT = """
    import json, sys
    import tiny_engine
    print(json.dumps({"name": tiny_engine.NAME, "prefix": sys.prefix}))
"""


@pytest.mark.slow
def test_install_run_and_redo_after_an_interrupt(engine, package, monkeypatch):
    fake = engine(USES_IT, installed=False)
    # No build isolation: what builds the package must be there before.
    fake.requirements.write_text(f"setuptools\nwheel\ntiny-engine @ file://{package}\n")
    fake = replace(fake, build_first=("setuptools", "wheel"), without=("wheel",))
    folder = engines.install(fake)
    assert subprocess.run([fake.python, "-c", "import wheel"], stderr=subprocess.DEVNULL).returncode != 0
    answer = engines.run(fake, {})
    assert answer.values["name"] == "tiny" and Path(answer.values["prefix"]).resolve() == folder.resolve()

    stamp = (folder / "installed.json").stat().st_mtime_ns
    engines.install(fake)
    assert (folder / "installed.json").stat().st_mtime_ns == stamp, "a complete environment was built again"

    (folder / "installed.json").unlink()  # as an interrupt leaves it
    (folder / "rubbish").write_text("half")
    assert engines.run(fake, {}).reason == "missing"
    engines.install(fake)
    assert engines.run(fake, {}) and not (folder / "rubbish").exists()


def test_killed_install_is_not_taken_for_complete(engine, tmp_path):
    """kill -9 in the middle of an install: the environment is there, its marker is not."""
    fake = engine(ECHO, installed=False)
    code = f"""
import sys
from pathlib import Path
from course_utils import engines
from course_utils.engines import environment
from course_utils.engines.entry import Engine
def hang(*args):
    (Path({str(fake.folder)!r})).mkdir(parents=True)
    print("building", flush=True)
    import time; time.sleep(600)
environment._run = hang
engines.install(Engine(Path({str(fake.home)!r}), "a test"))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
                               env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])})
    assert process.stdout.readline() == "building\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert fake.folder.exists() and not engines.is_installed(fake)


def test_failed_install_names_the_cause_and_the_log(engine):
    fake = engine(ECHO, installed=False)
    fake.requirements.write_text("no such == requirement\n")
    with pytest.raises(CourseError, match=r"installing fake failed while .*log: .*fake-install\.log"):
        engines.install(fake)
    assert not engines.is_installed(fake)


def test_missing_requirements_file(engine):
    fake = engine(ECHO, installed=False)
    fake.requirements.unlink()
    with pytest.raises(CourseError, match="requirements.txt is missing"):
        engines.install(fake)


def test_registered_engines_have_their_files():
    for made in engines.ENGINES.values():
        assert made.worker.exists()
        if made.requirements is None:
            continue
        pins = environment.pins(made)
        assert all("==" in line for line in pins), "every requirement is pinned"
        assert {line.split("==")[0] for line in pins} >= set(made.build_first)
        assert f"course engines install {made.name}" in made.requirements.read_text(), "whose are they?"
        # The worker runs where the course is not installed.
        assert "course_utils" not in made.worker.read_text()


# ---- an engine is a folder -------------------------------------------------------------------------------


def test_the_order_of_engines_is_the_one_they_state():
    places = [made.place for made in engines.ENGINES.values()]
    assert places == sorted(set(places)), "two engines have the same place"
    order = [list(engines.ENGINES).index(variant.engine) for variant in engines.VARIANTS.values()]
    assert order == sorted(order)


def test_no_file_that_a_worker_can_import_hides_a_package():
    """A worker's path begins with its own folder and the shared one: no numpy.py may be in there."""
    for folder in [process.SHARED, *(made.home for made in engines.ENGINES.values())]:
        names = {path.stem for path in folder.glob("*.py")} - {"__init__"}
        packages = {path.parent.name for path in folder.glob("*/__init__.py")}
        assert names and not packages
        hidden = {name for name in names if PathFinder.find_spec(name)} | names & sys.stdlib_module_names
        assert not hidden, f"{folder} hides {hidden}"


@pytest.fixture
def course_with_another_engine(tmp_path):
    """A copy of course_utils with one more folder, called like the package that it uses; runs `course`."""
    shutil.copytree(ROOT / "course_utils", tmp_path / "course_utils",
                    ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "course_utils" / "engines" / "numpy"
    folder.mkdir()
    (folder / "__init__.py").write_text(textwrap.dedent("""
        from pathlib import Path
        from course_utils.engines.entry import Engine, Variant
        ENGINE = Engine(Path(__file__).parent, "counts on, in NumPy", place=15, modules=("numpy",))
        VARIANTS = {"NumPy": Variant(ENGINE.name)}
    """))
    (folder / "worker.py").write_text(textwrap.dedent("""
        import numpy
        from own_part import LIMIT
        from protocol import Session, serve

        class Counting(Session):
            packages = ("numpy",)
            def load(self, folder):
                self.limit = LIMIT
            def prefill(self, ids):
                return self.step(ids[-1])
            def step(self, token):
                return (token + 1) % self.limit
            def logits(self, ids):
                return numpy.eye(self.limit)[[self.step(token) for token in ids]]

        serve(Counting)
    """))
    (folder / "own_part.py").write_text("LIMIT = 5\n")

    def run(*arguments):
        path = os.pathsep.join([str(tmp_path), str(ROOT)])  # course_utils of the copy, the rest of ours
        return subprocess.run([sys.executable, "-m", "authoring.cli", *arguments], capture_output=True,
                              text=True, cwd=tmp_path, env=os.environ | {
                                  "PYTHONPATH": path, "COURSE_CACHE": str(tmp_path / "cache")})

    return run


def test_a_folder_is_all_that_an_engine_needs(course_with_another_engine):
    listed = course_with_another_engine("engines", "list")
    assert listed.returncode == 0, listed.stderr
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert names == [*list(engines.ENGINES)[:1], "numpy", *list(engines.ENGINES)[1:]]
    request = {"task": "measure", "folder": ".", "prompt": [0, 1], "new_tokens": 6, "repeats": 1}
    done = course_with_another_engine("engines", "run", "numpy", json.dumps(request))
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["tokens"] == [2, 3, 4, 0, 1, 2] and answer["versions"]["numpy"] == np.__version__
