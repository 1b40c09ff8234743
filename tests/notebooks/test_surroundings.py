"""The `course` command where people use it: from any folder, on notebooks that other programs have saved."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from authoring import cli, places
from authoring.execute import check_parameters, execute, read
from authoring.run import run_lessons

COMMAND = [sys.executable, "-m", "authoring.cli", "--root"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a model's folder."""
    folder = tmp_path / "working here"
    (folder / "models/tiny").mkdir(parents=True)
    (folder / "models/tiny/config.json").write_text("{}")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", ["./models/tiny", "models/tiny", "models/../models/tiny/", "{home}/tiny"])
def test_a_local_model_is_named_in_full(here, monkeypatch, name):
    monkeypatch.setenv("HOME", str(here / "models"))
    name = name.format(home="~")
    assert cli.parameters(None, name, None) == {"LM": str(here / "models/tiny")}
    monkeypatch.setenv("COURSE_LM", name)
    places.settle_variables()
    assert os.environ["COURSE_LM"] == str(here / "models/tiny")


def test_a_model_of_the_hub_stays_and_a_folder_that_is_not_there_is_refused(here):
    assert cli.parameters(None, "org/name", None) == {"LM": "org/name"}
    for name in ("./none", "../none/tiny", "/none", "models/none/tiny", "tiny"):
        with pytest.raises(ValueError, match="there is no folder"):
            cli.parameters(None, name, None)


def test_folders_in_variables_are_named_in_full(here, monkeypatch):
    for name in ("COURSE_CACHE", "COURSE_RUNS"):
        monkeypatch.setenv(name, "kept here")
    places.settle_variables()
    assert {os.environ[name] for name in ("COURSE_CACHE", "COURSE_RUNS")} == {str(here / "kept here")}


PARAMETERS = 'PROFILE = "cpu"\nLM = ""\nDEVICE = "cpu"'


def notebook(*cells):
    """A notebook of code cells; "#parameters" at the end of a source tags it."""
    made = [new_code_cell(source.removesuffix("#parameters"),
                          metadata={"tags": ["parameters"]} if source.endswith("#parameters") else {})
            for source in cells]
    return new_notebook(cells=made)


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ([PARAMETERS, "print(LM)"], "no cell is tagged 'parameters'"),
        ([PARAMETERS + "#parameters", PARAMETERS + "#parameters", "print(LM)"], "2 cells are tagged"),
        (["print(LM)", PARAMETERS + "#parameters"], "uses LM before the parameters are set"),
        ([PARAMETERS + "#parameters", PARAMETERS, "print(LM)"], "sets .*LM.* again"),
        ([PARAMETERS + "#parameters", 'if True:\n    LM = ""', "print(LM)"], "sets LM again"),
        ([PARAMETERS + "#parameters", "%load_ext autoreload\nLM = ''"], "sets LM again"),
    ],
)
def test_parameters_that_would_not_act_are_refused(cells, reason):
    with pytest.raises(ValueError, match=reason) as refused:
        check_parameters(notebook(*cells), {"LM": "org/name"}, "07.ipynb")
    assert "\n" not in str(refused.value) and str(refused.value).startswith("07.ipynb")
    check_parameters(notebook(*cells), {}, "07.ipynb")  # nothing was asked for


def test_parameters_in_a_text_cell_are_refused_and_in_their_place_accepted():
    text = new_notebook(cells=[new_markdown_cell(PARAMETERS, metadata={"tags": ["parameters"]})])
    with pytest.raises(ValueError, match="a text cell"):
        check_parameters(text, {"LM": "x"}, "07.ipynb")
    fine = notebook("import torch", PARAMETERS + "#parameters", "print(LM)\ndef f():\n    LM = 3", "!ls $LM",
                    "x = (")
    check_parameters(fine, {"LM": "x"}, "07.ipynb")


@pytest.mark.parametrize("kind", ["solutions", "notebooks"])
def test_the_lessons_of_the_course_take_their_parameters(kind):
    for path in sorted((ROOT / kind).glob("*.ipynb")):
        check_parameters(read(path), {"PROFILE": "gpu", "LM": "x", "DEVICE": "cuda"}, path.name)


def as_vs_code(node):
    kernel = {"display_name": ".venv (3.12.3)", "language": "python", "name": "python3"}
    node.metadata = {"kernelspec": kernel, "language_info": {"name": "python", "version": "3.12.3"},
                     "course": node.metadata["course"]}


def as_colab(node):
    node.metadata = {"colab": {"provenance": [], "toc_visible": True}, "accelerator": "GPU",
                     "kernelspec": {"name": "venv-of-mine", "display_name": "Python 3"}}
    for cell in node.cells:
        cell.metadata["id"] = cell.pop("id")
    node.nbformat_minor = 0


