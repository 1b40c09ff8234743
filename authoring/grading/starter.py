"""Processes for learners' answers: one starter that has loaded PyTorch, and a bound fork for each answer."""

import ast
import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import course_utils
from course_utils.checking import bounds
from course_utils.checking.remote import Channel

PRELOAD = ["import torch", "import numpy"]
PATIENCE = 180  # seconds that the starter may take to load PyTorch, or to end an answer's processes


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What one answer's process may take.

    Attributes:
        seconds: of wall time and of CPU time, for all cases of one answer together.
        total: seconds for all answers of a submission.
        memory: bytes above what PyTorch takes; of all of its processes together where Linux tells.
        processes: how many it may have, threads counted.
        file: bytes of a file that it may write.
        namespaces: whether it sees a file system of its own, and no network; None: where the system allows.
    """

    seconds: float = 60.0
    total: float = 300.0
    memory: int = 2 * 2**30
    processes: int = 32
    file: int = 2**24
    namespaces: bool | None = None


class Starter:
    """Starts processes, one at a time; a context manager.

    Args:
        settings: the bounds.
    """

    def __init__(self, settings: Bounds) -> None:
        why = bounds.probe() if settings.namespaces is not False else "switched off"
        self.settings = dataclasses.replace(settings, namespaces=not why)
        what = (f"{settings.seconds:g} s, {settings.memory / 2**30:g} GiB, {settings.processes} processes, "
                f"files of {settings.file / 2**20:g} MiB an answer, {settings.total:g} s a submission")
        own = ("a file system of its own to read, an empty /tmp, no network, no other process in sight"
               if not why else f"no namespaces ({why}): files that this account may read or write are open")
        self.text = f"{what}; {own}"
        self._process: subprocess.Popen | None = None
        self._preload = PRELOAD

    def prepare(self, tree: Path, own: list[str], imports: list[str]) -> None:
        """Find out what a lesson's imports load, so that it is loaded once and not by each answer.

        The course's own modules are left out: an answer's process must not hold what it is asked for.

        Args:
            tree: folder with the library.
            own: names of the packages in it.
            imports: the lesson's statements.
        """
        self._preload = [*PRELOAD, *foreign_imports(tree, own, imports)]

    def __enter__(self) -> "Starter":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def start(self, tree: Path, own: list[str], seconds: float) -> Channel:
        """Start a process that holds a learner's answers.

        Args:
            tree: folder with the library.
            own: names of the packages in it.
            seconds: that it may take, if that is less than what the bounds say.

        Returns:
            The way to it.

        Raises:
            RuntimeError: no process can be started.
        """
        limits = dataclasses.asdict(self.settings) | {
            "readable": readable(), "hidden": hidden(), "seconds": min(seconds, self.settings.seconds)}
        asked = {"tree": str(tree), "own": own, "hide": ["", str(_root())], "bounds": limits}
        for _ in range(2):  # without namespaces an earlier answer may have killed the starter
            if self._process is None or self._process.poll() is not None:
                self._begin()
            ours, theirs = socket.socketpair()
            try:
                socket.send_fds(self._control, [json.dumps(asked).encode()], [theirs.fileno()])
                started = self._control.recv(1) == b"1"
            except OSError:
                started = False
            theirs.close()
            if started:
                return Channel(ours.detach(), self._end, limits["seconds"], self._excess)
            ours.close()
            self._stop()
        raise RuntimeError("the process that starts answers ends at once; run it again.")

    def _excess(self) -> str:
        """What the answer's processes take too much of; "" if nothing."""
        pids = bounds.descendants(self._process.pid)
        if len(pids) > self.settings.processes + 2:  # two of them are the judge's
            return f"more than {self.settings.processes} processes"
        if bounds.memory(pids) > self.settings.memory:
            return f"more than {self.settings.memory / 2**30:g} GiB of memory"
        return ""

    def _begin(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", "course_utils.checking.worker", str(theirs.fileno())]
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=_environment(_root()), cwd="/", stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        theirs.close()
        self._process.stdin.write(json.dumps(self._preload).encode())
        self._process.stdin.close()
        self._control = ours
        ours.settimeout(PATIENCE)
        with contextlib.suppress(OSError):
            if ours.recv(1) == b"1":
                return
        self._stop()
        raise RuntimeError("Python with PyTorch did not start: does `python -c 'import torch'`?")

    def _end(self) -> None:
        try:
            self._control.sendall(b'{"end": 1}')
            self._control.recv(1)
        except OSError:
            self._stop()

    def _stop(self) -> None:
        if self._process is not None:
            self._control.close()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                for pid in [*bounds.descendants(self._process.pid), self._process.pid]:
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
                self._process.wait()
            self._process = None


def foreign_imports(tree: Path, own: list[str], statements: list[str]) -> list[str]:
    """What statements import from elsewhere, by themselves and by the modules of the course that they import.

    Nothing is imported for it: the modules are read.

    Args:
        tree: folder with the library.
        own: names of the packages in it.
        statements: such as a lesson's.

    Returns:
        Statements, each one import, in the order in which Python would come to them.
    """
    found: dict[str, None] = {}
    seen: set[str] = set()

    def read(source: str, package: str) -> None:
        for node in _at_import(ast.parse(source).body):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                above = package.rsplit(".", node.level - 1)[0] if node.level else ""
                module = ".".join(filter(None, [above, node.module]))
                names = [module, *(f"{module}.{name}" for name in names)]
            if names[0].partition(".")[0] not in own:
                found[ast.unparse(node)] = None
            for name in names:
                follow(name)

    def follow(name: str) -> None:
        parts = name.split(".")
        for n in range(1, len(parts) + 1 if parts[0] in own else 0):
            module, place = ".".join(parts[:n]), tree.joinpath(*parts[:n])
            file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            if module not in seen and file.is_file():
                seen.add(module)
                package = module if place.is_dir() else module.rpartition(".")[0]
                read(file.read_text(encoding="utf-8"), package)

    for statement in statements:
        read(statement, "")
    return list(found)


def _at_import(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements that run when a module is imported, those of `try` too."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.Try):
            yield from _at_import(node.body)


def _environment(path: Path) -> dict[str, str]:
    found = {name: value for name, value in os.environ.items()
             if name in ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH")}
    return found | {"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE",
                    "MPLBACKEND": "agg", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _root() -> Path:
    return Path(course_utils.__file__).resolve().parent.parent


def readable() -> list[str]:
    """Folders that Python and its packages need: those of the system, of Python and of its environment.

    Returns:
        Their paths. The course's own is none of them.
    """
    found = ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.conf.d", sys.prefix, sys.base_prefix]
    found += [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    return [path for path in found if os.path.isdir(path) and not os.path.islink(path)]


def hidden() -> list[str]:
    """Folders that hold solutions, where the course is installed among the packages.

    Returns:
        Their paths.
    """
    return [str(_root() / name) for name in ("course_utils", "authoring", "recorded")]
