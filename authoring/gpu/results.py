"""Rows of one step, on the disk as soon as each exists, in the format of recorded/."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Results:
    """The results of one step.

    Args:
        folder: where the file is written. A file that is there already is gone on with: a step that had to
            start anew (see `attempt`) does not measure twice.
        name: of the file, without ".json".
        versions: provenance besides the machine card, such as {"driver": "580.1"}.
        **more: what stands beside the rows, such as title="...".

    Attributes:
        rows: the rows so far.
        more: what stands beside them.
    """

    def __init__(self, folder: str | Path, name: str, versions: dict[str, str] | None = None,
                 **more: Any) -> None:
        self.folder, self.name, self.versions = Path(folder), name, versions or {}
        path = self.folder / f"{name}.json"
        kept = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}
        self.rows = kept.pop("rows", [])
        kept.pop("columns", None)
        self.more = kept | more
        self.write()

    def add(self, **row: Any) -> None:
        """Keep a row, and show it in the log.

        Args:
            **row: its entries; the unit stands in the name, as "time (ms)".
        """
        self.rows.append(row)
        self.write()
        print(" | ".join(f"{key} {_short(value)}" for key, value in row.items()), flush=True)

    def forget(self, **values: list[Any]) -> None:
        """Drop rows.

        Args:
            **values: what their entries are among: lesson=["one_token"].
        """
        self.rows = [row for row in self.rows
                     if not all(row.get(key) in among for key, among in values.items())]

    def note(self, **more: Any) -> None:
        """Keep something beside the rows.

        Args:
            **more: value by name.
        """
        self.more |= more
        self.write()

    def has(self, **keys: Any) -> bool:
        """Whether there is such a row.

        Args:
            **keys: entries that it has.

        Returns:
            True when there is one.
        """
        return any(keys.items() <= row.items() for row in self.rows)

    def write(self) -> None:
        """Write the file, aside first."""
        from course_utils import records

        columns = list(dict.fromkeys(key for row in self.rows for key in row))  # a record sorts its keys
        results = self.more | {"rows": self.rows, "columns": columns}
        records.save(self.name, results, folder=self.folder, **self.versions)


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def attempt(results: Results, keys: dict[str, Any], work: Callable[[], object]) -> None:
    """Do the work for some rows, unless there is one already; an error becomes a row.

    Some errors leave CUDA unusable in the process. Then the step's program starts anew, in the same process,
    and goes on with what has no row yet.

    Args:
        results: gets the rows.
        keys: entries of the rows.
        work: adds them.
    """
    if results.has(**keys):
        return
    try:
        work()
    except Exception as error:  # out of memory, a kernel that is not there, a library that is too old
        results.add(**keys, error=first_line(error))
    if not results.has(**keys):
        results.add(**keys, error="gave no result")
    free()
    if not cuda_works():
        print("CUDA is unusable after that: starting anew", flush=True)
        os.execv(sys.executable, [sys.executable, "-m", "authoring.gpu", *sys.argv[1:]])


def first_line(error: BaseException) -> str:
    """An error in a line.

    Args:
        error: any.

    Returns:
        Its kind, and the first line of its text.
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no text'}"


def free() -> None:
    """Give back unused memory, and start counting the GPU's peak anew."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        try:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        except RuntimeError:
            pass  # an error of before shows here; `cuda_works` deals with it


def peak_gb() -> float | None:
    """Most that torch held on the GPU since `free`.

    Returns:
        GB (10^9 bytes); None without a GPU.
    """
    import torch

    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None


def cuda_works() -> bool:
    """Whether CUDA can still be used in this process.

    Returns:
        False when an earlier error has made it unusable; True without a GPU.
    """
    import torch

    if not torch.cuda.is_available():
        return True
    try:
        torch.ones(1, device="cuda").item()
    except RuntimeError:
        return False
    return True


def versions() -> dict[str, str]:
    """Provenance that matters on a GPU: CUDA as torch was built, driver, and libraries.

    Returns:
        Version by name, "" for what is not there.
    """
    from importlib import metadata

    import torch

    found = {"cuda": torch.version.cuda or "", "driver": driver_version()}
    for name in ("bitsandbytes", "numpy", "triton"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def driver_version() -> str:
    """Version of the NVIDIA driver.

    Returns:
        Such as "580.159.04"; "" without one.
    """
    return (nvidia_smi("driver_version") or [""])[0]


def nvidia_smi(fields: str) -> list[str]:
    """Ask nvidia-smi about the first GPU.

    Args:
        fields: names, as "name,memory.total"; `nvidia-smi --help-query-gpu` lists them with their units.

    Returns:
        A text a field; [] without a GPU.
    """
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return [field.strip() for field in done.stdout.splitlines()[0].split(",")]
    except (OSError, subprocess.SubprocessError, IndexError):
        return []
