"""How threads wait for each other. Importing course_utils settles it, before PyTorch is loaded.

A parallel piece of work ends with its slowest thread. Until then the others wait. GNU's OpenMP library, which
PyTorch brings on Linux, lets them spin for milliseconds. They keep a core that another program needs, and on
a busy machine everything takes several times as long. LLVM's library (package cmeel-libomp) lets them spin
too, but they offer the core to others all the while, and sleep after a set time. So it is as quick on an idle
machine and much quicker on a busy one. Results are the same to the bit. `course bench waiting` measures it.

Where that library is not installed, GNU's threads spin for a shorter time instead.

A variable that the user has set wins. COURSE_WAITING=default leaves everything as PyTorch has it.
"""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

# Each library reads its own: LLVM's and Intel's milliseconds before a waiting thread sleeps, GNU's spins.
SETTINGS = {"KMP_BLOCKTIME": "1", "GOMP_SPINCOUNT": "5000"}
CHOICES = (*SETTINGS, "OMP_WAIT_POLICY")  # a user who sets one of these has chosen
SWITCH, OFF = "COURSE_WAITING", "default"


def prepare() -> None:
    """Settle how the threads of this process, and of those that it starts, wait.

    Does nothing when PyTorch is loaded already, when the user has chosen, or when it is turned off.
    """
    if "torch" in sys.modules or not wanted():
        return
    os.environ.update(SETTINGS)
    library = llvm()
    if library:
        # Global, so that PyTorch finds these functions before those of GNU's library, which it loads next.
        with contextlib.suppress(OSError):  # made for a newer system: GNU's then
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def variables() -> dict[str, str]:
    """Environment variables with which another program's threads wait as ours do, an engine's worker's."""
    library = llvm() if wanted() else None
    if not library:
        return {}
    others = os.environ.get("LD_PRELOAD", "").split()
    return {"LD_PRELOAD": " ".join([*others, str(library)])}


def wanted() -> bool:
    """False when the user has turned it off or set a variable of CHOICES; ours, inherited, do not count."""
    if os.environ.get(SWITCH) == OFF:
        return False
    return all(os.environ.get(name) in (None, SETTINGS.get(name)) for name in CHOICES)


def in_force() -> str:
    """The OpenMP library and the setting that act in this process, in one line, for a record's provenance."""
    shown = ", ".join(f"{name}={os.environ[name]}" for name in CHOICES if name in os.environ)
    return f"{_loaded()}, {shown or 'as it comes'}"


def llvm() -> Path | None:
    """LLVM's OpenMP library where it can stand in for GNU's; None elsewhere.

    That is with PyTorch's own packages on Linux. A conda environment's PyTorch may use LLVM's library anyway,
    and two of them in one process stop it. On macOS and Windows it uses LLVM's or Intel's anyway.
    """
    torch = importlib.util.find_spec("torch") if sys.platform == "linux" else None
    if torch is None or not list(Path(torch.origin).parent.glob("lib/libgomp*.so*")):
        return None
    try:
        package = importlib.metadata.distribution("cmeel-libomp")
    except importlib.metadata.PackageNotFoundError:
        return None
    library = Path(package.locate_file("cmeel.prefix/lib/libomp.so"))
    return library if library.exists() else None


def _loaded() -> str:
    """Which OpenMP library answers: "LLVM's", "GNU's", or the system's own name where that is not known."""
    if sys.platform != "linux":
        return f"OpenMP of {sys.platform}"
    # Only LLVM's and Intel's libraries have this function.
    return "LLVM's OpenMP" if hasattr(ctypes.CDLL(None), "kmp_get_blocktime") else "GNU's OpenMP"
