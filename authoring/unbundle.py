"""Set up the course from the parts that `course bundle` wrote: no network, nothing installed before.

    python3 unbundle.py                   a folder llm-inference-course with a virtual environment in it
    python3 unbundle.py --target          packages into a folder of their own, on top of what this Python has
    python3 unbundle.py --check           only look at the parts

Standard library only. Python 3.8 and later can read it, so that an old one is told what it is too old for.
This file lies beside the parts; `course unbundle` runs the same code.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MANIFEST = "bundle.json"
FORMAT = 1  # of the manifest and of what lies in the tar
STATE = ".unbundle"  # folder inside the course's folder: what has been done, and what is not yet in its place
MARK = ".course-unbundle"  # file in an environment that was made here: one that is not complete may be redone
STEPS = ("unpack", "install", "fill_cache", "place_course")  # methods of Setup, in this order
BLOCK = 1 << 20  # bytes read at a time

# Which of the packed cache folders the target's own cache does not hold already. Run by the installed course.
_WANTED = """
import json, pathlib, sys
from course_utils.cache import MANIFEST, cache_dir, problem
print(cache_dir())
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    version = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["version"]
    if problem(cache_dir() / folder.name, version):
        print(folder.name)
"""


class BundleError(Exception):
    """What is wrong and what to do, a line for each thing that is wrong."""


# --------------------------------------------------------------------------- looking

def read_manifest(parts: Path) -> dict[str, Any]:
    """Read the manifest of a bundle.

    Args:
        parts: folder of the bundle.

    Returns:
        What `course bundle` wrote.

    Raises:
        BundleError: there is none, it is damaged, or another version of the course wrote it.
    """
    try:
        manifest = json.loads((parts / MANIFEST).read_text(encoding="utf-8"))
        known = manifest["format"]
    except FileNotFoundError:
        raise BundleError(f"there is no {MANIFEST} in {parts}: "
                          "name the folder that `course bundle` wrote") from None
    except (ValueError, KeyError, TypeError):
        raise BundleError(f"{parts / MANIFEST} is damaged: copy it again") from None
    if known != FORMAT:
        raise BundleError(f"this bundle has format {known}, and this program reads format {FORMAT}: "
                          f"use the unbundle.py that lies beside the parts")
    return manifest


def part_problems(parts: Path, manifest: dict[str, Any]) -> list[str]:
    """Which parts are missing or damaged.

    Args:
        parts: folder of the bundle.
        manifest: of the bundle.

    Returns:
        A line for each; empty when every part is as it was written.
    """
    problems = []
    with _bar("Checking the parts", sum(part["bytes"] for part in manifest["parts"])) as advance:
        for part in manifest["parts"]:
            path, size = parts / part["name"], part["bytes"]
            if not path.is_file():
                problems.append(f"{part['name']} is missing")
            elif path.stat().st_size != size:
                problems.append(f"{part['name']} is damaged: it has {path.stat().st_size:,} bytes "
                                f"instead of {size:,}")
            elif _sha256(path, advance) != part["sha256"]:
                problems.append(f"{part['name']} is damaged: its SHA-256 is not the one in {MANIFEST}")
    return problems


def machine_problems(manifest: dict[str, Any]) -> list[str]:
    """In what this Python and this machine are not what the bundle was made for.

    Args:
        manifest: of the bundle.

    Returns:
        A line for each thing.
    """
    problems = []
    found = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if found != manifest["python"]:
        problems.append(f"the bundle is for Python {manifest['python']}, and {sys.executable} is {found}: "
                        f"run python{manifest['python']} {Path(__file__).name}")
    elif not hasattr(tarfile, "data_filter"):
        problems.append(f"{sys.executable} is {sys.version.split()[0]}, which cannot unpack safely: "
                        "take 3.11.4 or later")
    wanted = re.fullmatch(r"manylinux_(\d+)_(\d+)_(\w+)", manifest["platform"])
    library, glibc = platform.libc_ver()
    here = (library, sys.platform, platform.machine())
    if here != ("glibc", "linux", wanted[3]) or _release(glibc) < _release(f"{wanted[1]}.{wanted[2]}"):
        problems.append(f"the bundle is for {manifest['platform']}, and this is {sys.platform} on "
                        f"{platform.machine()} with {library or 'another C library'} {glibc}".rstrip())
    return problems


def package_problems(manifest: dict[str, Any]) -> list[str]:
    """Which packages were left to the target and are not there, or are too old.

    Args:
        manifest: of the bundle.

    Returns:
        A line for each.
    """
    problems = []
    for name, oldest in manifest["left"].items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{name} is not in the bundle and not in {sys.executable}")
            continue
        if oldest and _release(found) < _release(oldest):
            problems.append(f"{name} is not in the bundle, and {found} in {sys.executable} is older "
                            f"than {oldest}")
    return problems


def _release(version: str) -> tuple[int, ...]:
    """(2, 11) for "2.11.0+cu130". Trailing zeros go: 2.11 and 2.11.0 are one version."""
    numbers = [int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


# --------------------------------------------------------------------------- unpacking

class _Joined:
    """The parts read one after the other as one file."""

    def __init__(self, paths: list[Path], advance: Callable[[int], None]) -> None:
        self._paths, self._advance, self._file = list(paths), advance, None

    def read(self, size: int) -> bytes:
        """Read on.

        Args:
            size: most bytes to read, at least 1.

        Returns:
            Bytes, fewer than `size` at the end of a part; none at the end of the last one.
        """
        while True:
            if self._file is None:
                if not self._paths:
                    return b""
                self._file = open(self._paths.pop(0), "rb")
            data = self._file.read(size)
            if data:
                self._advance(len(data))
                return data
            self._file.close()
            self._file = None


def unpack(parts: list[Path], folder: Path) -> None:
    """Unpack the tar that the parts make.

    Args:
        parts: their paths in order.
        folder: to unpack into; it must not exist.

    Raises:
        BundleError: a name in it leads out of the folder, or it holds more than files and folders.
    """
    aside = folder.with_name(folder.name + ".new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        with _bar("Unpacking", sum(path.stat().st_size for path in parts)) as advance:
            with tarfile.open(fileobj=_Joined(parts, advance), mode="r|", bufsize=BLOCK) as archive:
                for member in archive:
                    if not (member.isreg() or member.isdir()):
                        raise BundleError(f"the bundle holds {member.name!r}, which is no file and no "
                                          "folder: nothing of it is used")
                    archive.extract(member, aside, filter="data")
    except tarfile.FilterError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise BundleError(f"the bundle is not one that `course bundle` writes: {error}") from error
    except tarfile.TarError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise BundleError(f"the parts do not make a whole bundle: {error}") from error
    except BundleError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    os.replace(aside, folder)


# --------------------------------------------------------------------------- setting up

class Setup:
    """One run: from the parts to a folder in which `course run` works.

    Each step is done once. A run that was interrupted is run again and goes on with the first step that
    was not finished.

    Args:
        parts: folder with the parts and the manifest.
        into: the course's folder.
        place: folder of the virtual environment, or of the packages.
        own_environment: `place` becomes a virtual environment; else packages on top of this Python.
        cache: folder for the models and the texts; None for the course's usual one.

    Attributes:
        manifest: of the bundle.
        done: names of the steps that are finished.

    Raises:
        BundleError: there is no manifest that can be read.
    """

    def __init__(self, parts: Path, into: Path, place: Path, own_environment: bool,
                 cache: Path | None) -> None:
        self.manifest = read_manifest(parts)
        self.folder, self.parts = parts, [parts / part["name"] for part in self.manifest["parts"]]
        self.into, self.place, self.own_environment, self.cache = into, place, own_environment, cache
        self.stage = into / STATE / "stage"
        self.state_file = into / STATE / "state.json"
        # The same parts set up in another way are another set-up.
        told = [(parts / MANIFEST).read_text(encoding="utf-8"), str(place), own_environment, str(cache)]
        self.identity = hashlib.sha256(json.dumps(told).encode()).hexdigest()
        self.done: list[str] = []

    def find_earlier(self) -> None:
        """Read what an earlier run has done.

        Raises:
            BundleError: the folders hold something else.
        """
        try:
            state = json.loads(self.state_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            state = None
        if state is None and self.into.exists() and any(p.name != STATE for p in self.into.iterdir()):
            raise BundleError(f"{self.into} is not empty: name another folder with --into")
        if state and state["identity"] != self.identity:
            raise BundleError(f"{self.into} was set up from other parts or with other options: name another "
                              "folder with --into, or remove it")
        self.done = state["done"] if state else []
        if "install" not in self.done and self.place.exists():
            mark = self.place / MARK
            ours = mark.is_file() and mark.read_text(encoding="utf-8") == self.identity
            if not ours and any(self.place.iterdir()):
                raise BundleError(f"{self.place} is not empty: name another folder, or remove it")

    def check_space(self) -> None:
        """Look whether there is room for what is still to be done.

        Raises:
            BundleError: there is too little.
        """
        needed = (self.manifest["unpacked"] * ("unpack" not in self.done)
                  + self.manifest["installed"] * ("install" not in self.done))
        folder = next(folder for folder in (self.into, *self.into.parents) if folder.exists())
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise BundleError(f"{self.into} needs {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free: "
                              "make room, or name another folder with --into")

    def run(self) -> None:
        """Do what is not done yet.

        Raises:
            BundleError: a step failed; what is finished stays.
        """
        for step in STEPS:
            if step not in self.done:
                getattr(self, step)()
                self.done.append(step)
                self._save()
        shutil.rmtree(self.stage, ignore_errors=True)

    def unpack(self) -> None:
        """Unpack the parts into the folder `stage`.

        Raises:
            BundleError: they do not make a bundle.
        """
        self.into.mkdir(parents=True, exist_ok=True)
        (self.into / STATE).mkdir(exist_ok=True)
        self._save()
        unpack(self.parts, self.stage)

    def install(self) -> None:
        """Install the wheels with the pip among them, which needs no pip on the target.

        Raises:
            BundleError: pip or venv failed.
        """
        wheels = sorted((self.stage / "wheels").glob("*.whl"))
        pip = next(wheel for wheel in wheels if wheel.name.startswith("pip-"))
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)
        (self.place / MARK).write_text(self.identity, encoding="utf-8")
        if self.own_environment:
            _call([sys.executable, "-m", "venv", "--without-pip", str(self.place)])
        # pip moves what it unpacked here into its place: a rename, when both are on one file system.
        scratch = self.place / "scratch"
        scratch.mkdir()
        command = [self.python, str(pip / "pip"), "install", "--quiet", "--no-index", "--no-deps",
                   "--no-compile", "--no-cache-dir", "--no-warn-script-location",
                   "--disable-pip-version-check"]
        if not self.own_environment:
            command += ["--target", str(self.place), "--upgrade", "--root-user-action=ignore"]
        print(f"Installing {len(wheels)} packages into {self.place} ...", flush=True)
        started = time.monotonic()
        _call([*command, *map(str, wheels)], TMPDIR=str(scratch))
        shutil.rmtree(scratch)
        if self.own_environment:
            self._write_path_file()
        print(f"Installed {len(wheels)} packages in {time.monotonic() - started:.1f} s.")

    @property
    def python(self) -> str:
        """Path of the interpreter that runs the course."""
        return str(self.place / "bin" / "python") if self.own_environment else sys.executable

    def _write_path_file(self) -> None:
        """Let the environment find the course and, after its own packages, what was left to the target."""
        folders = [str(self.into)]
        if self.manifest["left"]:
            folders += [folder for folder in sys.path[1:] if any(Path(folder).glob("*.dist-info"))]
        question = "import sysconfig; print(sysconfig.get_path('purelib'))"
        packages = _call([self.python, "-c", question]).strip()
        Path(packages, "llm-inference-course.pth").write_text("\n".join(folders) + "\n", encoding="utf-8")

    def fill_cache(self) -> None:
        """Put models and texts that the cache lacks into it.

        Raises:
            BundleError: the installed course cannot be asked for its cache.
        """
        packed = self.stage / "cache"
        told = _call([self.python, "-c", _WANTED, str(packed)], **self._course_variables())
        cache, *wanted = told.splitlines()
        Path(cache).mkdir(parents=True, exist_ok=True)
        for name in wanted:
            # The course's own name for a folder that is not complete: it removes what has been left.
            aside, final = Path(cache, f".{name}.building-unbundle"), Path(cache, name)
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            shutil.copytree(packed / name, aside / "new", copy_function=_link_or_copy)
            if final.exists():
                os.replace(final, aside / "old")
            os.replace(aside / "new", final)
            shutil.rmtree(aside)
        there = len(list(packed.iterdir())) - len(wanted)
        print(f"Put {len(wanted)} folders with models and texts into {cache}"
              + (f"; {there} were there." if there else "."))

    def _course_variables(self) -> dict[str, str]:
        """Environment variables with which the course is found, before and after it is in its place."""
        places = [self.into, self.stage / "course"]
        if not self.own_environment:
            places.append(self.place)
        places += filter(None, [os.environ.get("PYTHONPATH")])
        variables = {"PYTHONPATH": os.pathsep.join(map(str, places))}
        if self.cache:
            variables["COURSE_CACHE"] = str(self.cache)
        return variables

    def place_course(self) -> None:
        """Move the course's files into their place and write env.sh."""
        for entry in sorted((self.stage / "course").iterdir()):
            os.replace(entry, self.into / entry.name)
        (self.into / "env.sh").write_text(self._env_script(), encoding="utf-8")

    def _env_script(self) -> str:
        lines = ["# source this file: then `course` and its Python packages are found"]
        if self.own_environment:
            lines.append(f". {shlex.quote(str(self.place / 'bin' / 'activate'))}")
        else:
            found = shlex.quote(f"{self.into}{os.pathsep}{self.place}")
            lines += [f'export PYTHONPATH={found}"${{PYTHONPATH:+:$PYTHONPATH}}"',
                      f'export PATH={shlex.quote(str(self.place / "bin"))}":$PATH"']
        if self.cache:
            lines.append(f"export COURSE_CACHE={shlex.quote(str(self.cache))}")
        return "\n".join(lines) + "\n"

    def _save(self) -> None:
        aside = self.state_file.with_suffix(".tmp")
        aside.write_text(json.dumps({"identity": self.identity, "done": self.done}), encoding="utf-8")
        os.replace(aside, self.state_file)


