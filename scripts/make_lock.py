"""Resolve pyproject.toml for every supported platform and write requirements.lock (needs uv).

The lock is used as a list of constraints (`pip install -c`), so a line for a package that a
platform does not need does no harm; a marker is kept only where two versions differ by it.
"""

import re
import subprocess
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
# One release of torch and numpy that every package of the course was tried with.
TRIED = ["torch==2.13.0", "numpy==2.2.6", "transformers==5.23.0"]


def package(line: str) -> str:
    """Name of the package that a line pins.

    Args:
        line: of a requirements file, such as "torch==2.13.0 ; sys_platform == 'linux'".

    Returns:
        Such as "torch".
    """
    return re.split(r"[=\[ ]", line)[0]


def main() -> None:
    """Write requirements.lock.

    Raises:
        CalledProcessError: uv found no versions that go together, or could not reach the package index.
        FileNotFoundError: uv is not installed.
    """
    tried = ROOT / "build" / "tried.txt"
    tried.parent.mkdir(exist_ok=True)
    tried.write_text("\n".join(TRIED) + "\n")
    resolved = subprocess.run(
        ["uv", "pip", "compile", "--universal", "--python-version", "3.11", "--all-extras", "pyproject.toml",
         "-c", str(tried), "--no-header", "--no-annotate"],
        cwd=ROOT, check=True, capture_output=True, text=True).stdout
    lines = [line.strip() for line in resolved.splitlines() if line.strip()]
    versions = Counter(package(line) for line in lines)
    lines = [line if versions[package(line)] > 1 else line.partition(" ; ")[0] for line in lines]
    LOCK.write_text("\n".join(lines) + "\n")
    print(f"{LOCK.name}: {len(lines)} pins")


if __name__ == "__main__":
    main()
