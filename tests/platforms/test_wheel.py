"""The course without its checkout, as on Colab: what the set-up cell installs is all that lessons need.

A bare environment sees Jupyter and torch of this Python and nothing else of it. The set-up cell of a
generated notebook runs there, with the repository's address replaced by that of a local git repository which
holds the working tree as it is. It builds and installs the course's wheel, and installs from the package
index what the course needs (about 200 MB the first time, pinned by requirements.lock). Then lessons run from
another folder.

What is not as on Colab: the machine, its Python and its own packages. The only trace of Colab is an empty
package google.colab, which the kernel imports when it starts, as Colab's does. Model and texts come from the
cache.
"""

import os
import shutil
import subprocess
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from packaging.requirements import Requirement

from authoring import links
from authoring.project import Project
from tests.notebooks.test_lessons import COMMIT, in_turn

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]  # they share what takes long to make
PROJECT = Project()
PACKAGES = ("course_utils", "authoring", "recorded")
LESSONS = ("one_token", "gptq", "engines")
IN_TURN = LESSONS if os.environ.get("COURSE_EVERY_LESSON") else in_turn(LESSONS, COMMIT, 1)


def run(command, folder, environment):
    done = subprocess.run([str(part) for part in command], cwd=folder, env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-3000:]}"
    return done.stdout


