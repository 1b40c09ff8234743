"""The set-up where the environment is not its own, or is broken: nobody's files are lost, and it goes on.

The small course of `test_setup.py`, set up by the real script. Everything it installs is made here, so
nothing is fetched.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from authoring.wheels import write_wheel
from tests.platforms.test_setup import write_course
from tests.surroundings import small_disk

pytestmark = pytest.mark.slow
# A build backend that needs no package: an editable wheel is a .pth file and its description.
BACKEND = '''
import zipfile
from pathlib import Path

def build_editable(folder, settings=None, metadata=None):
    about = "small_course-0.1.dist-info"
    files = {"small.pth": f"{Path(__file__).resolve().parent}\\n",
             f"{about}/METADATA": "Metadata-Version: 2.1\\nName: small-course\\nVersion: 0.1\\n",
             f"{about}/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
             f"{about}/RECORD": ""}
    with zipfile.ZipFile(Path(folder, "small_course-0.1-py3-none-any.whl"), "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return "small_course-0.1-py3-none-any.whl"
'''
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "small-course"
version = "0.1"
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    for name, version in (("torch", "1.0+cpu"), ("setuptools", "90.0"), ("wheel", "90.0")):
        write_wheel(folder, name, version)
    return folder


@pytest.fixture
def checkout(tmp_path):
    folder = write_course(tmp_path / "the course")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "backend.py").write_text(BACKEND)
    return folder


def environment(wheels, **more):
    """Variables of a shell in which nothing is set that would matter, and those of the test."""
    ours = ("PIP_", "UV_", "PYTHON", "VIRTUAL_ENV", "CONDA", "COURSE_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return clean | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)} | {k: str(v) for k, v in more.items()}


def set_up(checkout, wheels, cwd=None, before=(), **more):
    command = [*before, sys._base_executable, checkout / "scripts/setup_environment.py", "--no-model"]
    return subprocess.run(command, env=environment(wheels, **more), cwd=cwd or checkout, timeout=300,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)


def installed(checkout, folder=".venv"):
    """Where the environment's Python finds the course, without any variable's help; torch is there too."""
    look = "import importlib.metadata as m, small; m.version('torch'); print(small.__file__)"
    done = subprocess.run([checkout / folder / "bin/python", "-I", "-X", "utf8", "-c", look],
                          capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip()).parent


def one_line(done):
    """The error: one line, no traceback."""
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    return line


def test_variables_that_lead_pip_s_own_answers_astray(checkout, wheels, tmp_path):
    """The set-up asks pip for the user's settings: these would send the question elsewhere, or stop it."""
    other = tmp_path / "other"
    (other / "torch").mkdir(parents=True)
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nuser = true\n[install]\ntarget = {other}\n[list]\nformat = json\n")
    done = set_up(
        checkout, wheels, PIP_CONFIG_FILE=config, PIP_PYTHON=other / "python", PIP_REQUIRE_VIRTUALENV="1",
        PIP_ROOT=other, PIP_TARGET=other, PIP_DRY_RUN="1", PIP_NO_DEPS="1", PIP_REPORT=other / "report.json",
        PYTHONPATH=other, PYTHONSTARTUP=other / "no.py", PYTHONUSERBASE=other, UV_PYTHON="3.9",
        HOME="/nowhere", LC_ALL="C")
    assert done.returncode == 0, done.stdout + done.stderr
    assert installed(checkout) == checkout
    assert [path.name for path in other.iterdir()] == ["torch"]


def test_an_environment_made_by_somebody_else_is_never_emptied(checkout, wheels, tmp_path):
    theirs = tmp_path / "theirs"
    subprocess.run([sys._base_executable, "-m", "venv", "--without-pip", theirs], check=True)
    (theirs / "thesis.txt").write_text("mine")
    assert "has no pip" in one_line(set_up(checkout, wheels, COURSE_VENV=theirs))
    for program in (theirs / "bin").glob("python*"):
        program.unlink()
    assert "Name another folder" in one_line(set_up(checkout, wheels, COURSE_VENV=theirs))
    assert (theirs / "thesis.txt").read_text() == "mine"
    shutil.rmtree(theirs)
    theirs.write_text("a file")
    assert "COURSE_VENV" in one_line(set_up(checkout, wheels, COURSE_VENV=theirs))


def test_an_interrupted_set_up_of_another_folder_goes_on(checkout, wheels, tmp_path):
    """After the first moment the folder has neither a Python nor anything else that works in it."""
    begin = "import setup_environment as s; s.Builder.setup_python = s.sys.exit; s.create()"
    where = {"COURSE_VENV": tmp_path / "ours"}
    subprocess.run([sys._base_executable, "-c", begin], cwd=checkout / "scripts",
                   env=environment(wheels, **where), capture_output=True)
    assert (tmp_path / "ours/pyvenv.cfg").exists() and not (tmp_path / "ours/bin/python").exists()
    done = set_up(checkout, wheels, **where)
    assert done.returncode == 0, done.stdout + done.stderr
    assert installed(tmp_path, "ours") == checkout


def test_an_environment_whose_python_is_gone_or_another_is_made_anew(checkout, wheels):
    assert set_up(checkout, wheels).returncode == 0
    link = checkout.with_name("link")
    link.symlink_to(checkout)
    assert set_up(link, wheels).stdout == ""  # the same checkout by another name: nothing to do
    pythons = ["/nowhere/python3.9", *other_versions()[:1]]
    for python in pythons:
        for program in (checkout / ".venv/bin").glob("python*"):
            program.unlink()
        (checkout / ".venv/bin/python").symlink_to(python)
        done = set_up(checkout, wheels)
        assert done.returncode == 0 and "==> creating" in done.stdout, done.stdout + done.stderr
        assert installed(checkout) == checkout


def other_versions(minors=(12, 13, 11)):
    """Interpreters of other minor versions that this machine has."""
    found = []
    for minor in minors:
        program = shutil.which(f"python3.{minor}")
        if program and minor != sys.version_info.minor:
            command = [program, "-c", "import sys; print(sys.executable)"]
            done = subprocess.run(command, capture_output=True, text=True)
            found += [done.stdout.strip()] * (done.returncode == 0)  # a shim may have nothing behind it
    return found


def test_a_python_that_is_too_old_is_told_so(checkout):
    script = checkout / "scripts/setup_environment.py"
    for python in other_versions((6, 7, 8, 9, 10)):
        done = subprocess.run([python, script], capture_output=True, text=True)
        assert "This course needs Python 3.11, 3.12 or 3.13" in one_line(done)
    # Where there is none of these: such a Python can read the file, and asks for the version first.
    first = ast.parse(script.read_text(encoding="utf-8"), feature_version=(3, 7)).body[1:3]
    assert ast.unparse(first[0]) == "import sys" and "sys.version_info" in ast.unparse(first[1])


def test_a_relative_course_venv_is_a_folder_where_the_command_is_given(checkout, wheels, tmp_path):
    done = set_up(checkout, wheels, cwd=tmp_path, COURSE_VENV="env of mine")
    assert done.returncode == 0, done.stdout + done.stderr
    assert installed(tmp_path, "env of mine") == checkout


def test_a_full_disk_is_said_in_one_line(checkout, wheels, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    done = set_up(checkout, wheels, before=small_disk(small, 2), COURSE_VENV=small / "venv")
    line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "Set-up stopped" in line and "make command again" in line