def _call(command: list[str], **variables: str) -> str:
    """Standard output of a command that sees none of the user's settings for pip and Python."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    done = subprocess.run(command, env=kept | {"PIP_CONFIG_FILE": os.devnull} | variables,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise BundleError(f"`{shlex.join(command)[:120]} ...` failed: "
                          f"{said[-1] if said else 'it said nothing'}")
    return done.stdout


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)  # on one file system: at once, and no second copy
    except OSError:
        shutil.copyfile(source, target)


def _sha256(path: Path, advance: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


@contextlib.contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, one line at the end elsewhere; yields a function that adds bytes."""
    done, shown = 0, -1
    started = time.monotonic()
    terminal = sys.stderr.isatty()

    def advance(count: int) -> None:
        nonlocal done, shown
        done += count
        percent = 100 * done // max(1, total)
        if terminal and percent != shown:
            shown = percent
            print(f"\r{what} [{'#' * (percent // 4):25}] {percent:3d} %", end="", file=sys.stderr, flush=True)

    try:
        yield advance
    finally:
        if terminal:
            print("\r\033[K", end="", file=sys.stderr)
    print(f"{what}: {done / 1e6:,.0f} MB in {time.monotonic() - started:.1f} s.", flush=True)


# --------------------------------------------------------------------------- the command

