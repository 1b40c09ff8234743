"""Environment variables for a Python or a pip that the course starts.

People set variables and write a pip.conf for their own work. Some of that must be heard: which index, which
proxy, which certificate. Some would lead a new environment astray: PYTHONPATH shows it the packages of
another Python, `user = true` installs them into the home folder. The second kind is left out here.

Standard library only: `scripts/setup_environment.py` uses it before anything is installed.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

# They lead a Python to packages, to a standard library or to a start-up file that is not its own.
OTHER_PYTHONS = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONSTARTUP", "PYTHONUSERBASE",
                 "PYTHONEXECUTABLE", "PYTHONPLATLIBDIR", "__PYVENV_LAUNCHER__", "VIRTUAL_ENV")
# Options of pip that say where, for which machine or what else it installs. The course says that itself.
# Those that say from where (index-url, proxy, cert, find-links, constraint, ...) stay.
NOT_FOR_US = frozenset("""
    user target prefix root python require-virtualenv dry-run no-deps ignore-installed force-reinstall upgrade
    requirement requirements editable group report require-hashes platform python-version implementation abi
    dest src no-build-isolation use-pep517 no-use-pep517 ignore-requires-python config-settings
    global-option build-option isolated""".split())
_SECTIONS = ("global", "install", "download")  # of a pip.conf, the later ones win
# The same for uv, which has its own variables.
_NOT_FOR_UV = ("UV_PYTHON", "UV_SYSTEM_PYTHON", "UV_MANAGED_PYTHON", "UV_TARGET", "UV_PREFIX",
               "UV_REQUIRE_HASHES", "UV_NO_BUILD_ISOLATION", "UV_PROJECT_ENVIRONMENT", "UV_DRY_RUN")


def for_python() -> dict[str, str]:
    """This process's variables without those that would lead another Python to our packages.

    Returns:
        Value by name.
    """
    return {name: value for name, value in os.environ.items() if name not in OTHER_PYTHONS}


def for_pip(python: str | Path = sys.executable) -> dict[str, str]:
    """Variables for pip and uv: the user's settings of where packages come from, none of where they go.

    pip reads its files and then variables, and an empty variable does not take back what a file says. So
    pip is asked for all its settings; those that stay become variables, and the files are not read again.

    Args:
        python: the interpreter whose pip is run. This one keeps the packages that PYTHONPATH shows it.

    Returns:
        Value by name. Where pip could not be asked, its files stay as they are.
    """
    clean = dict(os.environ) if str(python) == sys.executable else for_python()
    clean = {name: value for name, value in clean.items()
             if name not in _NOT_FOR_UV and _option(name) not in NOT_FOR_US}
    # Asked without them, or PIP_PYTHON alone would send the question to another Python.
    try:
        told = subprocess.run([str(python), "-m", "pip", "config", "list"], env=clean, check=True,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except (OSError, subprocess.SubprocessError):
        return clean
    files = {section: {} for section in _SECTIONS}
    for line in told.stdout.splitlines():  # section.option='value'
        key, _, value = line.partition("=")
        section, _, option = key.partition(".")
        if section in files and option.replace("_", "-") not in NOT_FOR_US:
            files[section]["PIP_" + option.upper().replace("-", "_")] = str(ast.literal_eval(value))
    settings = {name: value for section in _SECTIONS for name, value in files[section].items()}
    return settings | clean | {"PIP_CONFIG_FILE": os.devnull}


def _option(name: str) -> str:
    """The option of pip that a variable sets: "target" of PIP_TARGET; "" of any other variable."""
    return name[4:].lower().replace("_", "-") if name.startswith("PIP_") else ""