def without_metadata(node):
    node.metadata = {}


def of_format_4_4(node):
    node.nbformat_minor = 4
    for cell in node.cells:
        cell.pop("id")


def without_ids(node):
    for cell in node.cells:
        cell.pop("id")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::nbformat.warnings.MissingIDFieldWarning")
@pytest.mark.parametrize("change", [as_vs_code, as_colab, without_metadata, of_format_4_4, without_ids])
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
def test_the_command_line_finds_the_model_and_refuses_a_notebook_without_its_tag(synced, here):
    command = [*COMMAND, os.path.relpath(synced.root, here), "run", "90"]
    command += ["--lm", "models/tiny", "--out", "results"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(here / "results") in done.stdout.splitlines()[0]
    executed = nbformat.read(here / "results/solutions/90_sample.ipynb", as_version=4)
    assert f"using cpu cpu {here / 'models/tiny'}" in str(executed)
    path = synced.root / "solutions/90_sample.ipynb"
    path.write_text(path.read_text().replace('"parameters"', '"other"'))
    for subcommand in ("run", "verify"):
        done = subprocess.run([*COMMAND, str(synced.root), subcommand, "--lm", "models/tiny"],
                              capture_output=True, text=True)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert "no cell is tagged 'parameters', so LM cannot be set" in done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_folder_with_braces_in_its_name_is_no_template(unsynced, tmp_path):
    unsynced.root.rename(tmp_path / "a {course} %s")
    root = tmp_path / "a {course} %s"
    done = execute(_written(root / "80_x.ipynb", "print('fine')"), root, parameters={"LM": "x"})
    assert done.error is None


def _written(path, source):
    nbformat.write(notebook(PARAMETERS + "#parameters", source), path)
    return path


def ordinary(root):
    """A command that begins another one as a user without rights, and that user's home."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    try:
        tried = subprocess.run([*command, sys.executable, "-c", "import authoring.cli"], cwd=root,
                               env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    except OSError:
        tried = None
    if tried is None or tried.returncode:
        pytest.skip("another user cannot run this Python here")
    return command


@pytest.mark.slow
def test_users_who_share_a_read_only_checkout_each_get_their_results(synced, tmp_path):
    command = ordinary("/")
    for folder in (*tmp_path.parents, tmp_path):
        if folder.owner() == "root" and str(folder).startswith("/tmp/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    for path in synced.root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    variables = os.environ | {"PYTHONPATH": f"{ROOT}", "COLUMNS": "300"}
    for user in ("ann", "bob"):
        home = tmp_path / user
        home.mkdir()
        os.chown(home, 65534, 65534)
        done = subprocess.run([*command, *COMMAND, str(synced.root), "run"], cwd="/", capture_output=True,
                              text=True, env=variables | {"HOME": str(home)})
        assert done.returncode == 0, done.stdout + done.stderr
        where = done.stdout.splitlines()[0].removeprefix("Executed notebooks go into ")
        assert Path(where).is_relative_to(home)
        assert (Path(where) / "solutions/90_sample.ipynb").exists()
    assert not (synced.root / "runs").exists()
    done = subprocess.run([*command, *COMMAND, str(synced.root), "run", "--out", str(tmp_path / "ann/mine")],
                          cwd="/", capture_output=True, text=True, env=variables | {"HOME": "/proc/none"})
    assert done.returncode == 0, done.stdout + done.stderr  # without a home folder
    # What will be written is tried before anything runs.
    done = subprocess.run([*command, *COMMAND, str(synced.root), "sync", "--force"], cwd="/",
                          capture_output=True, text=True, env=variables | {"HOME": str(tmp_path / "ann")})
    assert done.returncode == 1 and "Traceback" not in done.stderr and not done.stdout
    assert "cannot be written" in done.stderr and "copy the course" in done.stderr
    done = subprocess.run([*command, *COMMAND, str(synced.root), "run", "--out", str(synced.root / "mine")],
                          cwd="/", capture_output=True, text=True,
                          env=variables | {"HOME": str(tmp_path / "ann")})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "cannot be written" in done.stderr and "--out" in done.stderr and "done" not in done.stdout


@pytest.mark.slow
def test_a_learner_s_copy_beside_the_notebooks_keeps_nothing_from_running(synced):
    copy = synced.root / "solutions/90_sample-Copy1.ipynb"
    copy.write_bytes((synced.root / "solutions/90_sample.ipynb").read_bytes())
    assert [path.name for path in synced.notebooks("solutions", ["90"])] == ["90_sample.ipynb"]
