"""What the line that begins every lesson calls.

On Colab the line installs this package, pinned to the notebook's own branch or tag, and what the package
needs. Everywhere else, where the package is already there, it does nothing.
"""

import importlib.metadata
import subprocess
import sys
import tempfile
from pathlib import Path

DISTRIBUTION = "llm-inference-course"

# Colab ships these built for its own GPU driver: whatever pip wants, they stay as they are.
KEEP = ("torch", "torchvision", "torchaudio")


def prepare() -> None:
    """Install on Colab what the package still lacks; do nothing elsewhere, and nothing the second time.

    Raises:
        CourseError: pip could not install it.
    """
    if "google.colab" not in sys.modules:
        return
    wanted = missing_requirements()
    if not wanted:
        return
    from course_utils import variables
    from course_utils.errors import CourseError

    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "keep.txt"
        constraints.write_text(kept_versions())
        command = [sys.executable, "-m", "pip", "install", "-q", "-c", str(constraints), *wanted]
        done = subprocess.run(command, env=variables.for_pip(), capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1][-300:]
        raise CourseError(f"could not install {', '.join(wanted)} ({said}). Run this cell again; if it fails "
                          "again, choose Runtime > Disconnect and delete runtime, and begin anew.")
    importlib.invalidate_caches()


def kept_versions() -> str:
    """Constraints for pip that pin each installed package of `KEEP` to the version it has.

    Returns:
        One line a package, "name==version".
    """
    lines = []
    for name in KEEP:
        try:
            lines.append(f"{name}=={importlib.metadata.version(name)}\n")
        except importlib.metadata.PackageNotFoundError:
            pass
    return "".join(lines)


def missing_requirements() -> list[str]:
    """This package's requirements, extras left out, that are not installed in a version that will do.

    Returns:
        The requirements as pip takes them, such as "numpy<3,>=2.2".
    """
    from packaging.requirements import Requirement

    missing = []
    for text in importlib.metadata.requires(DISTRIBUTION) or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            missing.append(str(requirement))
    return missing
