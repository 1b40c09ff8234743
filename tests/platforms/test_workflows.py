"""Workflows are linted, what they call exists, and failures are sorted by cause."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
BAD = """\
on: pull_request_target
jobs:
  a:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v5
      - run: echo ${{ github.event.pull_request.title }}
"""


def zizmor(folder):
    program = Path(sys.executable).with_name("zizmor")
    return subprocess.run([program, "--offline", "--no-progress", folder], capture_output=True, text=True)


def test_zizmor_finds_nothing_in_our_workflows_and_something_in_a_bad_one(tmp_path):
    done = zizmor(ROOT / ".github")
    assert done.returncode == 0, done.stdout
    (tmp_path / "bad.yml").write_text(BAD)
    assert zizmor(tmp_path).returncode != 0


def test_actionlint_finds_nothing():
    program = shutil.which("actionlint")
    if program is None:
        pytest.skip("no actionlint: its package fetches the program from GitHub, which the workflow "
                    "`fast checks` does")
    done = subprocess.run([program, *WORKFLOWS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_exists(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for job in yaml.safe_load(path.read_text())["jobs"].values():
        assert job["timeout-minutes"] <= 120
        for command in [step.get("run", "") for step in job["steps"]]:
            assert set(re.findall(r"make ([a-z-]+)", command)) <= targets, command
            for script in re.findall(r"python (scripts/\S+\.py)", command):
                assert (ROOT / script).exists()
            for names in re.findall(r"--extras (\S+)", command):
                assert set(names.split(",")) <= extras.keys(), command


JUNIT = """<testsuites><testsuite>
<testcase classname="t" name="ok"/>
<testcase classname="t" name="slow"><failure message="Failed: Timeout &gt;60s">...</failure></testcase>
<testcase classname="t" name="pip"><error message="ModuleNotFoundError: No module named x"/></testcase>
<testcase classname="t" name="cell"><failure message="nbval.plugin.NbCellError">Cell outputs differ</failure>
</testcase>
<testcase classname="t" name="odd"><failure message="KeyError: 'a'">...</failure></testcase>
</testsuite></testsuites>"""


def test_failures_are_sorted_by_cause(tmp_path):
    (tmp_path / "tests.xml").write_text(JUNIT)
    script = ROOT / "scripts" / "sort_failures.py"
    summary = tmp_path / "summary.md"
    done = subprocess.run([sys.executable, script, tmp_path / "tests.xml"], capture_output=True, text=True,
                          env={"GITHUB_STEP_SUMMARY": str(summary)})
    assert done.returncode == 0, done.stderr
    blocks = {block.partition(":")[0]: block for block in done.stdout.split("## ")[1:]}
    named = {cause: re.findall(r"t::(\w+)", block) for cause, block in blocks.items()}
    assert named == {"time": ["slow"], "environment": ["pip"], "numbers": ["cell"], "something else": ["odd"]}
    assert summary.read_text().strip() == done.stdout.strip()
    gone = subprocess.run([sys.executable, script, tmp_path / "none.xml"], capture_output=True, text=True)
    assert gone.returncode == 0 and gone.stdout.startswith("## environment")


def test_version_and_address_are_the_ones_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == project["version"]
    assert citation["repository-code"] == project["urls"]["Repository"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("content", [None, "", "<testsuites", "folder", b"\xff\xfe\0"])
def test_what_is_no_junit_file_is_said_in_one_line(tmp_path, content):
    path = tmp_path / "tests.xml"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    script = ROOT / "scripts" / "sort_failures.py"
    done = subprocess.run([sys.executable, script, *[path] * (content is not None)], capture_output=True,
                          text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "JUnit" in done.stderr


def test_without_uv_the_lock_stays_as_it_is(tmp_path):
    lock = (ROOT / "requirements.lock").read_bytes()
    done = subprocess.run([sys.executable, ROOT / "scripts" / "make_lock.py"], capture_output=True, text=True,
                          env={"PATH": str(tmp_path)})
    assert done.returncode == 1 and done.stderr.splitlines() == ["This needs uv: pip install uv. Nothing was "
                                                                 "changed."]
    assert (ROOT / "requirements.lock").read_bytes() == lock
