"""What is said of an engine, and of a row of the table that compares engines."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from course_utils.cache import cache_dir


@dataclass(frozen=True)
class Engine:
    """An engine: a folder with its worker script and its pinned requirements, and what must be known of it.

    Attributes:
        home: the folder. Its name, with "-" for "_", is the engine's.
        purpose: one line for `course engines list`.
        place: where the engine stands in lists and in the table, low numbers first.
        script: file in `home` that runs as a process.
        build_first: names out of the requirements that other packages need while they are built.
        without: packages that pip brings along and that are removed again.
        variables: environment variables for pip and for the worker.
        megabytes: size of the installed environment, about; 0 when nobody has measured it.
        borrows: its environment also sees the course's packages, after its own. So torch is not installed
            twice.
        modules: what the course's own Python must be able to import, for an engine that runs there. Such an
            engine has no requirements.
        needs: names of engines whose prepared files this one reads; they are installed as well.
        steps: names of what its worker prepares once from a model, in this order.
        gpu: it needs an NVIDIA GPU.
        files: raise it when the worker prepares something else; what is in the cache is then made again.
    """

    home: Path
    purpose: str
    place: int = 1000
    script: str = "worker.py"
    build_first: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    megabytes: int = 0
    borrows: bool = False
    modules: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    gpu: bool = False
    files: int = 1

    @property
    def name(self) -> str:
        """What it is called."""
        return self.home.name.replace("_", "-")

    @property
    def worker(self) -> Path:
        """The script that answers requests."""
        return self.home / self.script

    @property
    def requirements(self) -> Path | None:
        """Its pins, a file for pip; None for an engine of the course's own Python."""
        return None if self.modules else self.home / "requirements.txt"

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


@dataclass(frozen=True)
class Variant:
    """One row of the table: an engine and what it is told.

    Attributes:
        engine: its name.
        options: for its worker.
        bits: of a weight of a linear layer, as stored, its scale not counted.
        activation_bits: of the numbers that these weights are multiplied with.
        group: weights that share a scale: "32", "row"; "" where they have none.
        loads: "model" (the model's folder), "gguf" (the packaged file's folder) or the name of the engine
            whose prepared files it loads.
        part: sub-folder of those files.
    """

    engine: str
    options: dict = field(default_factory=dict)
    bits: int = 32
    activation_bits: int = 32
    group: str = ""
    loads: str = "model"
    part: str = ""
