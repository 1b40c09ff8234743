"""Folders that are built once, checked when they are read, and rebuilt when damaged.

Model, encoder and texts are downloaded or converted once and kept in one cache directory:
the environment variable COURSE_CACHE names it, or else the system's own place for caches.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import filelock
import platformdirs

from course_utils.errors import CourseError

MANIFEST = "manifest.json"
REASONS = {  # why a place cannot be used, by the system's number of the error
    errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "it may not be read or written", errno.EPERM: "it may not be written",
    errno.EROFS: "it is read-only", errno.ENOTDIR: "part of the path is a file",
    errno.EEXIST: "it is a file", errno.EISDIR: "it is a folder", errno.ELOOP: "it is a link to itself",
    errno.ENAMETOOLONG: "the name is too long",
}

# What this process has already hashed: folder -> {file: (bytes, mtime)}. A second read of an
# unchanged folder then costs a few stat calls instead of a hash of half a gigabyte.
_verified: dict[Path, dict[str, tuple[int, int]]] = {}


def cache_dir() -> Path:
    """The directory that keeps what the course downloads and converts.

    Returns:
        Its absolute path. It need not exist yet.

    Raises:
        CourseError: there is no home folder, and none is named.
    """
    chosen = os.environ.get("COURSE_CACHE")
    with contextlib.suppress(RuntimeError):  # a user without a home folder, as in some containers
        if chosen:
            return Path(chosen).expanduser().absolute()
        folder = Path(platformdirs.user_cache_dir("llm-inference-course", appauthor=False))
        if folder.is_absolute():
            return folder
    raise CourseError("There is no home folder to keep the cache in: write the whole path of a folder into "
                      "the environment variable COURSE_CACHE.")


def cached_folder(name: str, build: Callable[[Path], None], version: str = "1", megabytes: float = 1) -> Path:
    """The cached folder `name`, built first when it is missing, of another version or damaged.

    `build(folder)` fills an empty folder. It runs under a lock, so that two processes never build
    the same thing twice, and in a folder set aside, which takes its final name only when complete.
    Each file's size and SHA-256 go into a manifest, written last and compared at the first read in
    a process. A folder that does not agree is rebuilt with a one-line notice, never used.

    Args:
        name: one path component, for example "wikipedia".
        build: writes files (sub-folders are allowed) into the folder that it is given.
        version: raise it when `build` writes something else; older folders are then rebuilt.
        megabytes: free space that building needs, in 10^6 bytes.

    Returns:
        The folder's path.

    Raises:
        ValueError: the name is no single path component.
        CourseError: the cache directory cannot be used, or the disk is full.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise ValueError(f"a cached folder's name is one path component, not {name!r}")
    folder = cache_dir() / name
    try:
        if problem(folder, version) is None:
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            # Another process may have built it while this one waited for the lock.
            reason = problem(folder, version)
            if reason is not None:
                if folder.exists():
                    print(f"Rebuilding {folder}: {reason}.", file=sys.stderr)
                _build_aside(folder, build, version, megabytes)
    except OSError as error:
        if error.errno not in REASONS:  # an error of `build`, not of the place it writes to
            raise
        raise _unusable(folder.parent, REASONS[error.errno]) from error
    return folder


def problem(folder: Path, version: str = "1") -> str | None:
    """Why a cached folder may not be used.

    Args:
        folder: the cached folder; it need not exist.
        version: the version that it must be of.

    Returns:
        The reason as half a sentence; None when every file is as its manifest says.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        made_by, listed = manifest["version"], manifest["files"]
        sizes = {file: entry["bytes"] for file, entry in listed.items()}
        checksums = {file: entry["sha256"] for file, entry in listed.items()}
    except (FileNotFoundError, NotADirectoryError):
        return "it has no manifest"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "its manifest is damaged"
    if made_by != version:
        return f"it is of version {made_by}, this course makes version {version}"
    present = {path.relative_to(folder).as_posix(): path.stat() for path in _files(folder)}
    for file in sorted(present.keys() ^ listed.keys()):
        return f"{file} is missing" if file in listed else f"{file} is not in its manifest"
    fingerprint = {file: (stat.st_size, stat.st_mtime_ns) for file, stat in present.items()}
    if _verified.get(folder) == fingerprint:
        return None
    for file, size in sizes.items():
        if present[file].st_size != size:
            return f"{file} has {present[file].st_size:,} bytes instead of {size:,}"
    for file, checksum in checksums.items():
        if sha256(folder / file) != checksum:
            return f"the checksum of {file} is wrong"
    _verified[folder] = fingerprint
    return None


def sha256(path: Path) -> str:
    """SHA-256 of a file, which is read in pieces.

    Args:
        path: the file.

    Returns:
        64 hexadecimal digits.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _locked(folder: Path) -> AbstractContextManager[object]:
    """A lock for this folder, as a context manager. It ends with its holder, also when that is killed."""
    lock = filelock.FileLock(folder.parent / f".{folder.name}.lock")
    try:
        return lock.acquire(timeout=1)
    except filelock.Timeout:
        print(f"Waiting for another process that prepares {folder.name} ...", file=sys.stderr)
        return lock


def _build_aside(folder: Path, build: Callable[[Path], None], version: str, megabytes: float) -> None:
    aside = f".{folder.name}.building-"
    # The lock is held: whatever has this name was left by a process that was killed.
    for leftover in folder.parent.glob(f"{aside}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    free = shutil.disk_usage(folder.parent).free / 1e6
    if free < megabytes:
        raise _unusable(folder.parent, f"{folder.name} needs {megabytes:,.0f} MB and {free:,.0f} MB are free")
    workplace = Path(tempfile.mkdtemp(prefix=aside, dir=folder.parent))
    try:
        new, old = workplace / "new", workplace / "old"
        new.mkdir()
        build(new)
        _write_manifest(new, version)
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


def _write_manifest(folder: Path, version: str) -> None:
    files = {}
    for path in _files(folder):
        path.chmod(0o644)  # a class may share one cache; some libraries write for the owner only
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    text = json.dumps({"version": version, "files": files}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def _unusable(folder: Path, reason: str) -> CourseError:
    return CourseError(f"The cache folder {folder} cannot be used: {reason}. "
                       "Make room or name another folder in the environment variable COURSE_CACHE.")
