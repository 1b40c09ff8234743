"""The set-up in surroundings that people have: their settings, odd folders, an interrupt, a move.

A small course is set up by the real script: a virtual environment, real packages (setuptools, wheel), and an
empty package that is called torch, since nothing here computes.
"""

import ast
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from authoring.wheels import write_wheel
from tests.surroundings import read_only

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("set-up")]  # they share what takes long to make
ROOT = Path(__file__).resolve().parents[2]
FILES = ("scripts/setup_environment.py", "course_utils/__init__.py", "course_utils/threads.py",
         "course_utils/variables.py")
PYPROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "small-course"
version = "0.1"
[project.scripts]
small = "small:main"
[tool.setuptools]
py-modules = ["small"]
"""
PROGRAM = "def main():\n    print(__file__)\n"


def write_course(folder):
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "requirements.lock").write_text("torch==1.0\n")
    (folder / "small.py").write_text(PROGRAM)
    for path in folder.rglob("*"):  # as some archives are unpacked: no times, nothing that may be executed
        if path.is_file():
            path.chmod(0o644)
        os.utime(path, (0, 0))
    return folder


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory):
    """Variables and a pip.conf that each stop a set-up or lead it elsewhere; where packages come from."""
    home = tmp_path_factory.mktemp("surroundings")
    command = [sys.executable, "-m", "pip", "config", "list"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    pairs = (line.partition("=")[::2] for line in told.splitlines())
    known = {name.rpartition(".")[2]: ast.literal_eval(value) for name, value in pairs}
    for name in ("user", "target", "prefix"):
        known.pop(name, None)
    (home / "wheels").mkdir()
    write_wheel(home / "wheels", "torch", "1.0+cpu")
    known["find-links"] = f"{known.get('find-links', '')} {home / 'wheels'}"
    lines = [f"{name} = " + "\n    ".join(value.split()) for name, value in known.items()]
    (home / "pip.conf").write_text("\n".join(["[global]", *lines, "require-virtualenv = yes", "[install]",
                                              f"target = {home / 'target'}", ""]))
    (home / "path/pip").mkdir(parents=True)  # another Python's packages, and they do not work here
    (home / "path/pip/__init__.py").write_text("raise ImportError('a pip of another Python')")
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("PIP_", "COURSE_", "HOME"))}
    return kept | {
        "PIP_CONFIG_FILE": str(home / "pip.conf"), "PIP_USER": "1", "PIP_PREFIX": str(home / "prefix"),
        "PIP_REQUIRE_HASHES": "1", "PYTHONPATH": str(home / "path"), "PYTHONNOUSERSITE": "1",
        "VIRTUAL_ENV": "/elsewhere", "CONDA_PREFIX": "/elsewhere", "UV_SYSTEM_PYTHON": "1", "LC_ALL": "C"}


def start(folder, environment, *before):
    command = [*before, sys.executable, "scripts/setup_environment.py", "--no-model"]
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, start_new_session=True, umask=0o077,
                            # A shell that runs the tests in the background lets them ignore it.
                            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL))


def setup(folder, environment, *before):
    process = start(folder, environment, *before)
    said, _ = process.communicate(timeout=200)
    return said, process.returncode


def runs(folder):
    """What the installed program prints: where its code is."""
    done = subprocess.run([folder / ".venv/bin/small"], capture_output=True, text=True, cwd="/")
    return done.stdout.strip()


@pytest.fixture(scope="module")
def installed(tmp_path_factory, surroundings):
    """Interrupted while the environment is made, then set up by two processes at once, in a long odd path."""
    folder = tmp_path_factory.mktemp("kurs") / "mit Leerzeichen, ä und 李" / ("long" * 30)
    write_course(folder)
    process = start(folder, surroundings)
    while process.poll() is None and not (folder / ".venv/bin/python").exists():
        time.sleep(0.01)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "Set-up interrupted. Run the same make command again" in said, said
    both = [start(folder, surroundings) for _ in range(2)]
    told = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert sum("==> installing the course" in text for text in told) == 1, told
    assert sum("Waiting for another set-up" in text for text in told) == 1, told
    return folder


def test_settings_and_an_interrupt_do_not_lead_it_astray(installed, surroundings):
    assert runs(installed) == str(installed / "small.py")
    home = Path(surroundings["PIP_CONFIG_FILE"]).parent
    assert not (home / "target").exists() and not (home / "prefix").exists()
    assert setup(installed, surroundings) == ("", 0)  # nothing is left to be done


def test_a_read_only_checkout_serves_what_it_has_and_says_what_it_lacks(installed, surroundings, tmp_path):
    assert setup(installed, surroundings, *read_only(installed)) == ("", 0)
    bare = write_course(tmp_path / "bare")
    said, code = setup(bare, surroundings, *read_only(bare))
    assert code == 1 and said.count("\n") == 1 and "is read-only" in said, said


def test_another_version_of_python_is_noticed(installed):
    """As when the system's Python was updated: the packages lie in a folder with the old version."""
    (library,) = (installed / ".venv/lib").glob("python3.*")
    question = "import setup_environment as s; print(s.works(), s.moved_from() or 'here')"

    def asked():
        return subprocess.run([sys.executable, "-c", question], cwd=installed / "scripts", text=True,
                              stdout=subprocess.PIPE).stdout.strip()

    assert asked() == "True here"
    library.rename(library.with_name("python3.9"))
    try:
        assert asked() == "False here"
    finally:
        library.with_name("python3.9").rename(library)


def test_a_moved_checkout_is_set_up_anew(installed, surroundings, tmp_path):
    place = tmp_path / "renamed"
    shutil.copytree(installed, place, symlinks=True)  # the other one stays: it must not be what runs
    said, code = setup(place, surroundings)
    assert code == 0 and "anew: it was made as" in said, said
    assert runs(place) == str(place / "small.py")


def test_a_path_that_no_environment_can_have(surroundings, tmp_path):
    """Python's search path is a list with colons between."""
    said, code = setup(write_course(tmp_path / "a:b"), surroundings)
    assert code == 1 and said.splitlines()[-1].startswith("Set-up stopped: Refusing to create a venv"), said


def test_somebody_else_s_environment_is_not_made_anew(installed, surroundings, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    shutil.copy(installed / ".venv/pyvenv.cfg", own)
    (own / "bin").mkdir()
    (own / "bin/python").symlink_to(os.path.realpath(sys.executable))
    (own / "mine.txt").write_text("mine")
    said, code = setup(installed, surroundings | {"COURSE_VENV": str(own)})
    assert code == 1 and "Make it anew, or name another folder in COURSE_VENV" in said, said
    assert (own / "mine.txt").exists()


def test_the_checkout_s_shell_scripts_keep_their_line_ends(tmp_path):
    """With core.autocrlf, as git for Windows sets it, `bash` and `make` would read a carriage return."""
    clone = tmp_path / "clone"
    command = ["git", "-c", "core.autocrlf=true", "clone", "-q", "--depth", "1", ROOT.as_uri(), clone]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this is no git checkout")
    for name in (".ci/run", "Makefile", "binder/postBuild", "lessons/00_one_token.py"):
        assert b"\r" not in (clone / name).read_bytes(), name
