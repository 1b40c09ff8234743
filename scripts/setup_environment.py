"""Create the virtual environment, install the pinned packages, fetch the model and the texts.

Standard library only: it runs before anything is installed. `make setup` calls it; so do
`make course`, `make test` and `make lab`, each with the extras it needs. A second run with
nothing changed only looks at a stamp file.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
ENVIRONMENT = Path(os.environ.get("COURSE_VENV") or ROOT / ".venv")
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = ENVIRONMENT / "course-setup.json"


def run(*command: str | Path) -> None:
    """Run a command in the repository's root.

    Args:
        *command: the program and its arguments.

    Raises:
        CalledProcessError: it failed.
    """
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT)


def pip(*arguments: str | Path) -> None:
    """Run the pip of the virtual environment.

    Args:
        *arguments: of pip.

    Raises:
        CalledProcessError: it failed.
    """
    run(PYTHON, "-m", "pip", "--disable-pip-version-check", *arguments)


def check_interpreter() -> None:
    """Stop, with a line that says what to do, when this Python is too old or too new.

    Raises:
        SystemExit: it is.
    """
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        found = ".".join(map(str, sys.version_info[:3]))
        sys.exit(f"This course needs Python 3.11, 3.12 or 3.13, and {sys.executable} is {found}. "
                 "Name another one: make setup PYTHON=python3.11")


def check_environment() -> None:
    """An environment without a Python is built anew, so its folder must be nothing else."""
    if not PYTHON.exists() and ENVIRONMENT.exists() and not (ENVIRONMENT / "pyvenv.cfg").exists():
        if any(ENVIRONMENT.iterdir()):
            sys.exit(f"COURSE_VENV is {ENVIRONMENT}, neither empty nor an environment with a Python. "
                     "Name another folder.")


def fingerprint() -> str:
    """Changes when what should be installed changes.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for path in (LOCK, ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_stamp() -> dict:
    """What the last complete set-up noted.

    Returns:
        "fingerprint" and "extras"; {} when there was no set-up.
    """
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}


def locked_version(package: str) -> str:
    """The version of a package that requirements.lock pins.

    Args:
        package: its name.

    Returns:
        The version, such as "2.13.0".

    Raises:
        SystemExit: there is no such pin.
    """
    for line in LOCK.read_text().splitlines():
        name, _, version = line.partition(";")[0].strip().partition("==")
        if name == package:
            return version
    sys.exit(f"{LOCK.name} pins no {package}: make the lock file again with `make lock`.")


def attempt(*command: str | Path) -> bool:
    """Run a command, quietly, whose failure only means that the next way is tried.

    Args:
        *command: the program and its arguments.

    Returns:
        True when it succeeded.
    """
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return done.returncode == 0


def install_torch() -> None:
    """Install the smallest build of torch that fits the machine.

    torch comes first and alone: pip must not look for it while it resolves the rest, or it may
    fetch the CUDA build and several GB of libraries that belong to it.

    Raises:
        SystemExit: requirements.lock pins no torch.
        CalledProcessError: no build could be installed.
    """
    version = locked_version("torch")
    probe = [str(PYTHON), "-c", "import importlib.metadata as m; print(m.version('torch'))"]
    installed = subprocess.run(probe, capture_output=True, text=True).stdout.strip()
    if installed.partition("+")[0] == version:
        return
    # 1. A CPU build that the configured index or wheel folder offers.
    if attempt(PYTHON, "-m", "pip", "install", "-c", LOCK, f"torch=={version}+cpu"):
        return
    # 2. uv knows PyTorch's own indexes: the CPU build without a GPU driver, else the CUDA build for it.
    if attempt(PYTHON, "-m", "pip", "install", "uv") and attempt(
            PYTHON, "-m", "uv", "pip", "install", "--python", PYTHON, "--torch-backend=auto",
            "-c", LOCK, f"torch=={version}"):
        return
    # 3. Whatever the package index has under that version.
    print(f"    no CPU-only build of torch {version} on offer; taking the default build")
    pip("install", "-c", LOCK, f"torch=={version}")


def main() -> None:
    """Set up what is missing or out of date.

    Raises:
        SystemExit: this Python does not fit, or the lock file is broken.
        CalledProcessError: a command failed.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extras", default="", help="comma-separated extras of pyproject.toml")
    parser.add_argument("--no-model", action="store_true", help="install only, fetch no model and no text")
    options = parser.parse_args()
    check_interpreter()
    check_environment()

    stamp = read_stamp()
    current = stamp.get("fingerprint") == fingerprint() and PYTHON.exists()
    wanted = sorted(set(filter(None, options.extras.split(","))) | set(stamp.get("extras", [])))
    if not current or wanted != stamp.get("extras"):
        if not PYTHON.exists():
            print(f"==> creating {ENVIRONMENT}", flush=True)
            venv.create(ENVIRONMENT, with_pip=True, clear=ENVIRONMENT.exists())
        STAMP.unlink(missing_ok=True)
        print("==> installing torch", flush=True)
        pip("install", "-q", "-c", LOCK, "setuptools", "wheel")
        install_torch()
        target = f".[{','.join(wanted)}]" if wanted else "."
        print(f"==> installing the course {target}, pinned by {LOCK.name} (some minutes the first time)",
              flush=True)
        # No build isolation: a package that compiles against torch must see the torch above.
        pip("install", "-q", "--no-build-isolation", "-c", LOCK, "-e", target)
        STAMP.write_text(json.dumps({"fingerprint": fingerprint(), "extras": wanted}))
    if not options.no_model:
        run(PYTHON, "-m", "authoring.cli", "fetch")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        sys.exit(f"Set-up stopped: `{command}` failed with exit code {error.returncode}. "
                 "Its message is above; run the same make command again once it is mended.")
    except KeyboardInterrupt:
        sys.exit("Set-up interrupted. Run the same make command again: it goes on where it can.")
