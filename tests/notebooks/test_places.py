"""Paths that a user gives, results that cannot be written, notebooks that were changed by other programs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from typer.testing import CliRunner

from authoring import claims, cli, places
from authoring.execute import check_parameters, execute
from authoring.generate import PARAMETERS
from authoring.grading.reports import page_names
from authoring.grading.submissions import collect
from authoring.project import Project, select
from course_utils import cache, models
from course_utils.errors import CourseError
from tests.surroundings import read_only, small_disk

COMMAND = [sys.executable, "-m", "authoring.cli", "--root"]
ROOT = Path(__file__).resolve().parents[2]


def course(project, *arguments, before=(), cwd=None, **variables):
    """Run the command; its standard output and error together, and its exit code."""
    path = f"{project.root}{os.pathsep}{ROOT}"  # the project's exercises, then ours
    environment = os.environ | {"COLUMNS": "250", "PYTHONPATH": path} | variables
    done = subprocess.run([*before, *COMMAND, str(project.root), *map(str, arguments)], cwd=cwd, text=True,
                          env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    return done.stdout, done.returncode


def one_line(text):
    """The error, which is the last line; there is no traceback."""
    assert "Traceback" not in text, text
    return " ".join(text[text.index("error: "):].split("\n"))


# --------------------------------------------------------------------------- paths

@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A model's folder, models/tiny in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/tiny").mkdir(parents=True)
    (tmp_path / "models/tiny/config.json").write_text("{}")
    return tmp_path / "models/tiny"


@pytest.mark.parametrize("written", ["models/tiny", "./models/tiny", "models/../models/tiny/"])
def test_a_model_s_folder_is_found_where_the_command_is_given(tiny, written):
    assert places.model(written) == str(tiny)
    assert places.model("some/name") == "some/name"


@pytest.mark.parametrize("written", ["./models/none", "/none/at/all", "models", "~/none-at-all"])
def test_a_folder_that_holds_no_model_is_named(tiny, written):
    with pytest.raises(ValueError, match="there is no folder|no config.json"):
        places.model(written)


def test_variables_are_written_in_full(tiny, monkeypatch):
    for name in ("JUPYTER_PATH", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # put back afterwards
    monkeypatch.setenv("COURSE_LM", "models/tiny")
    monkeypatch.setenv("COURSE_CACHE", "kept here")
    monkeypatch.setenv("COURSE_RUNS", "~/runs")
    monkeypatch.setenv("HF_HOME", "hub")
    places.settle_variables()
    assert os.environ["COURSE_LM"] == str(tiny)
    assert os.environ["COURSE_CACHE"] == str(Path.cwd() / "kept here")
    assert os.environ["COURSE_RUNS"] == str(Path.home() / "runs")
    assert os.environ["HF_HOME"] == str(Path.cwd() / "hub")


def test_a_working_directory_that_was_removed_is_said(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert places.absolute(tmp_path / "x") == tmp_path / "x"
    with pytest.raises(ValueError, match="change into a folder again"):
        places.model("models/tiny")


def test_a_bundle_that_cannot_be_written_is_said_before_anything_is_packed(tmp_path):
    (tmp_path / "file").touch()
    out, code = course(Project(ROOT), "bundle", "--out", tmp_path / "file" / "parts")
    assert code == 1 and "name another folder with --out" in one_line(out)


def test_without_a_home_folder_the_variable_is_named(monkeypatch):
    """As for a user of a container whom its system does not know."""
    def unknown(number):
        raise KeyError(number)

    for name in ("XDG_CACHE_HOME", "COURSE_CACHE", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(CourseError, match="COURSE_CACHE"):
        cache.cache_dir()


def test_a_folder_named_in_a_notebook_is_said_with_the_place_it_was_looked_for(tmp_path, monkeypatch):
    """A kernel runs in the notebook's folder, not where COURSE_LM was set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_LM", "./tiny")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "tiny"))):
        models.load_lm()


