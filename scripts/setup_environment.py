"""Create the virtual environment, install the pinned packages, fetch the model and the texts.

Standard library only: it runs before anything is installed. `make setup` calls it; so do
`make course`, `make test` and `make lab`, each with the extras it needs. A second run with
nothing changed only looks at a stamp file.
"""

import sys

if not (3, 11) <= sys.version_info[:2] <= (3, 13):  # first of all: an older one fails at what stands below
    sys.exit("This course needs Python 3.11, 3.12 or 3.13, and {} is {}.{}.{}. Name another one: make setup "
             "PYTHON=python3.11".format(sys.executable, *sys.version_info[:3]))

import argparse
import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import subprocess
import venv
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from course_utils import variables  # noqa: E402 - standard library only, as this file

# A folder that is named from where the user is: commands run in the repository's root.
for _name in ("COURSE_VENV", "COURSE_CACHE"):
    if os.environ.get(_name):
        os.environ[_name] = os.path.abspath(os.path.expanduser(os.environ[_name]))

LOCK = ROOT / "requirements.lock"
OURS = ROOT / ".venv"
ENVIRONMENT = Path(os.environ.get("COURSE_VENV") or OURS)
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = ENVIRONMENT / "course-setup.json"


def run(*command: str | Path, environment: dict[str, str] | None = None) -> None:
    """Run a command in the repository's root.

    Args:
        *command: the program and its arguments.
        environment: its variables; ours, without what would lead it to another Python, when left out.

    Raises:
        CalledProcessError: it failed.
    """
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT,
                   env=environment or variables.for_python())


# What pip and uv are told by the user's settings: asked for once the environment has a pip.
pip_variables = functools.cache(lambda: variables.for_pip(PYTHON))


def pip(*arguments: str | Path) -> None:
    """Run the pip of the virtual environment.

    Args:
        *arguments: of pip.

    Raises:
        CalledProcessError: it failed.
    """
    run(PYTHON, "-m", "pip", "--disable-pip-version-check", *arguments, environment=pip_variables())


class Builder(venv.EnvBuilder):
    """Notes that the environment is ours before it is one, so that an interrupted set-up may make it anew."""

    def create_configuration(self, context: SimpleNamespace) -> None:
        """Write the stamp, then what makes the folder an environment; venv calls this.

        Args:
            context: venv's own.
        """
        write_stamp({"created": True})
        super().create_configuration(context)


def is_ours() -> bool:
    """Whether the set-up has made the environment: one that somebody else has made is never emptied."""
    return ENVIRONMENT == OURS or read_stamp().get("created", False)


def check_environment() -> None:
    """An environment without a Python is built anew, so its folder must be nothing else."""
    if not PYTHON.exists() and ENVIRONMENT.is_dir() and not is_ours():
        if any(ENVIRONMENT.iterdir()):
            sys.exit(f"COURSE_VENV is {ENVIRONMENT}, neither empty nor an environment with a Python. "
                     "Name another folder.")


def works() -> bool:
    """Whether the environment has a Python that starts and a pip.

    Not so after an interrupt while it was made, and when the Python that it was made with is gone, or is
    another version now, which looks for packages in another folder.
    """
    if not PYTHON.exists():
        return False
    try:
        command = [str(PYTHON), "-c", "import pip"]
        return subprocess.run(command, env=variables.for_python(), capture_output=True).returncode == 0
    except OSError:
        return False


