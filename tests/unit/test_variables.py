"""What pip hears of a user's settings: from where packages come, not where they go."""

import ast
import os
import subprocess
import sys

import pytest

from course_utils import variables

ASTRAY = {"PIP_USER": "1", "PIP_TARGET": "/t", "PIP_PREFIX": "/p", "PIP_REQUIRE_VIRTUALENV": "1",
          "PIP_REQUIRE_HASHES": "1", "PIP_DRY_RUN": "1", "PIP_NO_DEPS": "1", "PIP_PLATFORM": "win32",
          "PIP_REQUIREMENT": "none.txt", "UV_SYSTEM_PYTHON": "1"}
HEARD = {"PIP_INDEX_URL": "https://index.invalid/simple", "PIP_NO_INDEX": "1", "PIP_CERT": "/c.pem",
         "HTTPS_PROXY": "http://proxy.invalid"}


def settings(environment):
    """What pip finds in files and variables together."""
    told = subprocess.run([sys.executable, "-m", "pip", "config", "list"], env=environment,
                          capture_output=True, text=True, check=True).stdout
    pairs = (line.partition("=")[::2] for line in told.splitlines())
    return {name.rpartition(".")[2]: ast.literal_eval(value) for name, value in pairs}


def test_variables_that_lead_astray_go_and_the_others_stay(monkeypatch):
    for name, value in (ASTRAY | HEARD).items():
        monkeypatch.setenv(name, value)
    found = variables.for_pip()
    assert not ASTRAY.keys() & found.keys()
    assert HEARD.items() <= found.items()


def test_the_same_for_files(monkeypatch, tmp_path):
    """An empty variable would not take back what a file says."""
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nindex-url = https://index.invalid/simple\nrequire-virtualenv = true\n"
                    "[install]\ntarget = /t\nuser = yes\nfind-links =\n    /a\n    /b\n")
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    assert {"target", "user", "require-virtualenv"} <= settings(os.environ).keys()
    found = settings(variables.for_pip())
    assert not {"target", "user", "require-virtualenv"} & found.keys()
    assert found["index-url"] == "https://index.invalid/simple"
    assert found["find-links"].split() == ["/a", "/b"]


@pytest.mark.parametrize("name", ["PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONUSERBASE"])
def test_another_python_is_not_led_to_our_packages(monkeypatch, name):
    monkeypatch.setenv(name, "/elsewhere")
    assert name not in variables.for_python()


def test_this_python_keeps_its_packages_and_another_gets_its_own(monkeypatch, tmp_path):
    """Where the course was unpacked on top of another Python, PYTHONPATH is how pip itself is found."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert variables.for_pip()["PYTHONPATH"] == str(tmp_path)
    other = tmp_path / "python"
    other.symlink_to(sys.executable)
    assert "PYTHONPATH" not in variables.for_pip(other)
