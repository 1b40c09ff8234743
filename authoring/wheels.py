"""Which packages the course needs on another machine, beside what that machine has; and their wheels.

uv resolves for a Python and a platform that are not this machine's, and reads only the packages' metadata.
pip downloads what was chosen, with the user's own settings (index, proxy, certificates).
"""

import ast
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from email.parser import BytesParser
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from tqdm import tqdm

from course_utils import variables
from course_utils.errors import CourseError

NEVER = "sys_platform == 'never'"  # as an override: the package is left out, and what only it needs


@dataclass(frozen=True)
class Target:
    """A machine that the course is packed for.

    Attributes:
        python: its Python, as "3.12".
        platform: its C library and processor, as "manylinux_2_28_x86_64".

    Raises:
        ValueError: another Python or platform than can be packed for.
    """

    python: str
    platform: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"3\.\d+", self.python):
            raise ValueError(f"--python must be like 3.12, is {self.python!r}.")
        if not re.fullmatch(r"manylinux_2_\d+_(x86_64|aarch64)", self.platform):
            raise ValueError(f"--platform must be like manylinux_2_28_x86_64 (a glibc and a processor), is "
                             f"{self.platform!r}.")

    @property
    def glibc(self) -> int:
        """The second number of the C library's version: 28 for 2.28."""
        return int(self.platform.split("_")[2])

    @property
    def machine(self) -> str:
        """The processor: "x86_64" or "aarch64"."""
        return self.platform.split("_", 3)[3]

    @property
    def environment(self) -> dict[str, str]:
        """What environment markers in requirements are compared with."""
        return {"python_version": self.python, "python_full_version": f"{self.python}.0", "os_name": "posix",
                "sys_platform": "linux", "platform_system": "Linux", "platform_machine": self.machine,
                "implementation_name": "cpython", "platform_python_implementation": "CPython", "extra": ""}

    @property
    def pip_options(self) -> list[str]:
        """Options of `pip download`: wheels made for an older glibc run too."""
        tags = [f"manylinux_2_{minor}_{self.machine}" for minor in range(self.glibc, 4, -1)]
        tags += [f"{name}_{self.machine}"
                 for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
        return ["--only-binary=:all:", "--implementation", "cp", "--python-version", self.python,
                *(option for tag in tags for option in ("--platform", tag))]

    @property
    def uv_options(self) -> list[str]:
        """Options of `uv pip compile` for the same."""
        return ["--only-binary=:all:", "--python-version", self.python,
                "--python-platform", f"{self.machine}-manylinux_2_{self.glibc}"]


def names_and_versions(lines: Iterable[str]) -> dict[str, str | None]:
    """What a machine has.

    Args:
        lines: of `pip freeze` or `pip list --format=freeze`, or bare names.

    Returns:
        Version by canonical name, None where it is not known.

    Raises:
        ValueError: a line is neither.
    """
    found = {}
    for line in lines:
        line = line.partition("#")[0].strip()
        if not line or line.startswith("-e "):  # an editable package: pip freeze names where it lies
            continue
        try:
            requirement = Requirement(line.replace("===", "=="))
        except InvalidRequirement as error:
            raise ValueError(f"{line!r} is no line of `pip freeze` and no name of a package.") from error
        pins = [pin.version for pin in requirement.specifier if pin.operator == "=="]
        found[canonicalize_name(requirement.name)] = pins[0] if pins else None
    return found


@dataclass(frozen=True)
class Choice:
    """Which packages are packed.

    Attributes:
        packed: version by name of what goes into the bundle.
        kept: version by name of what is left out, as the target has it.
    """

    packed: dict[str, str]
    kept: dict[str, str]


def choose(requirements: list[str], target: Target, lock: dict[str, str], has: dict[str, str | None],
           without: Iterable[str], workplace: Path) -> Choice:
    """Resolve the requirements for a target.

    A package that the target has in a version that satisfies every requirement on it is left out; so is one
    whose version there is not known. One that is too old is packed. What only left-out packages need is
    not packed either: it is the target's. Where the target does not decide, `lock` names the version that is
    preferred.

    Args:
        requirements: as in pyproject.toml.
        target: the machine.
        lock: preferred version by canonical name.
        has: see `names_and_versions`.
        without: packages that are left out although the target may not have them.
        workplace: folder for uv's files.

    Returns:
        The choice.

    Raises:
        CourseError: uv is missing, or nothing satisfies the requirements.
    """
    versions = {name: version for name, version in has.items() if version}
    never = {canonicalize_name(name) for name in without} | (has.keys() - versions.keys())
    _placeholders(versions, workplace / "has")
    kept = _kept(_compile(requirements, target, lock | versions, never, workplace), versions)
    # Again: what turned out too old on the target gets the version that the lock names.
    found = _compile(requirements, target, lock | kept, never, workplace)
    kept = _kept(found, versions)
    if kept:
        found = _compile(requirements, target, found, never | kept.keys(), workplace)
    return Choice(found, kept)


def _kept(found: dict[str, str], versions: dict[str, str]) -> dict[str, str]:
    return {name: versions[name] for name, version in found.items() if _same(version, versions.get(name))}


def _same(one: str, other: str | None) -> bool:
    try:
        return other is not None and Version(one) == Version(other)
    except InvalidVersion:
        return one == other


def _compile(requirements: list[str], target: Target, preferred: dict[str, str], never: set[str],
             workplace: Path) -> dict[str, str]:
    """Let uv resolve. It keeps a version that its output file names already, if that version will do."""
    files = {"in": requirements, "override": [f"{name}; {NEVER}" for name in sorted(never)],
             "out": [f"{name}=={version}" for name, version in sorted(preferred.items())]}
    for name, lines in files.items():
        (workplace / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    command = [sys.executable, "-m", "uv", "pip", "compile", "in.txt", "--override", "override.txt",
               "--output-file", "out.txt", "--no-header", "--no-annotate", "--quiet", "--no-config",
               "--no-python-downloads", "--find-links", "has", *target.uv_options, *_pip_settings()]
    done = subprocess.run(command, cwd=workplace, env=variables.for_pip(), stdin=subprocess.DEVNULL,
                          capture_output=True, text=True)
    if "No module named uv" in done.stderr:
        raise CourseError("packing needs uv, which resolves for another machine: pip install uv")
    if done.returncode:
        causes = re.sub(r"\s*\n\s*(cause|hint): ", " ", done.stderr.partition("\nhint:")[0])
        raise CourseError("these packages cannot be had together for the target: "
                          + " ".join(causes.removeprefix("error: ").split())[:600])
    return names_and_versions((workplace / "out.txt").read_text(encoding="utf-8").splitlines())


def _pip_settings() -> list[str]:
    """Settings of pip as options of uv, which does not read them. Further indexes are left out."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    told = subprocess.run(command, capture_output=True, text=True).stdout
    found = {}
    for section in ("global", "download", ":env:"):  # the last one wins
        for name, value in re.findall(rf"(?m)^{section}\.([\w-]+)=(.*)$", told):
            found[name] = ast.literal_eval(value)
    options = []
    if "index-url" in found and "UV_DEFAULT_INDEX" not in os.environ:
        options += ["--default-index", found["index-url"]]
    if found.get("no-index", "0").lower() in ("1", "true", "yes", "on"):
        options += ["--no-index"]
    return options + [o for place in found.get("find-links", "").split() for o in ("--find-links", place)]


def _placeholders(versions: dict[str, str], folder: Path) -> None:
    """Empty wheels for what the target has: its version may be one that the index does not hold."""
    folder.mkdir()
    for name, version in versions.items():
        write_wheel(folder, name, version)


def write_wheel(folder: Path, name: str, version: str, metadata: Iterable[str] = (),
                files: dict[str, str] | None = None) -> Path:
    """Write a wheel for every Python and platform. The same arguments give the same bytes.

    Args:
        folder: that gets the wheel.
        name: of the package.
        version: of the package.
        metadata: further lines of METADATA, such as "Requires-Dist: numpy>=2".
        files: text by path in the wheel; "entry_points.txt" goes where pip looks for it.

    Returns:
        Path of the wheel.
    """
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    content = {path if path != "entry_points.txt" else f"{info}/{path}": text
               for path, text in (files or {}).items()}
    content[f"{info}/METADATA"] = "\n".join(
        ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *metadata, ""])
    content[f"{info}/WHEEL"] = ("Wheel-Version: 1.0\nGenerator: course\nRoot-Is-Purelib: true\n"
                                "Tag: py3-none-any\n")
    # pip accepts a record without checksums, and writes the full one of what it installs.
    content[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*content, f"{info}/RECORD"])
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in content.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return path


def download(packages: dict[str, str], target: Target, folder: Path, scratch: Path) -> list[Path]:
    """Download one wheel for each package.

    Args:
        packages: version by name.
        target: the machine they are for.
        folder: that gets the wheels.
        scratch: folder for pip's own files.

    Returns:
        The wheels, sorted by name.

    Raises:
        CourseError: pip could not.
    """
    pins = scratch / "download.txt"
    pins.write_text("".join(f"{name}=={version}\n" for name, version in packages.items()), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
               "--no-input", "--no-deps", *target.pip_options, "--requirement", str(pins),
               "--dest", str(folder)]
    with tqdm(total=len(packages), desc="Downloading packages", unit="package") as bar, _watch(scratch, bar):
        done = subprocess.run(command, env=variables.for_pip() | {"TMPDIR": str(scratch)},
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        raise CourseError("pip could not download the packages: "
                          + (said[-1].removeprefix("ERROR: ") if said else done.stderr[-300:].strip()))
    return sorted(folder.glob("*.whl"))


class _watch:
    """Moves a bar with the wheels that pip has in its scratch folder."""

    def __init__(self, scratch: Path, bar: tqdm) -> None:
        self._scratch, self._bar, self._end = scratch, bar, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._end.set()
        self._thread.join()
        if error is None:
            self._bar.update(self._bar.total - self._bar.n)

    def _run(self) -> None:
        while not self._end.wait(0.3):
            self._bar.update(max(0, len(list(self._scratch.glob("pip-*/*.whl"))) - self._bar.n))


def metadata(wheel: Path) -> tuple[str, str, list[Requirement]]:
    """What a wheel says of itself.

    Args:
        wheel: its path.

    Returns:
        (canonical name, version, requirements).
    """
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        fields = BytesParser().parsebytes(archive.read(name), headersonly=True)
    needed = [Requirement(text) for text in fields.get_all("Requires-Dist", [])]
    return canonicalize_name(fields["Name"]), fields["Version"], needed


def needed_of(names: Iterable[str], wheels: list[Path], target: Target) -> dict[str, str]:
    """Which of some packages are required by wheels.

    Args:
        names: canonical names of the packages.
        wheels: paths of the wheels.
        target: the machine, for the conditions of requirements.

    Returns:
        The oldest version that will do, or "", by name of those that a wheel requires.
    """
    names, oldest = set(names), {}
    for wheel in wheels:
        for requirement in metadata(wheel)[2]:
            name = canonicalize_name(requirement.name)
            marker = requirement.marker
            if name not in names or (marker and not marker.evaluate(target.environment)):
                continue
            bounds = [pin.version for pin in requirement.specifier if pin.operator in (">=", "~=", "==", ">")]
            bounds = [bound.removesuffix(".*") for bound in bounds]
            oldest[name] = max([*bounds, oldest.get(name, "")], key=lambda bound: Version(bound or "0"))
    return dict(sorted(oldest.items()))