def with_requirements(names):
    """The installed distributions of these names, and of all that they require."""
    found, left = {}, [(name, "") for name in names]
    while left:
        name, extra = left.pop()
        if (name, extra) in found:
            continue
        try:
            found[name, extra] = distribution(name)
        except PackageNotFoundError:  # pip did not want it here
            continue
        for requirement in map(Requirement, found[name, extra].requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                left += [(requirement.name, wanted) for wanted in ("", *requirement.extras)]
    return found.values()


def link_packages(names, folder):
    """Links in `folder` to everything that these distributions put beside one another in site-packages."""
    folder.mkdir()
    for found in with_requirements(names):
        tops = {file.parts[0] for file in found.files if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            link = folder / top
            if not link.is_symlink():
                link.symlink_to(Path(found.locate_file(top)).resolve())


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A git repository with the working tree as it is, on the branch that the notebooks name."""
    folder = tmp_path_factory.mktemp("repository")
    listing = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                             cwd=PROJECT.root, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("this is no git checkout")
    for name in filter(None, listing.stdout.split("\0")):
        if (PROJECT.root / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT.root / name, folder / name)
    for command in (["init", "-q", "-b", PROJECT.ref], ["add", "-A"], ["commit", "-q", "-m", "as it is"]):
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        run(["git", *identity, *command], folder, os.environ)
    return folder


@pytest.fixture(scope="module")
def installed(repository, tmp_path_factory):
    """The bare environment after the set-up cell: bin, site (its site-packages), environment, folder."""
    root = tmp_path_factory.mktemp("bare")
    home, folder = root / "venv", root / "elsewhere"
    venv.create(home, with_pip=True)
    (site,) = home.glob("lib/python*/site-packages")
    link_packages(("torch", "jupyterlab"), root / "borrowed")
    (root / "colab" / "google" / "colab").mkdir(parents=True)
    (root / "colab" / "google" / "colab" / "__init__.py").touch()
    # Beside site-packages, not in it: pip changes nothing outside of its own environment.
    (site / "bare.pth").write_text(f"{root / 'borrowed'}\n{root / 'colab'}\n")
    startup = root / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "colab.py").write_text("import google.colab\n")
    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in dropped} | {
        "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}", "IPYTHONDIR": str(root / "ipython"),
        "JUPYTER_DATA_DIR": str(root / "jupyter"), "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_CONSTRAINT": str(repository / "requirements.lock")}
    folder.mkdir()

    python = home / "bin" / "python"
    absent = "import importlib.util as u; assert not any(map(u.find_spec, ['course_utils', 'transformers']))"
    run([python, "-c", absent + "; import torch, jupyterlab"], folder, environment)
    notebook = nbformat.read(PROJECT.notebook("notebooks", PROJECT.lesson("one_token")), as_version=4)
    (cell,) = [c for c in notebook.cells if c.source == links.setup_line(PROJECT.repository, PROJECT.ref)]
    cell.source = links.setup_line(repository.as_uri(), PROJECT.ref)
    notebook.cells = [cell]
    nbformat.write(notebook, folder / "setup.ipynb")
    run([python, "-m", "nbconvert", "--to", "notebook", "--execute", "setup.ipynb"], folder, environment)
    return SimpleNamespace(bin=home / "bin", site=site, environment=environment, folder=folder)


def test_what_is_installed_is_the_whole_of_our_packages(repository, installed):
    def files(root):
        return {str(path.relative_to(root)) for package in PACKAGES for path in (root / package).rglob("*")
                if path.is_file() and "__pycache__" not in path.parts}

    assert files(installed.site) == files(repository)


def test_the_set_up_cell_of_every_lesson_finds_nothing_more_to_do(repository, installed):
    frozen = [installed.bin / "python", "-m", "pip", "freeze"]
    before = run(frozen, installed.folder, installed.environment)
    cells, line = [], links.setup_line(PROJECT.repository, PROJECT.ref)
    for path in PROJECT.notebooks("notebooks"):
        (cell,) = [c for c in nbformat.read(path, as_version=4).cells if c.source == line]
        cell.update(source=links.setup_line(repository.as_uri(), PROJECT.ref), id=path.stem)
        cells.append(cell)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), installed.folder / "again.ipynb")
    run([installed.bin / "python", "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace",
         "again.ipynb"], installed.folder, installed.environment)
    done = nbformat.read(installed.folder / "again.ipynb", as_version=4).cells
    assert len(done) == len(PROJECT.lessons()) and not any(cell.outputs for cell in done)
    assert run(frozen, installed.folder, installed.environment) == before


@pytest.mark.parametrize("key", LESSONS)
def test_a_learners_notebook_runs_from_another_folder(repository, installed, key):
    if key not in IN_TURN:
        pytest.skip("has its turn with another commit; COURSE_EVERY_LESSON=1 runs all three")
    notebook = Project(repository).notebook("notebooks", PROJECT.lesson(key))
    shutil.copy(notebook, installed.folder)
    run([installed.bin / "papermill", notebook.name, f"done_{key}.ipynb", "--no-progress-bar"],
        installed.folder, installed.environment)
    done = nbformat.read(installed.folder / f"done_{key}.ipynb", as_version=4)
    assert all(cell.execution_count for cell in done.cells if cell.cell_type == "code" and cell.source)


def test_engines_are_listed(installed):
    from course_utils import engines

    listed = run([installed.bin / "course", "engines", "list"], installed.folder, installed.environment)
    assert [line.split()[0] for line in listed.splitlines()] == list(engines.ENGINES)


def test_every_engine_can_be_installed_and_called_from_there(installed):
    code = ("from course_utils import engines; print([made.name for made in engines.ENGINES.values() if not "
            "made.worker.exists() or made.requirements and not made.requirements.read_text()])")
    found = run([installed.bin / "python", "-c", code], installed.folder, installed.environment)
    assert found.splitlines()[-1] == "[]"


def test_every_record_loads(repository, installed):
    files = (repository / "recorded").glob("*.json")
    names = sorted(path.stem for path in files if path.name != "lesson_costs.json")  # a table, no record
    code = ("import sys; from course_utils import records; print(records.FOLDER); "
            "print([name for name in sys.argv[1:] if not records.load(name)])")
    found = run([installed.bin / "python", "-c", code, *names], installed.folder, installed.environment)
    assert names and found.split("\n")[-3:] == [str(installed.site / "recorded"), "[]", ""]
