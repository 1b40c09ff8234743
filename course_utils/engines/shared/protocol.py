"""What every engine does: load, read a prompt, write one token at a time, give logits.

A worker defines a `Session` and ends in `serve(MySession)`. It runs as a process of its own, so that
memory is exact, no other library's threads are awake, and a crash is a row in a table. It reads one JSON
request from standard input and prints one JSON answer as its last line.

Request {"task": "measure", "folder": what the engine loads, "options": {...}, "prompt": [ids],
         "new_tokens": 32, "score": [ids], "window": null, "logits_file": path or null, "threads": 1,
         "repeats": 3, "batch": 1}
Answer: load_seconds, disk_bytes, read_bytes (weights that one step reads), resident_start / _loaded / _bytes
and peak_bytes, prefill_rate and decode_rate (tokens per second of the whole batch, median of the repeats),
prefill_cpu_rate and decode_cpu_rate (tokens per CPU second: they hold on a busy machine, too), tokens (what
it wrote), threads, batch, versions. The logits of `score`, FP32 [tokens, vocabulary], go to logits_file
(.npy). With a window of n tokens, the text is read in pieces of n, each without those before it; the last one
may be shorter.
batch: so many sequences side by side, all with this prompt. An engine that reads one at a time refuses more.

Request {"task": "prepare", "step": name, "model": folder, "source": folder or null, "out": folder} makes
files that the engine loads later. Request {"task": "versions"} says what is installed.

Request {"task": "requests", "folder", "options", "requests": [[ids, n], ...], "repeats": 1, "threads": 1}
lets a server answer all of them, n tokens each, greedy. Answer: runs, for each repeat {"seconds", "answers",
"preemptions", "found"}, and versions. Engines that are no servers refuse.

This file imports nothing of the course: it also runs where the course is not installed.
"""

import importlib.metadata
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what the quoted hints name
    import numpy as np


class Session:
    """One loaded model in one engine. A worker overrides what ends in NotImplementedError.

    Args:
        options: the variant, for example {"variant": "int4"}.
        threads: how many the engine may use.
        batch: how many equal sequences it reads side by side.

    Raises:
        ValueError: a batch that this engine cannot read.
    """

    packages: tuple[str, ...] = ()  # names whose versions matter
    weights: tuple[str, ...] = ("*.safetensors",)  # files of the folder that hold the weights
    batches = True  # False: reads one sequence at a time
    server = False  # True: has `requests`

    def __init__(self, options: dict | None = None, threads: int = 1, batch: int = 1) -> None:
        self.options, self.threads, self.batch = options or {}, threads, batch
        if batch < 1 or (batch > 1 and not self.batches):
            raise ValueError(f"{type(self).__name__} reads one sequence at a time, not {batch}")

    def load(self, folder: str | Path) -> None:
        """Read the model from its folder. Imports the engine's package, so that its memory is counted."""
        raise NotImplementedError

    def prefill(self, ids: Sequence[int]) -> int:
        """Forget everything, read the prompt (token ids) in one pass, return the most likely next id.

        All sequences of the batch have this prompt. So the answer of the first is that of all.
        """
        raise NotImplementedError

    def step(self, token: int) -> int:
        """Read one token after those read so far, in each sequence; return the most likely next id."""
        raise NotImplementedError

    def logits(self, ids: Sequence[int]) -> "np.ndarray":
        """Scores of the next token after each token of ids: float32 NumPy array [tokens, vocabulary].

        Of one sequence, whatever the batch.
        """
        raise NotImplementedError

    def requests(self, asked: Sequence[tuple[Sequence[int], int]]) -> dict:
        """Answer many requests, as a server does: who runs with whom is its decision.

        Args:
            asked: pairs (prompt's ids, tokens of the answer).

        Returns:
            "seconds", "answers" (their ids), and what the server counts.
        """
        raise NotImplementedError

    def prepare(self, step: str, model: str, source: str | None, out: str) -> None:
        """Make files that `load` needs. Engines that load the model's own folder make none.

        Args:
            step: which ones, one of the engine's `steps`.
            model: folder of the model.
            source: folder of the files that another engine has prepared, if this one needs any.
            out: folder for the files, which need not exist.

        Raises:
            ValueError: this engine prepares nothing, or not from this model.
        """
        raise ValueError(f"{type(self).__name__} prepares nothing")

    def generate(self, ids: Sequence[int], n: int) -> list[int]:
        """Write n token ids after the prompt, greedy. An end-of-text token does not stop it."""
        return self.timed(ids, n)[0]

    def timed(self, ids: Sequence[int], n: int) -> tuple[list[int], "Clock", "Clock"]:
        """Write n tokens after the prompt and look at the clock.

        Args:
            ids: the prompt.
            n: 1 or more.

        Returns:
            n token ids, the clock of the prompt, and that of the n - 1 steps after it: the prompt's pass
            gives the first new token already.
        """
        with Clock() as prompt:
            tokens = [self.prefill(ids)]
        with Clock() as steps:
            while len(tokens) < n:
                tokens.append(self.step(tokens[-1]))
        return tokens, prompt, steps

    def disk_bytes(self, folder: str | Path) -> int:
        """Bytes of the files that hold the weights."""
        return sum(path.stat().st_size for pattern in self.weights for path in Path(folder).glob(pattern))

    def read_bytes(self, folder: str | Path) -> int:
        """Bytes of weights that one step reads, their scales included: here all that lies on disk.

        A table that is only looked up does not count. One that is the output layer, too, does.
        """
        return self.disk_bytes(folder)

    def versions(self) -> dict[str, str | None]:
        """Versions of what is installed, by package, and of Python; None for a package that is not there."""
        found = {"python": sys.version.split()[0]}
        for name in self.packages:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = None
        return found