def _arguments(given: list[str] | None, parts: Path | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="course unbundle" if parts is None else "unbundle.py",
        description="Set up the course from the parts that `course bundle` wrote, without a network.")
    which = "folder with the parts and bundle.json" + (" (default: this file's)" if parts else "")
    parser.add_argument("parts", metavar="FOLDER", type=Path, nargs="?" if parts else None, default=parts,
                        help=which)
    parser.add_argument("--into", metavar="DIR", type=Path, default=Path("llm-inference-course"),
                        help="folder for the course, new or empty (default: %(default)s)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--venv", metavar="DIR", type=Path,
                       help="virtual environment (default: .venv in --into)")
    where.add_argument("--target", metavar="DIR", type=Path, nargs="?", const=True,
                       help="no virtual environment: packages into a folder of their own (default: packages "
                            "in --into), on top of what this Python has")
    parser.add_argument("--cache", metavar="DIR", type=Path,
                        help="folder for models and texts (default: COURSE_CACHE; else with --target the "
                             "folder cache in --into, without it the user's cache folder)")
    parser.add_argument("--check", action="store_true",
                        help="look at the parts and this machine, change nothing")
    parser.add_argument("--anyway", action="store_true",
                        help="go on when packages that were left to this machine are missing or old")
    return parser.parse_args(given)


