"""How threads wait for each other. Importing course_utils settles it, before PyTorch is loaded.

A parallel piece of work ends with its slowest thread. Until then the others wait. GNU's OpenMP library, which
PyTorch brings on Linux, lets them spin for milliseconds: they look again and again, on a core that another
program may need. So on a busy machine everything takes several times as long. Here they spin for a shorter
time and then sleep. Results are the same to the bit. `course bench waiting` measures costs and gains.

A variable that the user has set wins. COURSE_WAITING=default leaves everything as PyTorch has it.
"""

import os
import sys

# Turns of GNU's waiting loop before a thread sleeps. Other OpenMP libraries do not read it.
SETTINGS = {"GOMP_SPINCOUNT": "5000"}
CHOICES = (*SETTINGS, "OMP_WAIT_POLICY")  # a user who sets one of these has chosen
SWITCH, OFF = "COURSE_WAITING", "default"


def prepare() -> None:
    """Settle how the threads of this process, and of those that it starts, wait.

    Does nothing when PyTorch is loaded already, when the user has chosen, or when it is turned off.
    """
    if "torch" not in sys.modules and wanted():
        os.environ.update(SETTINGS)


def wanted() -> bool:
    """False when the user has turned it off or set a variable of CHOICES; ours, inherited, do not count."""
    if os.environ.get(SWITCH) == OFF:
        return False
    return all(os.environ.get(name) in (None, SETTINGS.get(name)) for name in CHOICES)


def in_force() -> str:
    """The variables about waiting that act in this process, in one line, for a record's provenance."""
    return ", ".join(f"{name}={os.environ[name]}" for name in CHOICES if name in os.environ) or "as it comes"