class Clock:
    """Wall seconds and CPU seconds (of all threads) of a `with` block."""

    def __init__(self, wall: float = 0.0, cpu: float = 0.0) -> None:
        self.wall, self.cpu = wall, cpu

    def __enter__(self) -> "Clock":
        self.start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = time.perf_counter() - self.start[0]
        self.cpu = time.process_time() - self.start[1]


def measure(session: Session, request: dict) -> dict:
    """Load, warm up, time, and score one text; request and answer as described at the top of this file."""
    start = resident()
    with Clock() as load:
        session.load(request["folder"])
    loaded = resident()
    prompt, n = request["prompt"], request["new_tokens"]
    session.generate(prompt, min(n, 4))  # the first pass pays for buffers and compilation
    runs = [session.timed(prompt, n) for _ in range(request.get("repeats", 3))]
    read, written = session.batch * len(prompt), session.batch * (n - 1)
    answer = {
        "load_seconds": load.wall, "disk_bytes": session.disk_bytes(request["folder"]),
        "resident_start": start, "resident_loaded": loaded, "resident_bytes": resident(),
        "peak_bytes": peak(), "tokens": [int(token) for token in runs[0][0]],
        "prefill_rate": median(read / clock.wall for _, clock, _ in runs),
        "prefill_cpu_rate": median(read / max(clock.cpu, 1e-9) for _, clock, _ in runs),
        "threads": session.threads, "batch": session.batch, "versions": session.versions(),
    }  # fmt: skip
    if n > 1:
        answer["decode_rate"] = median(written / clock.wall for _, _, clock in runs)
        answer["decode_cpu_rate"] = median(written / max(clock.cpu, 1e-9) for _, _, clock in runs)
    if request.get("logits_file"):
        save_logits(session, request["score"], request.get("window"), request["logits_file"])
    answer["read_bytes"] = session.read_bytes(request["folder"])
    return answer


def save_logits(session: Session, ids: Sequence[int], window: int | None, file: str) -> None:
    """Write the scores of a text to a file, one window in memory at a time."""
    import numpy as np

    window = window or len(ids)
    saved = None
    for start in range(0, len(ids), window):
        scores = np.asarray(session.logits(ids[start:start + window]), dtype=np.float32)
        if saved is None:
            saved = np.lib.format.open_memmap(file, "w+", np.float32, (len(ids), scores.shape[1]))
        saved[start:start + window] = scores
    saved.flush()


def resident() -> int:
    """Bytes of memory that this process holds now, the pages of mapped files that it has read included."""
    import psutil

    return psutil.Process().memory_info().rss


def peak() -> int:
    """The most bytes of memory that this process has held at once."""
    if sys.platform == "linux":
        # getrusage would give the parent's peak: a child inherits it when it is started.
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def serve(session_class: type[Session]) -> None:
    """Answer one request with a session of this class."""

    def task(request: dict) -> dict:
        threads = int(request.get("threads", 1))
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(threads)  # read by libraries when they are imported
        batch = int(request.get("batch", 1))
        return _answer(session_class(request.get("options"), threads, batch), request)

    answer(task)


def answer(task: Callable[[dict], dict]) -> None:
    """Call `task` with the JSON object of standard input; print what it returns as the last line.

    An error that the request can cause becomes {"error": one line}; anything else ends the process.
    """
    answer_file = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything that is loaded here is a local folder
    try:
        found = task(json.load(sys.stdin))
    except (ImportError, OSError, ValueError, KeyError) as error:
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {error}"}
    answer_file.write(json.dumps(found) + "\n")
    answer_file.flush()


def _answer(session: Session, request: dict) -> dict:
    task = request.get("task", "measure")
    if task == "measure":
        return measure(session, request)
    if task == "prepare":
        with Clock() as clock:
            session.prepare(request["step"], request["model"], request.get("source"), request["out"])
        return {"seconds": clock.wall, "peak_bytes": peak(), "versions": session.versions()}
    if task == "requests":
        if not session.server:
            raise ValueError(f"{type(session).__name__} answers one request after the other: it is no server")
        session.load(request["folder"])
        session.generate(request["requests"][0][0], 4)  # the first pass pays for buffers and compilation
        runs = [session.requests(request["requests"]) for _ in range(request.get("repeats", 1))]
        return {"runs": runs, "versions": session.versions()}
    if task == "versions":
        return {"versions": session.versions()}
    raise ValueError(f"unknown task {task!r}: known are measure, prepare, requests, versions")