def moved_from() -> str:
    """Where the environment was made, when that is elsewhere: its programs begin with a path to their Python.

    Returns:
        The folder; "" when it is in its place, or when nobody has noted the place.
    """
    try:
        lines = (ENVIRONMENT / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    told = dict(line.partition(" = ")[::2] for line in lines).get("command", "")
    place = told.partition(" -m venv ")[2]
    if place.startswith("-"):  # options stand before the folder
        place = "/" + place.partition(" /")[2]
    here = place == str(ENVIRONMENT) or os.path.exists(place) and os.path.samefile(place, ENVIRONMENT)
    return "" if here else place


def check_place() -> None:
    """Stop, with a line that says what to do, when the checkout or the environment may not be written.

    Raises:
        SystemExit: so it is.
    """
    if not os.access(ROOT, os.W_OK):
        sys.exit(f"{ROOT} is read-only, and what is still to be installed is noted there. "
                 "Let its owner run the same make command, or copy it to a folder of your own.")
    folder = next(folder for folder in (ENVIRONMENT, *ENVIRONMENT.parents) if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        sys.exit(f"{ENVIRONMENT} may not be written. Name another folder in COURSE_VENV.")
    if importlib.util.find_spec("ensurepip") is None and not works():
        sys.exit(f"{sys.executable} cannot make a virtual environment with pip. On Debian and Ubuntu install "
                 "python3-venv, or name another Python: make setup PYTHON=python3.11")


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let one set-up at a time change the environment. The lock ends with its process."""
    ENVIRONMENT.parent.mkdir(parents=True, exist_ok=True)
    beside = ENVIRONMENT.with_name(f"{ENVIRONMENT.name}.lock")  # in it, it would go when it is made anew
    lock = beside if os.access(ENVIRONMENT.parent, os.W_OK) else ENVIRONMENT / "course-setup.lock"
    with open(lock, "w") as file:
        with contextlib.suppress(ImportError, OSError):  # Windows; a file system without locks
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"Waiting for another set-up of {ENVIRONMENT} ...", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def create() -> bool:
    """Make the environment, or make it anew where it does not work or was moved.

    Returns:
        True when it is ours: an environment that somebody else has made is never cleared.

    Raises:
        SystemExit: it would have to be made anew, and it is not ours.
    """
    place, ours = moved_from(), is_ours()
    if works() and not place:
        return ours
    if place and not ours:
        sys.exit(f"{ENVIRONMENT} was made as {place}, and its programs still look there. "
                 "Make it anew, or name another folder in COURSE_VENV.")
    if PYTHON.exists() and not ours:
        sys.exit(f"{PYTHON} does not start or has no pip. Install pip there ({PYTHON} -m ensurepip, or conda "
                 "install pip), or name another folder in COURSE_VENV.")
    incomplete = " anew: it is not complete" if PYTHON.exists() else ""
    why = f" anew: it was made as {place}" if place else incomplete
    print(f"==> creating {ENVIRONMENT}{why}", flush=True)
    Builder(with_pip=True, clear=ENVIRONMENT.exists()).create(ENVIRONMENT)
    return True


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
        "fingerprint", "extras", "root" (of the checkout) and "created" (the environment is ours); {} when
        there was no set-up. Without "fingerprint" it was not complete.
    """
    try:
        return json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_stamp(stamp: dict) -> None:
    """Write what `read_stamp` reads.

    Args:
        stamp: its content.
    """
    aside = STAMP.with_suffix(".tmp")
    aside.write_text(json.dumps(stamp), encoding="utf-8")
    os.replace(aside, STAMP)


def is_current(wanted: list[str]) -> bool:
    """Whether everything is installed, for the checkout where it is now.

    Args:
        wanted: names of extras.

    Returns:
        True when nothing is to be done.
    """
    stamp = read_stamp()
    told = (stamp.get("fingerprint"), stamp.get("extras"), stamp.get("root"))
    return told == (fingerprint(), wanted, str(ROOT)) and works() and not moved_from()


def locked_version(package: str) -> str:
    """The version of a package that requirements.lock pins.

    Args:
        package: its name.

    Returns:
        The version, such as "2.13.0".

    Raises:
        SystemExit: there is no such pin.
    """
    for line in LOCK.read_text(encoding="utf-8").splitlines():
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
    done = subprocess.run(command, cwd=ROOT, env=pip_variables(), stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL)
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
    done = subprocess.run(probe, env=variables.for_python(), capture_output=True, text=True)
    installed = done.stdout.strip()
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


def install(extras: list[str]) -> None:
    """Create the environment where that is needed, and install everything.

    Args:
        extras: names of extras of pyproject.toml.

    Raises:
        SystemExit: the environment is not ours to be made anew, or the lock file is broken.
        CalledProcessError: a command failed.
    """
    stamp = {"extras": extras, "created": create()}
    write_stamp(stamp)  # not complete yet
    print("==> installing torch", flush=True)
    pip("install", "-q", "-c", LOCK, "setuptools", "wheel")
    install_torch()
    target = f".[{','.join(extras)}]" if extras else "."
    print(f"==> installing the course {target}, pinned by {LOCK.name} (some minutes the first time)",
          flush=True)
    # No build isolation: a package that compiles against torch must see the torch above.
    pip("install", "-q", "--no-build-isolation", "-c", LOCK, "-e", target)
    write_stamp(stamp | {"fingerprint": fingerprint(), "root": str(ROOT)})


def main() -> None:
    """Set up what is missing or out of date.

    Raises:
        SystemExit: this Python does not fit, or the lock file is broken.
        CalledProcessError: a command failed.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extras", default="", help="comma-separated extras of pyproject.toml")
    parser.add_argument("--no-model", action="store_true", help="install only, fetch no model and no text")
    parser.add_argument("--lazy", action="store_true",
                        help="leave what later lessons start from to the first one that needs it")
    options = parser.parse_args()
    check_environment()

    def wanted() -> list[str]:
        return sorted({*filter(None, options.extras.split(",")), *read_stamp().get("extras", [])})

    if not is_current(wanted()):
        check_place()
        with alone():
            if not is_current(wanted()):  # another process may have done it meanwhile
                install(wanted())
    if not options.no_model:
        run(PYTHON, "-m", "authoring.cli", "fetch", *["--lazy"] * options.lazy)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        # venv keeps what its command said; others have printed it.
        said = (error.output or b"Its message is above").decode(errors="replace").strip().splitlines()[-1]
        sys.exit(f"Set-up stopped: `{command}` failed with exit code {error.returncode}. {said}. "
                 "Run the same make command again once it is mended.")
    except (OSError, ValueError) as error:  # venv refuses a path with ":" by a ValueError
        sys.exit(f"Set-up stopped: {error}. Run the same make command again once it is mended.")
    except KeyboardInterrupt:
        sys.exit("Set-up interrupted. Run the same make command again: it goes on where it can.")
