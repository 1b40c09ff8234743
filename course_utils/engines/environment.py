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
from dataclasses import dataclass, field
from pathlib import Path

import filelock
from tqdm import tqdm

from course_utils.cache import cache_dir
from course_utils.errors import CourseError

MARKER = "installed.json"


@dataclass(frozen=True)
class Engine:
    """An engine: its pinned requirements (a pip file) and its worker script.

    requirements: None for an engine that runs in the course's own Python, when `modules` are there.
    build_first: names out of the requirements that other packages need while they are built.
    variables: environment variables for pip and for the worker.
    megabytes: size of the installed environment, about; 0 when nobody has measured it.
    borrows: its environment also sees the course's packages, after its own. So torch is not installed twice.
    modules: what the course's own Python must be able to import, for an engine without requirements.
    needs: names of engines whose prepared files this one reads; they are installed as well.
    steps: names of what its worker prepares once from a model, in this order.
    gpu: it needs an NVIDIA GPU.
    files: raise it when the worker prepares something else; what is in the cache is then made again.
    """

    name: str
    purpose: str
    requirements: Path | None
    worker: Path
    build_first: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    megabytes: int = 0
    borrows: bool = False
    modules: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    gpu: bool = False
    files: int = 1

    @property
    def folder(self) -> Path:
        """Where its environment is, or will be."""
        return cache_dir() / "environments" / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        if self.requirements is None:
            return Path(sys.executable)
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def how_to_install(self) -> str:
        """The command that installs it."""
        if self.requirements is None:
            return "make setup"
        return f"course engines install {self.name}"


def is_installed(engine: Engine) -> bool:
    """True when the environment is complete and made from the pins as they are now."""
    if engine.requirements is None:
        return all(importlib.util.find_spec(module) for module in engine.modules)
    try:
        return json.loads((engine.folder / MARKER).read_text())["pins"] == _pins(engine)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def has_gpu() -> bool:
    """True when NVIDIA's driver lists a GPU. (The course's own torch may be a build for CPUs only.)"""
    if not shutil.which("nvidia-smi"):
        return False
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return done.returncode == 0 and "GPU" in done.stdout


def install(engine: Engine, python: str | Path = sys.executable, again: bool = False) -> Path:
    """Build the engine's environment unless it is complete; returns its folder. Shows progress.

    A marker file is written last. An environment without it, because an install was interrupted or the pins
    have changed since, is removed and built anew. Two processes do not build at once.
    python: the interpreter to build it with. again: build it even if it is complete.
    Raises CourseError for an engine that needs a GPU where there is none, and when pip fails; pip's messages
    are in install.log beside the environment.
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
            raise CourseError(f"{engine.requirements} is missing: engines are installed from a clone of the "
                              "course's repository")
        shutil.rmtree(engine.folder, ignore_errors=True)
        log = engine.folder.parent / f"{engine.name}-install.log"
        with open(log, "w") as record:
            for step, command in _steps(engine, python):
                _run(engine, step, command, record)
                if engine.borrows and not _borrowed(engine).exists():
                    _borrowed(engine).write_text("".join(f"{folder}\n" for folder in _site_packages()))
        aside = engine.folder / f"{MARKER}.tmp"
        aside.write_text(json.dumps({"pins": _pins(engine)}))
        os.replace(aside, engine.folder / MARKER)
    return engine.folder


def _pins(engine: Engine) -> str:
    # Borrowed packages are part of what was installed: another Python has others.
    borrowed = "".join(_site_packages()) if engine.borrows else ""
    try:
        return hashlib.sha256(engine.requirements.read_bytes() + borrowed.encode()).hexdigest()
    except OSError:
        return "missing"


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
    pip = [str(engine.python), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    steps = [("creating the environment", [str(python), "-m", "venv", "--clear", str(engine.folder)])]
    if engine.build_first:
        lines = engine.requirements.read_text().splitlines()
        first = [line for line in lines if re.split(r"[=<>~! ]", line.strip())[0] in engine.build_first]
        steps.append(("installing what other packages are built with", [*pip, *first]))
    steps.append(("installing all packages", [*pip, "--no-build-isolation", "-r", str(engine.requirements)]))
    return steps


def _run(engine: Engine, step: str, command: list[str], record) -> None:
    """Run one step; each package that pip takes up moves the bar on."""
    environment = clean_environment() | engine.variables
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               stdin=subprocess.DEVNULL, env=environment)
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
        lines = [line for line in Path(record.name).read_text().splitlines() if line.strip()]
        errors = [line.strip() for line in lines if line.strip().lower().startswith("error")]
        cause = (errors or lines[-1:] or ["no message"])[0]
        raise CourseError(f"installing {engine.name} failed while {step}: {cause} "
                          f"The whole log: {record.name}")


def clean_environment() -> dict[str, str]:
    """This process's variables without those that would lead another Python to our packages."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP")
    return {name: value for name, value in os.environ.items() if name not in ours}
