"""Calling an engine: a JSON request in, a JSON answer out, and nothing that can break the caller."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from course_utils import variables
from course_utils.engines.entry import Engine
from course_utils.engines.environment import is_installed
from course_utils.engines.registry import find

SHARED = Path(__file__).parent / "shared"  # what workers import besides their own folder


@dataclass(frozen=True)
class Answer:
    """What an engine answered.

    Attributes:
        engine: its name.
        values: the JSON object.
        seconds: wall time, start of the process included.
    """

    engine: str
    values: dict
    seconds: float


@dataclass(frozen=True)
class EngineUnavailable:
    """Why there is no answer. False in a condition, so that a lesson can say `if answer:`.

    Attributes:
        engine: its name.
        reason: "missing" (not installed), "crashed", "timeout", "garbage" (no JSON answer) or "refused" (the
            worker itself said why).
        details: one line.
        log: file with what the process printed, if it ran.
    """

    engine: str
    reason: str
    details: str
    log: Path | None = None

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        log = f" What it printed is in {self.log}" if self.log else ""
        return f"{self.engine}: {self.details}{log}"


def run(engine: str | Engine, request: dict, timeout: float = 600) -> Answer | EngineUnavailable:
    """Send the engine's worker a request and wait for its answer.

    The worker inherits how OpenMP threads wait (`course_utils.threads`): that touches PyTorch and llama.cpp.
    The other engines have thread pools of their own.

    Args:
        engine: a name out of `ENGINES`, or an `Engine`.
        request: anything JSON can hold.
        timeout: seconds, after which the worker and every process it started are killed.

    Returns:
        An `Answer`, or an `EngineUnavailable` that says what happened.

    Raises:
        ValueError: there is no such engine, or the timeout is not positive.
        TypeError: JSON cannot hold the request.
    """
    engine = find(engine) if isinstance(engine, str) else engine
    if not timeout > 0:
        raise ValueError(f"timeout must be a positive number of seconds, got {timeout}")
    text = json.dumps(request)
    if not is_installed(engine):
        size = f" ({engine.megabytes:,} MB)" if engine.megabytes else ""
        return EngineUnavailable(engine.name, "missing",
                                 f"not installed. Install it{size} with: {engine.how_to_install}")
    engine.folder.mkdir(parents=True, exist_ok=True)  # an engine of the course's own Python has none yet
    handle, log = tempfile.mkstemp(prefix=f"{engine.name}-", suffix=".log", dir=engine.folder)
    start = time.perf_counter()
    with os.fdopen(handle, "w") as record:
        try:
            code, output = _call(engine, text, timeout, record)
        except OSError as error:
            return EngineUnavailable(engine.name, "crashed", f"its Python does not start ({error}). "
                                     f"Install it again: {engine.how_to_install} --again")
        record.write(output or "")
    seconds = time.perf_counter() - start
    result = _judge(engine, code, output, timeout, Path(log))
    if isinstance(result, dict):
        os.unlink(log)
        return Answer(engine.name, result, seconds)
    return result


def worker_environment(engine: Engine) -> dict[str, str]:
    """Variables for the engine's worker.

    A script's own folder comes first on Python's path, then what PYTHONPATH names. Both hold plain modules,
    none with the name of a package. The folder that holds the engines' folders must not be there: `import
    onnxruntime` would find ours.
    """
    environment = variables.for_python() | engine.variables
    path = [str(SHARED)]
    if engine.requirements is None and os.environ.get("PYTHONPATH"):
        path.append(os.environ["PYTHONPATH"])  # a machine set up from a bundle finds its packages there
    return environment | {"PYTHONPATH": os.pathsep.join(path)}


def _call(engine: Engine, text: str, timeout: float, record: TextIO) -> tuple[int | None, str]:
    """Exit code (None: killed at the timeout) and standard output of the worker."""
    environment = worker_environment(engine)
    process = subprocess.Popen(
        [str(engine.python), str(engine.worker)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=record, start_new_session=True,
        text=True, encoding="utf-8", errors="replace", env=environment)
    try:
        output, _ = process.communicate(text, timeout=timeout)
        return process.returncode, output
    except subprocess.TimeoutExpired as expired:
        _kill(process)
        so_far = expired.stdout or b""
        return None, so_far.decode(errors="replace") if isinstance(so_far, bytes) else so_far
    except BaseException:  # the learner interrupted the kernel
        _kill(process)
        raise


def _kill(process: subprocess.Popen) -> None:
    """End the worker and all that it started: they are in a process group of their own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    process.wait()
    process.stdout.close()


def _judge(
    engine: Engine, code: int | None, output: str, timeout: float, log: Path
) -> dict | EngineUnavailable:
    """The answer's values, or what went wrong."""
    if code is None:
        details = f"no answer within {timeout:g} seconds, stopped."
        return EngineUnavailable(engine.name, "timeout", details, log)
    lines = [line for line in output.splitlines() if line.strip()]
    try:
        values = json.loads(lines[-1])
    except (IndexError, ValueError):
        values = None
    if code != 0:
        how = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return EngineUnavailable(engine.name, "crashed", f"{how}{_last_words(log)}.", log)
    if not isinstance(values, dict):
        return EngineUnavailable(engine.name, "garbage", "its last line is no JSON object.", log)
    if "error" in values:
        return EngineUnavailable(engine.name, "refused", str(values["error"]), log)
    return values


def _last_words(log: Path) -> str:
    """The last line of a log, as the end of a sentence; "" for an empty one."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f", its last message: {lines[-1].strip()[:200]}" if lines else ""