def test_a_file_that_cannot_be_written_is_found_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="--feedback"):
        places.writable_folder(tmp_path / "file", "name another with --feedback")
    with pytest.raises(ValueError, match="--csv"):
        places.writable_file(tmp_path, "--csv")


def test_a_learner_s_copy_is_no_lesson_and_in_nobody_s_way(tmp_path):
    files = [tmp_path / name for name in ("04_gptq.ipynb", "04_gptq-Copy1.ipynb", "04_gptq (1).ipynb")]
    assert select(files, ["gptq"]) == select(files, ["4"]) == files[:1]
    assert select(files, ["04_gptq-Copy1"]) == files[1:2]


LONG = "a" * 400  # no file system takes such a name


@pytest.mark.parametrize("name", [LONG, f"/tmp/{LONG}/x", "~no-such-user/x.ipynb", "~", "", "a\nb", "é"])
def test_names_that_no_file_can_have_are_refused_in_one_line(tmp_path, name):
    with pytest.raises(ValueError) as error:
        select([tmp_path / "04_gptq.ipynb"], [name])
    assert "\n" not in str(error.value) and "04_gptq" in str(error.value)


@pytest.mark.parametrize("name", [LONG, f"/tmp/{LONG}/x"])
def test_a_name_that_is_too_long_is_no_model_and_no_file_to_write(name):
    with pytest.raises(ValueError, match="there is no folder"):
        places.model(name)
    with pytest.raises(ValueError, match="name another file with --csv"):
        places.writable_file(Path(name) / "x", "--csv")


