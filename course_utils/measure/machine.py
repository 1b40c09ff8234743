"""What this machine is: the card that belongs beside every timing."""

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import cpuinfo
import psutil
import torch
import transformers

# Flags of the processor (as Linux names them) that speed up the arithmetic of language models.
USEFUL_FLAGS = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx512vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "avx512_bf16": "avx512_bf16",
    "amx_tile": "amx",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimd": "neon",
    "neon": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "arm_bf16",
    "sve": "sve",
}


@dataclass(frozen=True)
class MachineCard:
    """The machine and the versions behind a measurement. Memory in bytes; gpu and commit may be ""."""

    cpu: str
    cores: int
    threads: int
    instruction_sets: tuple
    memory: int
    gpu: str
    gpu_memory: int
    system: str
    python: str
    torch: str
    transformers: str
    date: str
    commit: str

    def __str__(self):
        gpu = f"{self.gpu}, {self.gpu_memory / 1e9:.0f} GB" if self.gpu else "none"
        return "\n".join(
            [
                f"CPU      {self.cpu}, {self.cores} cores (torch uses {self.threads} threads)",
                f"has      {', '.join(self.instruction_sets) or 'no instruction set that matters here'}",
                f"memory   {self.memory / 1e9:.1f} GB",
                f"GPU      {gpu}",
                f"system   {self.system}",
                f"versions Python {self.python}, torch {self.torch}, transformers {self.transformers}",
                f"when     {self.date}" + (f", commit {self.commit}" if self.commit else ""),
            ]
        )

    def row(self):
        return {
            "CPU": self.cpu,
            "cores": self.cores,
            "threads": self.threads,
            "memory (GB)": round(self.memory / 1e9, 1),
            "GPU": self.gpu or "none",
            "torch": self.torch,
            "transformers": self.transformers,
            "date": self.date,
            "commit": self.commit,
        }


def machine_card():
    """Describe this machine, this Python and this checkout. Takes a second or two, the first time only.

    Returns a MachineCard. What cannot be found out is "" or 0; nothing here raises.
    """
    model, flags = _cpu()
    gpu, gpu_memory = _gpu()
    return MachineCard(
        cpu=model,
        cores=_cores(),
        threads=torch.get_num_threads(),
        instruction_sets=flags,
        memory=psutil.virtual_memory().total,
        gpu=gpu,
        gpu_memory=gpu_memory,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        date=datetime.now(UTC).date().isoformat(),
        commit=commit_of(Path(__file__).resolve().parents[2]),
    )


@cache
def _cpu():
    """(model name, names of the useful instruction sets)"""
    try:
        info = cpuinfo.get_cpu_info()
    except Exception:  # py-cpuinfo raises bare exceptions on systems that it does not know
        info = {}
    flags = {USEFUL_FLAGS[flag] for flag in info.get("flags", []) if flag in USEFUL_FLAGS}
    if platform.machine().lower() in ("arm64", "aarch64"):
        flags.add("neon")  # part of every 64-bit ARM processor; macOS lists no flags
    return info.get("brand_raw") or platform.processor() or platform.machine(), tuple(sorted(flags))


def _cores():
    """Cores this process may use: a container often has fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpu():
    if not torch.cuda.is_available():
        return "", 0
    properties = torch.cuda.get_device_properties(0)
    return properties.name, properties.total_memory


def commit_of(folder):
    """Short commit of the checkout at `folder`, with "+" when files differ from it; "" outside a checkout.

    What `course bundle` packed is no checkout any more: it says in the file .commit what it was packed from.
    """
    if not (folder / ".git").exists():
        packed = folder / ".commit"
        return packed.read_text(encoding="utf-8").strip() if packed.is_file() else ""
    try:
        head = _git(folder, "rev-parse", "--short", "HEAD")
        changed = _git(folder, "status", "--porcelain", "-uno")
    except (OSError, subprocess.SubprocessError):
        return ""
    return head + ("+" if changed else "")


def _git(folder, *arguments):
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