def _unbundle(options: argparse.Namespace) -> None:
    started = time.monotonic()
    into = options.into.expanduser().absolute()
    own = options.target is None
    place = options.venv if own else None if options.target is True else options.target
    place = place.expanduser().absolute() if place else into / (".venv" if own else "packages")
    cache = options.cache or (Path(os.environ["COURSE_CACHE"]) if os.environ.get("COURSE_CACHE") else None)
    cache = cache.expanduser().absolute() if cache else None if own else into / "cache"

    setup = Setup(options.parts.expanduser().absolute(), into, place, own, cache)
    problems = machine_problems(setup.manifest)
    packages = package_problems(setup.manifest)
    if options.anyway:
        for line in packages:
            print(f"note: {line}")
    elif packages:
        problems += [*packages, "make the bundle again without --has for these packages, install them here, "
                                "or go on with --anyway"]
    if not problems:
        setup.find_earlier()
    damaged = []
    if options.check or "unpack" not in setup.done:
        damaged = part_problems(setup.folder, setup.manifest)
    if damaged:
        problems += [*damaged, "copy these parts again; nothing was changed"]
    if problems:
        raise BundleError("\n".join(problems))
    setup.check_space()
    if options.check:
        print(f"All {len(setup.parts)} parts are whole, and fit this machine.")
        return
    if len(setup.done) == len(STEPS):
        print(f"{into} is set up already.")
    else:
        setup.run()
        print(f"Set up in {time.monotonic() - started:.0f} s.")
    print("Now:", f"    source {shlex.quote(str(into / 'env.sh'))}", f"    cd {shlex.quote(str(into))}",
          "    course run", sep="\n")


def main(given: list[str] | None = None, parts: Path | None = None) -> int:
    """Run the command.

    Args:
        given: arguments; None for the program's.
        parts: folder that is taken when none is named.

    Returns:
        Its exit code: 0, or 1 after an error, or 130 when it was interrupted.
    """
    try:
        _unbundle(_arguments(given, parts))
    except BundleError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}. Mend it and run the same command again: it goes on where it stopped.",
              file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. Run the same command again: it goes on where it stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main(parts=Path(__file__).absolute().parent))