@pytest.mark.parametrize("arguments, said", [
    (["phone", "serve", "--out", LONG], "the name is too long"),
    (["phone", "serve", "--out", __file__], "part of the path is a file|there is no page"),
    (["gpu-run", "--limit", "lessons=\N{SUPERSCRIPT TWO}"], "--limit is written STEP=SECONDS"),
    (["engines", "run", "torch", "no JSON"], "the request 'no JSON' is no JSON"),
    (["engines", "run", "torch", "[" * 100_000], "is no JSON"),
    (["engines", "run", "torch", "[1]"], "is no JSON object"),
    (["engines", "run", "torch", "@/no/file"], "file /no/file cannot be read: No such file"),
    (["engines", "run", "torch", "@/"], "file / cannot be read: Is a directory"),
], ids=range(8))
def test_the_command_says_what_is_wrong_in_one_line(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["course", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, text = capsys.readouterr()
    assert ended.value.code not in (0, None) and out == ""
    assert len(text.splitlines()) == 1 and re.search(said, text), text


@pytest.mark.parametrize("cell", ['{"outputs": [{"name": "stdout"}]}', "3", '{"outputs": 3}'])
def test_a_damaged_pyproject_is_named_and_a_damaged_solution_shows_no_claim(tmp_path, cell):
    for name, text in (("lessons/04_a.py", ""), ("solutions/04_a.ipynb", f'{{"cells": [{cell}]}}')):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    (tmp_path / "pyproject.toml").write_text("x = [")
    assert claims.read_shown(Project(tmp_path)) == []
    with pytest.raises(ValueError, match="pyproject.toml: is no TOML"):
        Project(tmp_path).settings  # noqa: B018


@pytest.mark.parametrize("arguments", [
    ["grade", "x", "--memory", "inf"], ["grade", "x", "--memory", "nan"], ["grade", "x", "--total", "inf"],
    ["grade", "x", "--timeout", "1e300"], ["gpu-run", "--minutes", "nan"], ["gpu-run", "--minutes", "-1"],
    ["gpu-run", "--minutes", "inf"], ["verify", "--threads", "99999999999999999999"],
    ["similar", "04", "x", "--least", "nan"], ["phone", "serve", "--port", "65536"]])
def test_numbers_without_bounds_are_refused(arguments):
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 2 and arguments[-2] in done.output and "Traceback" not in done.output


# --------------------------------------------------------------------------- pages of submissions

def names(*paths):
    found = page_names([Path(path) for path in paths])
    assert len({name.casefold() for name in found}) == len(paths)
    return found


def test_a_page_is_called_like_its_file_and_says_whose_it_is_where_that_is_not_enough():
    assert names("alice.ipynb", "bob.ipynb") == ["alice", "bob"]
    assert names("/c/a/L.ipynb", "/c/b/L.ipynb", "/c/carol.ipynb") == ["a_L", "b_L", "carol"]
    assert names("/c/anna b/L.ipynb", "/c/Jörg/L.ipynb", "/c/李/L.ipynb") == ["anna b_L", "Jörg_L", "李_L"]
    assert names("/x/anna/ps1/L.ipynb", "/x/bert/ps1/L.ipynb") == ["anna_ps1_L", "bert_ps1_L"]
    assert names("/x/anna/L.ipynb", "/y/anna/L.ipynb") == ["x_anna_L", "y_anna_L"]


def test_names_that_a_file_system_may_take_for_one_differ():
    assert names("/s/Anna/L.ipynb", "/t/anna/L.ipynb") == ["s_Anna_L", "t_anna_L"]
    assert len(set(names("/a_b/L.ipynb", "/a/b_L.ipynb", "/a/b/L.ipynb"))) == 3
    assert len(set(names(*(f"/{x}/{'long' * 60}/L.ipynb" for x in "abc")))) == 3
    accents = names("/a/Jo\u0308rg.ipynb", "/b/J\u00f6rg.ipynb")
    assert [name[0] for name in accents] == ["a", "b"]


def test_a_submission_named_twice_is_graded_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path)  # another name for the folder: another submission
    found = collect([Path("a.ipynb"), Path("./a.ipynb"), Path("b/a.ipynb")])
    assert [submission.path for submission in found] == [Path("a.ipynb"), Path("b/a.ipynb")]
    assert "graded once" in capsys.readouterr().out


# --------------------------------------------------------------------------- parameters

def lesson(*sources, parameters=PARAMETERS, tags=("parameters",)):
    cell = new_code_cell(parameters, id="parameters", metadata={"tags": list(tags)})
    others = [new_code_cell(text, id=f"cell-{n}") for n, text in enumerate(sources)]
    return new_notebook(cells=[cell, *others])


@pytest.mark.parametrize("sources", [
    ["print(LM)"], ["%matplotlib inline\n!true\nprint(LM)"], ["def load(x):\n    LM = x\n    return LM"],
    ["from vllm import LLM"], ["this is no Python"]])
def test_parameters_that_act_are_accepted(sources):
    check_parameters(lesson(*sources), ["LM"], "here")


def moved():
    notebook = lesson("print(LM)")
    notebook.cells.reverse()
    return notebook


def doubled():
    notebook = lesson("print(LM)")
    notebook.cells.append(notebook.cells[0].copy())
    return notebook


def as_text():
    notebook = lesson("LM = ''")
    notebook.cells[0] = new_markdown_cell("Parameters", metadata={"tags": ["parameters"]})
    return notebook


@pytest.mark.parametrize(("notebook", "reason"), [
    (lesson("print(LM)", tags=()), "no cell is tagged 'parameters'"),
    (doubled(), "2 cells are tagged"),
    (as_text(), "a text cell is tagged"),
    (moved(), "'cell-0' uses LM before"),
    (lesson("LM = ''"), "'cell-0' sets LM again"),
    (lesson("if True:\n    LM = 'x'"), "'cell-0' sets LM again"),
    (lesson(parameters="LM = ''\nmodel = LM or 'embedded'"), "'parameters' uses LM before"),
])
def test_parameters_that_would_not_act_are_refused(notebook, reason):
    with pytest.raises(ValueError, match=reason):
        check_parameters(notebook, ["LM"], "here")
    check_parameters(notebook, [], "here")  # without parameters it is what the learner made of it


def test_an_earlier_run_s_cell_is_replaced():
    notebook = lesson("print(LM)")
    notebook.cells.insert(1, new_code_cell("LM = 'old'", metadata={"tags": ["injected-parameters"]}))
    check_parameters(notebook, ["LM"], "here")


# --------------------------------------------------------------------------- slow: kernels

def write(project, *sources, name="80_here.ipynb", **options):
    path = project.root / "solutions" / name
    path.parent.mkdir(exist_ok=True)
    nbformat.write(lesson(*sources, **options), path)
    return path


def printed(path):
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


@pytest.mark.slow
def test_notebooks_as_other_programs_save_them_run(tmp_path):
    bare = {"nbformat": 4, "nbformat_minor": 4, "metadata": {"colab": {"name": "L.ipynb"}}, "cells": [
        {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": ["LM = ''\n", "x = 1"],
         "outputs": [], "execution_count": None},
        {"cell_type": "code", "metadata": {"id": "aBc"}, "source": ["print('ran with', LM)"], "outputs": [],
         "execution_count": 3}]}
    path = tmp_path / "{odd} näme 80.ipynb"
    path.write_text(nbformat.v4.nbjson.JSONWriter().writes(nbformat.from_dict(bare)))
    done = execute(path, tmp_path, parameters={"LM": "org/name"})
    assert done.error is None
    assert done.notebook.cells[-1].outputs[0].text == "ran with org/name\n"


@pytest.mark.slow
def test_run_takes_the_folder_from_where_it_is_called_and_refuses_what_would_not_act(unsynced, tiny):
    write(unsynced, "print(LM)")
    out, code = course(unsynced, "run", "--lm", "models/tiny", "--out", "results", cwd=tiny.parents[1])
    assert code == 0, out
    results = tiny.parents[1] / "results"
    assert out.startswith(f"Executed notebooks go into {results}\n")
    assert printed(results / "solutions/80_here.ipynb") == f"{tiny}\n"
    write(unsynced, "print(LM)", tags=[])
    out, code = course(unsynced, "run", "--lm", "models/tiny", cwd=tiny.parents[1])
    assert code == 1 and "no cell is tagged 'parameters'" in one_line(out)
    out, code = course(unsynced, "run", "--lm", "./none")
    assert code == 1 and "there is no folder" in one_line(out)
    out, code = course(unsynced, "verify", "--lm", "models/tiny", cwd=tiny.parents[1])
    assert code == 1 and "no cell is tagged 'parameters'" in one_line(out)


@pytest.mark.slow
def test_two_users_of_a_read_only_course_have_results_of_their_own(unsynced, tmp_path):
    write(unsynced, "import os; print(os.environ['USER'])")
    before = read_only(unsynced.root)
    for user in ("anna", "bert"):
        data = tmp_path / user
        out, code = course(unsynced, "run", before=before, XDG_DATA_HOME=str(data), USER=user)
        assert code == 0, out
        (found,) = data.rglob("80_here.ipynb")
        assert out.startswith(f"Executed notebooks go into {found.parents[1]}\n")
        assert printed(found) == f"{user}\n"
    out, code = course(unsynced, "run", before=before, COURSE_RUNS=str(unsynced.root / "x"))
    assert code == 1 and "COURSE_RUNS" in one_line(out)
    write(unsynced, "print(LM)", tags=[])
    out, code = course(unsynced, "sync", before=before)
    assert code == 1 and "copy the course to a folder of your own" in one_line(out)


@pytest.mark.slow
def test_a_home_that_is_read_only_and_a_kernel_of_another_python_stop_nothing(unsynced, tmp_path):
    """`ipython kernel install --user` and conda write such a kernel, and it is called python3 too."""
    home, other = tmp_path / "home", tmp_path / "jupyter"
    home.mkdir()
    (other / "kernels/python3").mkdir(parents=True)
    (other / "kernels/python3/kernel.json").write_text(
        '{"argv": ["/bin/false"], "display_name": "x", "language": "python"}')
    write(unsynced, "import sys; print(sys.prefix)")
    out, code = course(unsynced, "run", before=read_only(home), HOME=str(home), JUPYTER_PATH=str(other),
                       XDG_DATA_HOME=str(home / "data"), JUPYTER_RUNTIME_DIR=str(home / "run"))
    assert code == 0, out
    assert printed(unsynced.root / "runs/solutions/80_here.ipynb") == f"{sys.prefix}\n"


@pytest.mark.slow
def test_a_full_disk_costs_the_notebook_and_says_so(unsynced, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    write(unsynced, "print('x' * 3_000_000)")
    write(unsynced, "print(1)", name="81_next.ipynb")
    out, code = course(unsynced, "run", "--out", disk, before=small_disk(disk, 1))
    assert code == 1 and "Traceback" not in out
    assert "could not be written: No space left" in out and "81_next: done" in out


@pytest.mark.slow
def test_a_terminal_that_knows_few_letters_gets_a_table(unsynced):
    write(unsynced, "print('größe')", name="80_here.ipynb")
    few = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    out, code = course(unsynced, "run", "--out", str(unsynced.root / "größe"), COLUMNS="", **few)
    assert code == 0, out
    assert printed(unsynced.root / "größe/solutions/80_here.ipynb") == "größe\n"


@pytest.mark.slow
def test_pages_for_equal_names_and_an_answer_that_became_text(synced, tmp_path):
    solved = nbformat.read(synced.root / "solutions/90_sample.ipynb", as_version=4)
    for student in ("anna", "bert"):
        notebook = nbformat.from_dict(solved)
        if student == "bert":
            place = next(n for n, cell in enumerate(notebook.cells) if cell.id == "ex-halve")
            old = notebook.cells[place]
            notebook.cells[place] = new_markdown_cell(old.source, id=old.id, metadata=old.metadata)
        path = tmp_path / student / "90_sample.ipynb"
        path.parent.mkdir()
        nbformat.write(notebook, path)
    out, code = course(synced, "grade", "anna/90_sample.ipynb", "bert/90_sample.ipynb", "--feedback", "f",
                       "--csv", "sub/points.csv", cwd=tmp_path)
    assert code == 0, out
    assert out.count("7/7") == 4, "each once when it is known, and once in the table"
    assert "answer ex-halve had been turned into markdown" in out
    pages = sorted((tmp_path / "f").iterdir())
    assert [page.name for page in pages] == ["anna_90_sample.html", "bert_90_sample.html"]
    assert "turned into markdown" in pages[1].read_text() and (tmp_path / "sub/points.csv").exists()
    out, code = course(synced, "grade", "anna/90_sample.ipynb", "--csv", "f", cwd=tmp_path)
    assert code == 1 and "--csv" in one_line(out)


def test_a_copied_environment_does_not_run_the_original(tmp_path):
    program = Path(sys.prefix) / "bin/course"
    if not program.exists():
        pytest.skip("the course is not installed here")
    copy = tmp_path / "copy/.venv/bin/course"
    copy.parent.mkdir(parents=True)
    shutil.copy(program, copy)
    (copy.parents[1] / "pyvenv.cfg").touch()
    done = subprocess.run([sys.executable, copy, "list"], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 1 and "run `make setup` in" in done.stderr, done.stderr
    assert str(tmp_path / "copy") in one_line(done.stderr)


def test_a_course_without_its_repository_says_what_to_do(tmp_path):
    from authoring.bundle import course_files
    from course_utils.measure.machine import commit_of

    inner = tmp_path / "unzipped"
    inner.mkdir()
    subprocess.run(["git", "init", "-q", tmp_path], check=True)  # a repository around it is not its own
    assert commit_of(inner) == ""
    with pytest.raises(CourseError, match="clone the repository"):
        course_files(Project(inner))
