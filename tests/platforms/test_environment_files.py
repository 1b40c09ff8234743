"""pyproject.toml, the conda files, the lock and the Makefile tell one story."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_NAMES = {"pytorch": "torch", "pytorch-cpu": "torch"}
CONDA_FILES = ["environment.yml", "binder/environment.yml"]


def core():
    return {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}


def conda_requirements(path):
    """Name and range of everything a conda file installs, in pip's names; and its lines that are options."""
    conda, (pip,) = [], [None]
    for entry in yaml.safe_load((ROOT / path).read_text())["dependencies"]:
        if isinstance(entry, dict):
            pip = entry["pip"]
        else:
            conda.append(entry)
    packages = [Requirement(line) for line in conda + [p for p in pip if not p.startswith("-")]]
    return ({CONDA_NAMES.get(r.name, r.name): r.specifier for r in packages},
            [p for p in pip if p.startswith("-")])


@pytest.mark.parametrize("path", CONDA_FILES)
def test_conda_file_agrees_with_pyproject(path):
    found, options = conda_requirements(path)
    assert str(found.pop("python")) == str(Requirement("python" + PROJECT["requires-python"]).specifier)
    assert not found.pop("pip")
    assert found == core()
    assert options == ["-e ." if path == "environment.yml" else "-e .."]


def test_binder_builds_for_the_cpu():
    text = (ROOT / "binder/environment.yml").read_text()
    assert "pytorch-cpu" in text
    assert not re.search(r"cuda|nvidia", text)


@pytest.mark.parametrize("path", CONDA_FILES)
def test_each_package_names_the_lessons_that_need_it(path):
    lines = (ROOT / path).read_text().splitlines()
    packages = [line for line in lines if re.match(r"\s+- [a-z][\w-]*>=", line) and "python>=" not in line]
    assert len(packages) == len(core())
    for line in packages:
        assert re.search(r"#.*(every lesson|\d\d|command)", line), line


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
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / "README.md").read_text(), flags=re.M))
    assert named <= targets, named - targets
    assert {"course", "test", "lab", "setup", "bench"} <= named


def test_ci_calls_the_test_command_of_the_readme():
    assert re.search(r"^make test$", (ROOT / ".ci/run").read_text(), flags=re.M)
