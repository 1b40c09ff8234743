"""The line that begins every lesson: nothing happens here, and on Colab only what is missing is installed."""

import subprocess
import sys
from importlib.metadata import version

import pytest

from authoring import links
from course_utils import lesson_setup
from course_utils.errors import CourseError


def test_setup_does_nothing_where_the_package_is_installed(monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *a, **k: pytest.fail("nothing is to be installed here"))
    lesson_setup.prepare()
    line = links.setup_line("https://github.com/a/b", "v1")
    exec(line, {"get_ipython": lambda: pytest.fail("nothing is to be installed here")})


def test_setup_on_colab_installs_what_is_missing_and_keeps_its_torch(monkeypatch):
    calls = []

    def record(command, **_):
        if "config" in command:  # pip is asked for the user's settings
            return subprocess.CompletedProcess(command, 1, "", "")
        constraints = open(command[command.index("-c") + 1]).read()
        calls.append((command, constraints))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setitem(sys.modules, "google.colab", object())
    monkeypatch.setattr(lesson_setup.subprocess, "run", record)
    requires = ["torch>=2.6", "not-there-at-all>=1", 'jupytext>=99; extra == "author"', "numpy>=99"]
    monkeypatch.setattr(lesson_setup.importlib.metadata, "requires", lambda name: requires)
    lesson_setup.prepare()
    command, constraints = calls[0]
    assert command[-2:] == ["not-there-at-all>=1", "numpy>=99"]
    assert f"torch=={version('torch')}" in constraints
    requires[:] = ["torch>=2.6"]
    lesson_setup.prepare()  # nothing is missing the second time
    assert len(calls) == 1


def test_an_install_that_fails_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", object())
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # as without a network, and quicker
    monkeypatch.setattr(lesson_setup.importlib.metadata, "requires", lambda name: ["not-there-at-all>=1"])
    with pytest.raises(CourseError, match="could not install not-there-at-all>=1 .*Run this cell again"):
        lesson_setup.prepare()
