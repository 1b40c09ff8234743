"""Run the steps of `course gpu-run` one after the other, each within its limit, and keep a report."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

from authoring.gpu import report
from authoring.gpu.plan import STEPS, Settings, chosen

BY_LESSON = ("lessons", "compare")  # steps whose rows are lessons
LEAST = 10  # seconds: with less time left a step is not begun


def gpu_run(settings: Settings, *, minutes: float, only: Iterable[str] = (), skip: Iterable[str] = (),
            limits: dict[str, float] | None = None, record: bool = False,
            say: Callable[[str], object] = print) -> list[dict[str, Any]]:
    """Run the steps. No step's failure ends the run.

    Args:
        settings: out, device and so on; `seconds` is set for each step.
        minutes: for all steps together.
        only: names of steps; all when empty.
        skip: names of steps that are left out.
        limits: seconds of single steps, by name, instead of those of the plan.
        record: copy each result file into recorded/ of the repository as well.
        say: called with a line of text when a step begins and ends.

    Returns:
        A line a step, as report.json has it: "step", "state", "seconds", "limit", "error" where it failed.

    Raises:
        ValueError: an unknown step, or results of a rehearsal would be recorded.
    """
    limits = limits or {}
    names = chosen(only, skip)
    chosen(limits)
    if record and (settings.device == "cpu" or settings.small):
        raise ValueError("--record keeps results of a GPU: leave out --small, and give --device cuda.")
    end = time.monotonic() + 60 * minutes
    settings.folder.mkdir(parents=True, exist_ok=True)
    # A run goes on where an earlier one into the same folder stopped: lines of other steps stay.
    lines = [line for line in report.read(settings.folder) if line["step"] not in names]
    for name in names:
        step = STEPS[name]
        limit = min(limits.get(name, step.seconds), end - time.monotonic())
        if limit < LEAST:
            line = {"step": name, "state": "not begun: no time left", "seconds": 0.0, "limit": 0.0}
        else:
            say(f"{name}: at most {limit:.0f} s")
            line = run_step(name, settings, limit)
        say(f"{name}: {line['state']} after {line['seconds']:.0f} s")
        lines.append(line)
        lines.sort(key=lambda line: list(STEPS).index(line["step"]))
        report.write(settings.folder, lines)
        kept = settings.records / f"{step.record}.json"
        if record and line["seconds"] and kept.exists():
            shutil.copy(kept, Path(settings.root) / "recorded")
    return lines


def run_step(name: str, settings: Settings, limit: float) -> dict[str, Any]:
    """Run one step as a process of its own and kill it, with all that it started, at its limit.

    Args:
        name: of the step.
        settings: of the run.
        limit: seconds.

    Returns:
        Its line of the report.
    """
    settings.records.mkdir(parents=True, exist_ok=True)
    logs = settings.folder / "logs"
    logs.mkdir(exist_ok=True)
    log = logs / f"{name}.log"
    if not (settings.lessons and name in BY_LESSON):  # some lessons again: the others' rows stay
        (settings.records / f"{STEPS[name].record}.json").unlink(missing_ok=True)
    told = Settings(**vars(settings) | {"seconds": limit})
    command = [sys.executable, "-m", "authoring.gpu", name, told.to_json()]
    started = time.monotonic()
    code = call(command, log, limit, settings.root)
    line = {"step": name, "state": "done", "seconds": time.monotonic() - started, "limit": limit,
            "log": str(log.relative_to(settings.folder))}
    if code is None:
        line["state"] = "stopped at its limit"
    elif code:
        line |= {"state": "failed", "error": last_line(log) or f"exit code {code}"}
    return line


def call(command: list[str], log: Path, limit: float, root: str | Path,
         environment: dict[str, str] | None = None) -> int | None:
    """Run a command and kill it, with all that it started, at its limit.

    Args:
        command: program and arguments.
        log: file that gets its output.
        limit: seconds.
        root: folder it runs in, and finds our modules in.
        environment: environment variables besides this process's.

    Returns:
        Its exit code; None when it was killed.
    """
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    variables = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"} | (environment or {})
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=root, env=variables,
                                   stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            return process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            kill(process)


def kill(process: subprocess.Popen) -> None:
    """End a process, its group, and what it started in groups of their own (Jupyter's kernels).

    Args:
        process: one that leads a group.
    """
    started = []
    with contextlib.suppress(psutil.Error):
        started = psutil.Process(process.pid).children(recursive=True)
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, how)
        for child in started:
            with contextlib.suppress(psutil.Error):
                child.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=3)
        psutil.wait_procs(started, timeout=1)


def last_line(log: Path) -> str:
    """The last line of a log with something in it: of a traceback, the error.

    Args:
        log: the file.

    Returns:
        The line, at most 300 characters; "" when there is none.
    """
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
