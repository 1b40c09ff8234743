"""Folders and files that a user names, or that are chosen for them: found where the command is given.

Notebooks run in a folder of their own, so a path is made absolute before they start. What will be written
is tried before anything runs.
"""

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import platformdirs
from jupyter_core.paths import jupyter_runtime_dir

from authoring.project import Project

RUNS = "COURSE_RUNS"  # environment variable: folder for executed notebooks
WORK = "COURSE_WORK"  # environment variable: folder for the learner's copies of the notebooks
# Environment variables that name folders; the last two are of the hub's library, which loads models.
FOLDERS = ("COURSE_CACHE", RUNS, WORK, "HF_HOME", "HF_HUB_CACHE")


def absolute(path: str | Path) -> Path:
    """A path in full.

    Args:
        path: as the user wrote it, from the working directory; "~" is the home folder.

    Returns:
        The absolute path, links left as they are.

    Raises:
        ValueError: the working directory was removed or replaced meanwhile.
    """
    try:
        return Path(os.path.abspath(os.path.expanduser(path)))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is looked for in the folder that you are in, which is no longer there: "
                         "change into a folder again.") from error


def model(name: str, source: str = "--lm") -> str:
    """A model's name as a notebook in any folder understands it.

    Args:
        name: a folder, or a model of the hub ("org/name").
        source: where the name was given, for the error.

    Returns:
        The folder in full, when there is such a folder; else the name.

    Raises:
        ValueError: it is written as a folder, and there is no such folder, or no model in it.
    """
    folder = absolute(name)
    if os.path.isdir(folder):  # a name may be too long for Path.is_dir
        if not (folder / "config.json").is_file():
            raise ValueError(f"{source} {name}: {folder} is no model folder, it has no config.json.")
        return str(folder)
    if name.startswith(("~", ".", "/")) or name.count("/") != 1 or os.path.exists(folder):
        raise ValueError(f"{source} {name}: there is no folder {folder}; a hub's model is called org/name.")
    return name


def settle_variables() -> None:
    """Settle the environment variables of all that is started from here, kernels above all.

    Relative paths in the variables that name folders are written in full. Jupyter finds the kernel of this
    Python before one of the same name that the user has, and a place for its files where the home folder
    has none.

    Raises:
        ValueError: COURSE_LM names a folder that does not exist.
    """
    for name in FOLDERS:
        if os.environ.get(name):
            os.environ[name] = str(absolute(os.environ[name]))
    if os.environ.get("COURSE_LM"):
        os.environ["COURSE_LM"] = model(os.environ["COURSE_LM"], "COURSE_LM")
    kernels = [os.path.join(sys.prefix, "share", "jupyter"), os.environ.get("JUPYTER_PATH", "")]
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, kernels))
    try:
        writable_folder(Path(jupyter_runtime_dir()))
    except ValueError:
        folder = tempfile.mkdtemp(prefix="course-jupyter-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["JUPYTER_RUNTIME_DIR"] = folder


def runs_folder(project: Project, chosen: Path | None = None) -> Path:
    """The folder that gets executed notebooks; it is made.

    Args:
        project: the course.
        chosen: the folder that was asked for. Without one it is what COURSE_RUNS names; else runs/ in the
            checkout; else, where that may not be written, runs/ in the user's own folder for data.

    Returns:
        Its absolute path.

    Raises:
        ValueError: it may not be written.
    """
    if chosen:
        return writable_folder(absolute(chosen), "name another folder with --out")
    return own_folder(project, "runs", RUNS, f"--out or the variable {RUNS}")


def own_folder(project: Project, name: str, variable: str, options: str = "") -> Path:
    """A folder for what the user makes; it is made.

    Args:
        project: the course.
        name: of the folder, in the checkout or else in the user's own folder for data.
        variable: environment variable that may name another.
        options: how the user can name one, for the error; the variable when left out.

    Returns:
        Its absolute path.

    Raises:
        ValueError: it may not be written.
    """
    if os.environ.get(variable):
        return writable_folder(absolute(os.environ[variable]), f"name another folder with {variable}")
    try:
        return writable_folder(project.root / name)
    except ValueError:
        advice = f"name a folder with {options or f'the variable {variable}'}"
        try:
            own = Path(platformdirs.user_data_dir("llm-inference-course", appauthor=False)) / name
        except RuntimeError as error:
            raise ValueError(f"{project.root} is read-only and there is no home folder: {advice}.") from error
        return writable_folder(own, advice)


def writable_folder(folder: Path, advice: str = "") -> Path:
    """Make a folder and try whether files can be written into it.

    Args:
        folder: its path.
        advice: what the user can do, for the error.

    Returns:
        The same path.

    Raises:
        ValueError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error.strerror}): {advice}.") from error
    return folder


def writable_file(path: Path, option: str) -> Path:
    """Try whether a file can be written, without touching it.

    Args:
        path: of the file; folders on the way are made.
        option: what the user can set to name another, for the error.

    Returns:
        The absolute path.

    Raises:
        ValueError: it is a folder, or its folder cannot be written.
    """
    path = absolute(path)
    if os.path.isdir(path) or os.path.exists(path) and not os.access(path, os.W_OK):
        raise ValueError(f"{path} cannot be written: name another file with {option}.")
    writable_folder(path.parent, f"name another file with {option}")
    return path
