"""Sort the failures of a test run by cause: environment, numbers, time, or something else.

    python scripts/sort_failures.py runs/tests.xml

It reads pytest's JUnit file. Standard library only: it says what went wrong also where nothing could be
installed. On GitHub the list goes into the summary of the run.
"""

import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

CAUSES = {  # the first that fits
    "time": r"Timeout|timed out|TimeoutExpired|more than \d+ s",
    "environment": r"ImportError|ModuleNotFoundError|No module named|OSError|PermissionError|"
                   r"FileNotFoundError|No space left|ConnectionError|URLError|HTTPError|could not install|"
                   r"CourseError|MemoryError|exit code -9|kernel died|DeadKernel",
    "numbers": r"NbCellError|Cell outputs differ|not within|tolerance|allclose|approx|assert .*\d+\.\d+",
    "something else": r"",
}


def sort(junit: str) -> dict[str, list[str]]:
    """The failed tests by cause.

    Args:
        junit: content of pytest's JUnit file.

    Returns:
        Cause -> one line for each test, in the order of `CAUSES`; causes without a test are left out.
    """
    found: dict[str, list[str]] = {cause: [] for cause in CAUSES}
    for case in ElementTree.fromstring(junit).iter("testcase"):
        for problem in [*case.iterfind("failure"), *case.iterfind("error")]:
            text = f"{problem.get('message') or ''}\n{problem.text or ''}"
            cause = next(cause for cause, pattern in CAUSES.items() if re.search(pattern, text))
            said = (problem.get("message") or text).strip().partition("\n")[0][:160]
            found[cause].append(f"{case.get('classname')}::{case.get('name')}: {said}")
    return {cause: lines for cause, lines in found.items() if lines}


def main() -> None:
    """Print the list, and add it to GitHub's summary where there is one.

    Raises:
        SystemExit: no file is named, or it is not pytest's.
    """
    if len(sys.argv) != 2:
        sys.exit("Name one file, pytest's JUnit file: python scripts/sort_failures.py runs/tests.xml")
    path = Path(sys.argv[1])
    if not path.exists():
        text = "## environment\n\nNo test ran: the set-up failed."
    else:
        try:
            causes = sort(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, ElementTree.ParseError) as error:
            sys.exit(f"{path} is no JUnit file to read ({error}): pytest --junitxml={path} writes it.")
        parts = [f"## {cause}: {len(lines)}\n\n" + "\n".join(f"- {line}" for line in lines)
                 for cause, lines in causes.items()]
        text = "\n\n".join(parts) or "No test failed."
    print(text)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(summary, "a", encoding="utf-8") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main()
