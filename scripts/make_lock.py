"""Resolve pyproject.toml for every supported platform and write requirements.lock (needs uv).

The lock is used as a list of constraints (`pip install -c`), so a line for a package that a
platform does not need does no harm; a marker is kept only where two versions differ by it. Then
uv is asked for each Python and platform: are there wheels of these versions, so that nothing is compiled?
"""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
# One release of torch and numpy that every package of the course was tried with.
TRIED = ["torch==2.13.0", "numpy==2.2.6", "transformers==5.23.0"]
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "aarch64-apple-darwin",
             "x86_64-pc-windows-msvc")
OLDEST_MACOS = "14.0"  # that torch has wheels for; for Macs with an Intel processor it has none
EXTRAS = ("author", "site", "phone")  # GPTQModel, one of the extra `libraries`, is compiled everywhere


def package(line: str) -> str:
    """Name of the package that a line pins.

    Args:
        line: of a requirements file, such as "torch==2.13.0 ; sys_platform == 'linux'".

    Returns:
        Such as "torch".
    """
    return re.split(r"[=\[ ]", line)[0]


def why_not(python: str, platform: str) -> str:
    """What keeps a Python on a platform from installing the pinned versions as wheels.

    Args:
        python: such as "3.12".
        platform: as uv names it, such as "aarch64-apple-darwin".

    Returns:
        uv's reason; "" if nothing does.
    """
    extras = [part for extra in EXTRAS for part in ("--extra", extra)]
    done = subprocess.run(
        ["uv", "pip", "install", "--dry-run", "--only-binary", ":all:", "--target", "build/nothing",
         "--python-version", python, "--python-platform", platform, "-c", LOCK, "-r", "pyproject.toml",
         *extras],
        cwd=ROOT, env=os.environ | {"MACOSX_DEPLOYMENT_TARGET": OLDEST_MACOS}, capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else ""


def main() -> None:
    """Write requirements.lock, and say where it can be installed.

    Raises:
        SystemExit: uv is not installed, found no versions that go together, or could not reach the package
            index; or somewhere a pinned version has no wheel.
    """
    if shutil.which("uv") is None:
        sys.exit("This needs uv: pip install uv. Nothing was changed.")
    tried = ROOT / "build" / "tried.txt"
    tried.parent.mkdir(exist_ok=True)
    tried.write_text("\n".join(TRIED) + "\n")
    done = subprocess.run(
        ["uv", "pip", "compile", "--universal", "--python-version", "3.11", "--all-extras", "pyproject.toml",
         "-c", str(tried), "--no-header", "--no-annotate"],
        cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"uv found no versions: {' '.join(done.stderr.split())[-600:]}. {LOCK.name} is as it was.")
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    versions = Counter(package(line) for line in lines)
    lines = [line if versions[package(line)] > 1 else line.partition(" ; ")[0] for line in lines]
    aside = LOCK.with_suffix(".tmp")
    aside.write_text("\n".join(lines) + "\n")
    os.replace(aside, LOCK)
    print(f"{LOCK.name}: {len(lines)} pins")
    missing = 0
    for python in PYTHONS:
        for platform in PLATFORMS:
            reason = why_not(python, platform)
            missing += bool(reason)
            print(f"Python {python}, {platform}: {reason or 'all wheels are there'}")
    sys.exit(missing > 0)


if __name__ == "__main__":
    main()
