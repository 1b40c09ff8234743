"""The real set-up script in everyday surroundings, on a course of two files and packages made here.

Only the packages are small: Python, venv, pip, the script and what it notes are the real ones. Nothing is
fetched, PIP_NO_INDEX and PIP_FIND_LINKS see to that.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path("scripts/setup_environment.py")
# A build backend that needs no package: an editable wheel is a .pth file and its description.
BACKEND = """
    import zipfile
    from pathlib import Path

    def build_editable(folder, settings=None, metadata=None):
        name = "llm_inference_course-1.0-py3-none-any.whl"
        here = str(Path(__file__).resolve().parent)
        about = "llm_inference_course-1.0.dist-info"
        files = {"course.pth": here + "\\n", f"{about}/METADATA": "Metadata-Version: 2.1\\nName: llm-inference-course\\n"
                 "Version: 1.0\\n", f"{about}/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\n"
                 "Tag: py3-none-any\\n", f"{about}/RECORD": ""}
        with zipfile.ZipFile(Path(folder) / name, "w") as archive:
            for path, text in files.items():
                archive.writestr(path, text)
        return name
"""  # noqa: E501
PYPROJECT = """
    [build-system]
    requires = []
    build-backend = "backend"
    backend-path = ["."]
    [project]
    name = "llm-inference-course"
    version = "1.0"
