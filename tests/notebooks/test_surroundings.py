"""Notebooks as other programs save them, and two accounts that share a course which neither may write."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from authoring.execute import check_parameters, read
from authoring.run import run_lessons

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("kind", ["solutions", "notebooks"])
def test_the_lessons_of_the_course_take_their_parameters(kind):
    for path in sorted((ROOT / kind).glob("[0-9]*.ipynb")):
        check_parameters(read(path), {"PROFILE": "gpu", "LM": "x", "DEVICE": "cuda"}, path.name)


def as_vs_code(node):
    kernel = {"display_name": ".venv (3.12.3)", "language": "python", "name": ".venv-of-mine"}
    node.metadata = {"kernelspec": kernel, "language_info": {"name": "python", "version": "3.12.3"},
                     "course": node.metadata["course"]}


def as_colab(node):
    node.metadata = {"colab": {"provenance": [], "toc_visible": True}, "accelerator": "GPU",
                     "kernelspec": {"name": "python3", "display_name": "Python 3"}}
    for cell in node.cells:
        cell.metadata["id"] = cell.pop("id")
    node.nbformat_minor = 0


def without_ids_and_metadata(node):
    node.metadata = {}
    for cell in node.cells:
        cell.pop("id")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::nbformat.warnings.MissingIDFieldWarning")
@pytest.mark.parametrize("change", [as_vs_code, as_colab, without_ids_and_metadata])
def test_notebooks_as_other_programs_save_them_run_with_their_parameters(synced, change):
    path = synced.root / "solutions/90_sample.ipynb"
    node = nbformat.read(path, as_version=4)
    change(node)
    path.write_text(json.dumps(node), encoding="utf-8")
    (row,) = run_lessons(synced, parameters={"LM": "org/name"})
    assert (row.passed, row.exercises, row.error) == (4, 4, "")
    executed = nbformat.read(synced.root / row.path, as_version=4)
    assert any("using cpu cpu org/name" in output.get("text", "")
               for cell in executed.cells for output in cell.get("outputs", []))


@pytest.mark.slow
def test_a_copy_of_a_notebook_elsewhere_is_what_runs(synced, tmp_path):
    """A learner keeps copies beside a checkout that is shared: not the lesson of that name runs."""
    node = nbformat.read(synced.root / "notebooks/90_sample.ipynb", as_version=4)
    node.cells = [nbformat.v4.new_code_cell("print('my own')")]
    own = [tmp_path / student / "90_sample.ipynb" for student in ("ann", "bob")]
    for path in own:
        path.parent.mkdir()
        nbformat.write(node, path)
    (row,) = run_lessons(synced, [str(own[0])], kind="notebooks")
    assert (row.error, row.exercises) == ("", 0)
    executed = nbformat.read(synced.root / row.path, as_version=4)
    assert executed.cells[0].outputs[0].text == "my own\n"
    with pytest.raises(ValueError, match="two notebooks are called 90_sample.ipynb"):
        run_lessons(synced, list(map(str, own)))
    with pytest.raises(ValueError, match="outside of the course"):
        synced.notebooks("solutions", [str(own[0])])  # as `course verify` does
    inside = str(synced.root / "solutions/90_sample.ipynb")
    assert synced.notebooks("solutions", [inside]) == [Path(inside)]


def another_account():
    """A command that begins another one as a user without rights. Skips the test where there is none."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    try:
        tried = subprocess.run([*command, sys.executable, "-c", "import authoring.cli"], cwd="/",
                               env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    except OSError:
        tried = None
    if tried is None or tried.returncode:
        pytest.skip("another user cannot run this Python here")
    return command


@pytest.mark.slow
def test_accounts_that_may_not_write_the_checkout_get_results_of_their_own(synced, tmp_path):
    command = [*another_account(), sys.executable, "-m", "authoring.cli", "--root", str(synced.root)]
    if "/tmp" not in map(str, tmp_path.parents):
        pytest.skip("the temporary folder is not shared")
    for folder in (tmp_path, *tmp_path.parents):  # pytest's own folders are for one user
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    for path in synced.root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)

    def course(*arguments, home):
        variables = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(home)}
        return subprocess.run([*command, *arguments], cwd="/", capture_output=True, text=True, env=variables)

    own = {}
    for user in ("ann", "bob"):
        home = tmp_path / user
        home.mkdir()
        os.chown(home, 65534, 65534)
        done = course("run", home=home)
        assert done.returncode == 0, done.stdout + done.stderr
        own[user] = Path(done.stdout.splitlines()[0].removeprefix("Executed notebooks go into "))
        assert own[user].is_relative_to(home) and (own[user] / "solutions/90_sample.ipynb").exists()
    assert not (synced.root / "runs").exists()
    # With a home folder that is not there, and a place for the results.
    done = course("run", "--out", str(own["ann"] / "more"), home="/proc/none")
    assert done.returncode == 0, done.stdout + done.stderr
    # What will be written is tried before anything runs.
    done = course("sync", "--force", home=own["ann"])
    assert done.returncode == 1 and "Traceback" not in done.stderr and not done.stdout
    assert "cannot be written" in done.stderr and "copy the course" in done.stderr
    done = course("run", "--out", str(synced.root / "mine"), home=own["ann"])
    assert done.returncode == 1 and "Traceback" not in done.stderr and "done" not in done.stdout
    assert "cannot be written" in done.stderr and "--out" in done.stderr
