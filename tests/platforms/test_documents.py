"""What documents and lessons name exists: commands, their options, targets, benches, files, headings."""

import re
from pathlib import Path

import pytest
import typer

from authoring.cli import app

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")),
             *sorted((ROOT / "lessons").glob("*.py"))]
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.M | re.S)
COMMAND = re.compile(r"(?:^|&& |bin/|[A-Z]=\S+ )(course|make) ([a-z][^#;&|]*)")
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
COMMANDS = typer.main.get_command(app)


def commands_of(path):
    """Each `course ...` and `make ...` that stands as code in a document, or in a lesson's markdown cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        cells = [cell for cell in re.split(r"^# %% ", text, flags=re.M) if cell.startswith("[markdown]")]
        text = "\n".join(re.sub(r"^# ?", "", cell, flags=re.M) for cell in cells)
    lines = [line for block in FENCE.findall(text) for line in block.splitlines()]
    lines += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text))]
    return [(tool, words.split()) for line in lines for tool, words in COMMAND.findall(line)]


def unknown(words):
    """What of a command line `course WORDS` does not exist; None if all does."""
    command = COMMANDS
    while words and hasattr(command, "commands"):
        if words[0] not in command.commands:
            return words[0]
        command, words = command.commands[words[0]], words[1:]
    if command.context_settings.get("ignore_unknown_options"):
        return None
    options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    return next((word for word in words if word.startswith("--") and word.split("=")[0] not in options), None)


def headings(path):
    """The anchors that GitHub gives the headings of a page."""
    lines = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_options_targets_and_benches_exist(path):
    wrong = []
    for tool, words in commands_of(path):
        if tool == "make":
            known = re.search(rf"^{re.escape(words[0])}:", (ROOT / "Makefile").read_text(), flags=re.M)
        elif words[0] == "bench" and words[1:] and words[1].islower():
            known = (ROOT / "authoring" / "bench" / f"{words[1]}.py").exists()
        else:
            known = not unknown(words)
        wrong += [] if known else [" ".join([tool, *words])]
    assert not wrong


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if path.suffix == ".md"],
                         ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(path):
    wrong = []
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if "://" not in link and not (target.exists() and (
                not anchor or target.suffix == ".ipynb" or anchor in headings(target))):
            wrong.append(link)
    assert not wrong


def test_commands_are_found_in_code_only(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("The\ncourse sets it: `course\nlist`\n\n```\nA=1 course fetch --lazy  # once\n```\n")
    assert commands_of(page) == [("course", ["fetch", "--lazy"]), ("course", ["list"])]


def test_a_wrong_option_and_a_wrong_command_are_noticed():
    assert unknown(["sync", "--no-run", "gptq"]) is None
    assert unknown(["phone", "serve", "--port", "1"]) is None
    assert unknown(["sync", "--never"]) == "--never" and unknown(["phone", "dance"]) == "dance"