"""


def wheel(folder, name, version):
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", f"version = {version!r}\n")
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    for name, version in (("torch", "2.13.0+cpu"), ("setuptools", "90.0"), ("wheel", "90.0")):
        wheel(folder, name, version)
    return folder


def make_checkout(root):
    for path in (SCRIPT, "course_utils/__init__.py", "course_utils/variables.py", "course_utils/threads.py"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, root / path)
    (root / "requirements.lock").write_text("torch==2.13.0\nsetuptools==90.0\nwheel==90.0\n")
    (root / "pyproject.toml").write_text(textwrap.dedent(PYPROJECT))
    (root / "backend.py").write_text(textwrap.dedent(BACKEND))
    return root


@pytest.fixture
def checkout(tmp_path):
    return make_checkout(tmp_path / "the course")


def environment(wheels, **more):
    """Variables of a shell in which nothing is set that would matter, and those of the test."""
    ours = ("PIP_", "UV_", "PYTHON", "VIRTUAL_ENV", "CONDA", "COURSE_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return clean | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)} | {k: str(v) for k, v in more.items()}


def set_up(checkout, wheels, cwd=None, python=sys._base_executable, **more):
    command = [python, str(checkout / SCRIPT), "--no-model"]
    return subprocess.run(command, env=environment(wheels, **more), cwd=cwd or checkout, timeout=300,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)


def installed(checkout, folder=".venv"):
    """Where the environment's Python finds the course and torch, without any variable's help."""
    look = "import backend, torch; print(backend.__file__); print(torch.__file__)"
    done = subprocess.run([checkout / folder / "bin/python", "-I", "-X", "utf8", "-c", look],
                          capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    course, torch = map(Path, done.stdout.splitlines())
    assert torch.is_relative_to((checkout / folder).resolve()), torch
    return course.parent


def one_line(done):
    """The error: one line, no traceback."""
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (line,) = done.stderr.strip().splitlines()
    return line


def test_variables_and_files_for_other_environments_do_not_stop_the_set_up(tmp_path, wheels):
    """All at once, in a folder with spaces and letters beyond ASCII: whichever acted would show."""
    checkout = make_checkout(tmp_path / "Köln 李 {course} %s")
    other = tmp_path / "other"
    (other / "torch").mkdir(parents=True)
    (other / "torch/__init__.py").write_text("raise SystemExit('the wrong torch')")
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nuser = true\nrequire-virtualenv = true\n[install]\ntarget = {other}\n"
                      f"prefix = {other}\nrequire-hashes = true\n[list]\nformat = json\n")
    done = set_up(
        checkout, wheels, PIP_USER="1", PIP_TARGET=other, PIP_PREFIX=other, PIP_ROOT=other, PIP_DRY_RUN="1",
        PIP_REQUIRE_VIRTUALENV="1", PIP_CONFIG_FILE=config, PYTHONPATH=other, PYTHONSTARTUP=other / "no.py",
        PYTHONUSERBASE=other, PIP_PYTHON=other / "python", PIP_NO_DEPS="1", PIP_UPGRADE="1",
        VIRTUAL_ENV=other, CONDA_PREFIX=other, UV_PYTHON="3.9", UV_SYSTEM_PYTHON="1", LC_ALL="C", LANG="C")
    assert done.returncode == 0, done.stdout + done.stderr
    assert installed(checkout) == checkout
    assert sorted(path.name for path in other.iterdir()) == ["torch"]
    assert set_up(checkout, wheels, PIP_USER="1").stdout == ""  # and a second run has nothing to do


def test_without_a_home_folder_and_with_a_strict_umask(checkout, wheels):
    old = os.umask(0o077)
    try:
        done = set_up(checkout, wheels, HOME="/nowhere")
    finally:
        os.umask(old)
    assert done.returncode == 0, done.stdout + done.stderr
    assert installed(checkout) == checkout


def test_a_moved_a_copied_and_a_linked_checkout(checkout, wheels, tmp_path):
    assert set_up(checkout, wheels).returncode == 0
    link = tmp_path / "link"
    link.symlink_to(checkout)
    assert set_up(link, wheels).stdout == ""  # the same checkout by another name
    copy = tmp_path / "copy"
    shutil.copytree(checkout, copy, symlinks=True)
    done = set_up(copy, wheels)
    assert done.returncode == 0 and str(checkout) in done.stdout, done.stdout + done.stderr
    assert installed(copy) == copy and installed(checkout) == checkout
    moved = tmp_path / "moved elsewhere"
    shutil.rmtree(copy)
    checkout.rename(moved)
    assert set_up(moved, wheels).returncode == 0
    assert installed(moved) == moved
    program = (moved / ".venv/bin/pip").read_text()
    assert str(moved / ".venv") in program and str(checkout) not in program


def test_an_environment_whose_python_is_gone_or_half_made_is_made_anew(checkout, wheels):
    assert set_up(checkout, wheels).returncode == 0
    python = checkout / ".venv/bin/python"
    for link in python.parent.glob("python*"):
        link.unlink()
    python.symlink_to("/nowhere/python3.9")
    done = set_up(checkout, wheels)
    assert done.returncode == 0, done.stdout + done.stderr
    assert installed(checkout) == checkout
    other = next((path for minor in (12, 13, 11) if minor != sys.version_info.minor
                  for path in [shutil.which(f"python3.{minor}")] if path and _runs(path)), None)
    if other:  # the system's Python has another minor version now, and looks in another folder
        for link in python.parent.glob("python*"):
            link.unlink()
        python.symlink_to(_runs(other))
        done = set_up(checkout, wheels)
        assert done.returncode == 0 and "not complete" in done.stdout, done.stdout + done.stderr
        assert installed(checkout) == checkout
    (pip,) = (checkout / ".venv").glob("lib/python*/site-packages/pip")
    shutil.rmtree(pip)  # interrupted between Python and pip
    done = set_up(checkout, wheels)
    assert done.returncode == 0 and "not complete" in done.stdout, done.stdout + done.stderr
    assert installed(checkout) == checkout


def _runs(python):
    """The file of an interpreter; "" when it does not start, as a pyenv shim of a version that is not set."""
    done = subprocess.run([python, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True)
    return done.stdout.strip()


def test_two_set_ups_at_once_and_one_that_is_interrupted(checkout, wheels):
    command = [sys._base_executable, str(checkout / SCRIPT), "--no-model"]
    start = dict(env=environment(wheels), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    first = subprocess.Popen(command, start_new_session=True, **start)
    deadline = time.monotonic() + 60
    while not (checkout / ".venv/pyvenv.cfg").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGINT)  # as Ctrl-C reaches it and its children
    said = first.communicate(timeout=60)[0]
    assert first.returncode != 0 and "Traceback" not in said and "interrupted" in said.lower(), said
    both = [subprocess.Popen(command, **start) for _ in range(2)]
    texts = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert sorted(text.count("installing torch") for text in texts) == [0, 1], texts
    assert installed(checkout) == checkout
    assert json.loads((checkout / ".venv/course-setup.json").read_text())["root"] == str(checkout)


def test_a_relative_course_venv_is_a_folder_where_the_command_is_given(checkout, wheels, tmp_path):
    done = set_up(checkout, wheels, cwd=tmp_path, COURSE_VENV="env of mine")
    assert done.returncode == 0, done.stdout + done.stderr
    assert installed(tmp_path, "env of mine") == checkout


def test_an_environment_made_by_somebody_else_is_never_emptied(checkout, wheels, tmp_path):
    theirs = tmp_path / "theirs"
    subprocess.run([sys._base_executable, "-m", "venv", "--without-pip", theirs], check=True)
    (theirs / "thesis.txt").write_text("mine")
    assert "has no pip" in one_line(set_up(checkout, wheels, COURSE_VENV=theirs))
    for program in (theirs / "bin").glob("python*"):
        program.unlink()
    assert "Name another folder" in one_line(set_up(checkout, wheels, COURSE_VENV=theirs))
    assert (theirs / "thesis.txt").read_text() == "mine"
    theirs.rename(tmp_path / "file")
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


def read_only(folder):
    """A command that begins another one for which `folder` is read-only, as root may not change it either."""
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, str(folder)]
    try:
        tried = subprocess.run([*command, "touch", folder / "tried"], capture_output=True, text=True)
    except OSError:
        tried = None
    if tried is None or "Read-only" not in tried.stderr:
        pytest.skip("no read-only mount can be made here")
    return command


def test_a_read_only_checkout_is_said_in_one_line(checkout, wheels):
    command = [*read_only(checkout), sys._base_executable, str(checkout / SCRIPT), "--no-model"]
    done = subprocess.run(command, env=environment(wheels), capture_output=True, text=True)
    assert "is read-only" in one_line(done)


def test_a_full_disk_is_said_in_one_line(checkout, wheels, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    script = 'mount -t tmpfs -o size=2m none "$0" && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, str(small)]
    try:
        possible = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    except OSError:
        possible = False
    if not possible:
        pytest.skip("no small file system can be made here")
    done = subprocess.run([*command, sys._base_executable, str(checkout / SCRIPT), "--no-model"],
                          env=environment(wheels, COURSE_VENV=small / "venv"), capture_output=True, text=True)
    line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "Set-up stopped" in line and "make command again" in line
