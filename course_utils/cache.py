"""Folders that are built once, checked each time they are read, and rebuilt when damaged.

Model, encoder and texts are downloaded or converted once and kept in one cache directory:
the environment variable COURSE_CACHE names it, or else the system's own place for caches.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import filelock
import platformdirs

from course_utils.errors import CourseError

MANIFEST = "manifest.json"

# What this process has already hashed: folder -> {file: (size, mtime)}. A second read of an
# unchanged folder then costs a few stat calls instead of a hash of half a gigabyte.
_verified: dict[Path, dict[str, tuple[int, int]]] = {}


def cache_dir() -> Path:
    """The directory that keeps what the course downloads and converts. It need not exist yet."""
    chosen = os.environ.get("COURSE_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(platformdirs.user_cache_dir("llm-inference-course", appauthor=False))


def cached_folder(name: str, build: Callable[[Path], None], version: str = "1") -> Path:
    """Return the cached folder `name`, building it first when it is missing, stale or damaged.

    `build(folder)` fills an empty folder. It runs under a lock, so that two processes never build
    the same thing twice, and in a folder set aside, which takes its final name only when complete.
    Every file's size and SHA-256 go into a manifest, written last and compared at each first read
    in a process. What does not agree is rebuilt with a one-line notice, never used.

    Args:
        name: one path component, for example "smollm2-fp32".
        build: writes the files (sub-folders are allowed) into the folder it is given.
        version: raise it when `build` writes something else; older folders are then rebuilt.

    Raises:
        CourseError: the cache directory cannot be written, or the disk is full.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise ValueError(f"a cached folder's name is one path component, not {name!r}")
    folder = cache_dir() / name
    if problem(folder, version) is None:
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.parent / f".{name}.lock"):
            # Another process may have built it while this one waited for the lock.
            reason = problem(folder, version)
            if reason is not None:
                if folder.exists():
                    print(f"Rebuilding {folder}: {reason}.", file=sys.stderr)
                _build_aside(folder, build, version)
    except OSError as error:
        raise _explained(error, folder.parent) from error
    return folder


def problem(folder: Path, version: str = "1") -> str | None:
    """Why a cached folder may not be used, or None when every file is as its manifest says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["version"] != version:
            return f"it was made by version {manifest['version']}, this is version {version}"
        listed = manifest["files"]
    except FileNotFoundError:
        return "it has no manifest"
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        return "its manifest is damaged"
    present = {path.relative_to(folder).as_posix(): path.stat() for path in _files(folder)}
    if present.keys() != listed.keys():
        odd = sorted(present.keys() ^ listed.keys())
        return f"{odd[0]} is {'missing' if odd[0] in listed else 'not in its manifest'}"
    fingerprint = {file: (stat.st_size, stat.st_mtime_ns) for file, stat in present.items()}
    if _verified.get(folder) == fingerprint:
        return None
    for file, expected in listed.items():
        if fingerprint[file][0] != expected["bytes"]:
            return f"{file} has {fingerprint[file][0]:,} bytes instead of {expected['bytes']:,}"
        if sha256(folder / file) != expected["sha256"]:
            return f"the checksum of {file} is wrong"
    _verified[folder] = fingerprint
    return None


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _build_aside(folder: Path, build: Callable[[Path], None], version: str) -> None:
    aside = f".{folder.name}.building-"
    # The lock is held: whatever is there was left by a process that was killed.
    for leftover in folder.parent.glob(f"{aside}*"):
        shutil.rmtree(leftover, ignore_errors=True)
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
    files = {path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
             for path in _files(folder)}
    text = json.dumps({"version": version, "files": files}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def _explained(error: OSError, folder: Path) -> CourseError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = "the disk is full"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        reason = "it cannot be written"
    else:
        reason = str(error)
    return CourseError(f"The cache {folder} is of no use: {reason}. "
                       "Make room or name another folder in the environment variable COURSE_CACHE.")
