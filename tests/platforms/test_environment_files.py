"""pyproject.toml, the conda files, the lock and the Makefile tell one story."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_FILES = ["environment.yml", "binder/environment.yml"]


def conda_packages(path):
    """What a conda file installs, each as pip would write it (conda's "=" is a prefix, pip's "==")."""
    entries = yaml.safe_load((ROOT / path).read_text())["dependencies"]
    assert all(isinstance(entry, str) for entry in entries), "a pip section would list our packages twice"
    return [re.sub(r"(?<![=<>~!])=(?!=)", "==", entry) for entry in entries]


def core():
    return {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}


@pytest.mark.parametrize("path", CONDA_FILES)
def test_conda_brings_a_python_that_fits_and_no_package_of_ours(path):
    """What the course needs is listed in pyproject.toml and pinned in the lock, and nowhere a second time."""
    found = {r.name: r.specifier for r in map(Requirement, conda_packages(path))}
    (python,) = found["python"]
    assert python.version in SpecifierSet(PROJECT["requires-python"])
    assert found.keys() <= {"python", "pip", "make"}


def test_binder_installs_by_the_set_up_that_everybody_uses():
    script = ROOT / "binder" / "postBuild"
    if not (ROOT / ".git").exists():
        pytest.skip("unpacked from an archive, which need not keep what may be executed")
    assert os.access(script, os.X_OK), "Binder runs it only if it may be executed"
    last = script.read_text().splitlines()[-1]
    named = re.search(r"python (scripts/\S+\.py)$", last)[1]
    assert (ROOT / named).exists() and "COURSE_VENV=" in last


def test_set_up_leaves_a_folder_alone_that_is_no_environment(tmp_path):
    """It would be emptied: COURSE_VENV named the wrong folder, or nothing because conda is not active."""
    kept = tmp_path / "thesis.txt"
    kept.write_text("mine")
    command = [sys.executable, ROOT / "scripts" / "setup_environment.py", "--no-model"]
    environment = os.environ | {"COURSE_VENV": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "Name another folder" in done.stderr, done.stderr
    assert kept.read_text() == "mine"


def lock():
    pins = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        requirement = Requirement(line)
        pins.setdefault(requirement.name, []).append(requirement)
    return pins


def test_lock_pins_every_requirement_within_its_range():
    pins = lock()
    extras = [r for group in PROJECT["optional-dependencies"].values() for r in group]
    for requirement in map(Requirement, PROJECT["dependencies"] + extras):
        name = requirement.name.lower().replace("_", "-")
        assert name in pins, f"{name} is not in requirements.lock: run `make lock`"
        for pin in pins[name]:
            (version,) = [s.version for s in pin.specifier]
            assert requirement.specifier.contains(Version(version)), f"{pin} is outside {requirement}"


def test_lock_names_no_address():
    assert "://" not in (ROOT / "requirements.lock").read_text()


def test_an_environment_that_has_torch_keeps_it():
    """Colab's torch must satisfy the range, so no upper bound and no exact pin."""
    assert {s.operator for s in core()["torch"]} == {">="}


def test_readme_names_the_commands_that_exist():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    named = set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", (ROOT / "README.md").read_text(), flags=re.M))
    assert named <= targets, named - targets
    assert {"course", "test", "lab", "setup", "bench"} <= named


def test_ci_calls_the_test_command_of_the_readme():
    assert re.search(r"^make test$", (ROOT / ".ci/run").read_text(), flags=re.M)
