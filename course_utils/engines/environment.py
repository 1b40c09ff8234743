"""Building an engine's virtual environment."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TextIO

import filelock
from tqdm import tqdm

from course_utils import variables
from course_utils.engines.entry import Engine
from course_utils.errors import CourseError

MARKER = "installed.json"


def is_installed(engine: Engine) -> bool:
    """True when the environment is complete and made from the pins as they are now."""
    if engine.requirements is None:
        return all(importlib.util.find_spec(module) for module in engine.modules)
    try:
        return json.loads((engine.folder / MARKER).read_text(encoding="utf-8"))["pins"] == fingerprint(engine)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def pins(engine: Engine) -> list[str]:
    """Lines of the engine's requirements, without comments.

    Raises:
        OSError: the file cannot be read.
    """
    text = engine.requirements.read_text(encoding="utf-8")
    lines = [line.partition(" #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def fingerprint(engine: Engine) -> str:
    """A hash of the engine's pins and of where it borrows packages; "missing" for an engine without pins."""
    borrowed = _site_packages() if engine.borrows else []  # another Python has other packages
    try:
        return hashlib.sha256("\n".join([*pins(engine), *engine.without, *borrowed]).encode()).hexdigest()
    except OSError:
        return "missing"


def has_gpu() -> bool:
    """True when NVIDIA's driver lists a GPU. The course's own torch may be a build for CPUs only."""
    if not shutil.which("nvidia-smi"):
        return False
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return done.returncode == 0 and "GPU" in done.stdout


def install(engine: Engine, python: str | Path = sys.executable, again: bool = False) -> Path:
    """Build the engine's environment unless it is complete. Shows progress.

    A marker file is written last. An environment without it, because an install was interrupted or the pins
    have changed since, is removed and built anew. Two processes do not build at once.

    Args:
        engine: which one.
        python: the interpreter to build it with.
        again: build it even if it is complete.

    Returns:
        The environment's folder.

    Raises:
        CourseError: the engine needs a GPU and there is none, or pip failed. pip's messages are in
            NAME-install.log beside the environment.
    """
    if engine.requirements is None:
        if not is_installed(engine):
            raise CourseError(f"{engine.name} needs {', '.join(engine.modules)} in the course's own Python: "
                              "run `make setup`")
        return engine.folder
    if engine.gpu and not has_gpu():
        raise CourseError(f"{engine.name} needs an NVIDIA GPU, and there is none here. "
                          "Install it on a machine where `nvidia-smi -L` lists one")
    if engine.borrows and Path(python) != Path(sys.executable):
        raise CourseError(f"{engine.name} uses packages of the course's own Python, so it is built with "
                          "that one: leave --python out")
    engine.folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(engine.folder.parent / f".{engine.name}.lock"):
        if is_installed(engine) and not again:
            return engine.folder
        if not engine.requirements.exists():
            raise CourseError(f"{engine.requirements} is missing: install the course again")
        shutil.rmtree(engine.folder, ignore_errors=True)
        log = engine.folder.parent / f"{engine.name}-install.log"
        with open(log, "w", encoding="utf-8") as record:
            for step, command in _steps(engine, python):
                _run(engine, step, command, record)
                if engine.borrows and not _borrowed(engine).exists():
                    _borrowed(engine).write_text("".join(f"{folder}\n" for folder in _site_packages()))
        aside = engine.folder / f"{MARKER}.tmp"
        aside.write_text(json.dumps({"pins": fingerprint(engine)}))
        os.replace(aside, engine.folder / MARKER)
    return engine.folder


def _site_packages() -> list[str]:
    """Folders of the packages of the Python that runs now."""
    return list(dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib")))


def _borrowed(engine: Engine) -> Path:
    """The file that adds the course's packages to the environment: Python reads it when it starts."""
    if os.name == "nt":
        return engine.folder / "Lib" / "site-packages" / "course.pth"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return engine.folder / "lib" / version / "site-packages" / "course.pth"


def _steps(engine: Engine, python: str | Path) -> list[tuple[str, list[str]]]:
    """(what it does, command) of each step of an install, in order."""
    pip = [str(engine.python), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    steps = [("creating the environment", [str(python), "-m", "venv", "--clear", str(engine.folder)])]
    if engine.build_first:
        first = [line for line in pins(engine) if re.split(r"[=<>~! ]", line)[0] in engine.build_first]
        steps.append(("installing what other packages are built with", [*pip, *first]))
    steps.append(("installing all packages", [*pip, "--no-build-isolation", "-r", str(engine.requirements)]))
    if engine.without:
        remove = [str(engine.python), "-m", "pip", "uninstall", "--yes", *engine.without]
        steps.append(("removing what does not fit", remove))
    return steps


def _run(engine: Engine, step: str, command: list[str], record: TextIO) -> None:
    """Run one step; each package that pip takes up moves the bar on."""
    # Before there is an environment, there is no pip to ask for its settings.
    clean = variables.for_pip(engine.python) if engine.python.exists() else variables.for_python()
    environment = clean | engine.variables
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL, env=environment)
    with tqdm(desc=f"{engine.name}: {step}", unit=" packages", leave=False) as bar:
        try:
            for line in process.stdout:
                record.write(line)
                if line.startswith("Collecting "):
                    bar.update()
                    bar.set_postfix_str(line.split()[1])
                elif line.startswith("Installing collected"):
                    bar.set_postfix_str("unpacking")
            process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
    if process.returncode:
        record.flush()
        lines = [line for line in Path(record.name).read_text(encoding="utf-8").splitlines() if line.strip()]
        errors = [line.strip() for line in lines if line.strip().lower().startswith("error")]
        cause = (errors or lines[-1:] or ["no message"])[0]
        raise CourseError(f"installing {engine.name} failed while {step}: {cause} "
                          f"The whole log: {record.name}")
