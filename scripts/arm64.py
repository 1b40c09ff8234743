"""The exported model under an ARM64 ONNX Runtime, emulated: are the tokens the same?

Debian's arm64 Python and PyPI's aarch64 wheels are unpacked into the course's cache, and qemu runs them
instruction by instruction (user-mode emulation: no virtual machine, nothing is installed). That shows which
tokens come out, and which ARM instructions are executed. It does not show how fast an ARM processor is.

    make arm64          writes recorded/bench_phone_arm64.json

Needs a Debian-like system on x86-64 with apt, and about 1 GB in the cache.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from transformers import AutoTokenizer

from course_utils import cache, records
from course_utils.errors import CourseError
from course_utils.phone import decode, export, packed

ONNXRUNTIME, NUMPY, PYTHON = "1.27.0", "2.2.6", "3.11"  # newer builds of ONNX Runtime crash under this qemu
CPU = "cortex-a76"  # what is emulated: Armv8.2 with products of 8-bit integers (sdot), as in many phones
LEVELS = {1: "activations in FP32", 4: "activations in INT8"}  # accuracy_level of MatMulNBits
QUESTION, NEW = "What is the capital of France?", 8
TITLE = "The exported model under an ARM64 ONNX Runtime, emulated by qemu"
PROGRAM = """
import importlib.util, json, sys
import numpy, onnxruntime
spec = importlib.util.spec_from_file_location("decode", sys.argv[1])
decode = importlib.util.module_from_spec(spec)
spec.loader.exec_module(decode)
session = decode.open_session(sys.argv[2], threads=1)
tokens = decode.generate(session, json.loads(sys.argv[3]), int(sys.argv[4]))
import platform
lines = [line for line in open("/proc/self/maps") if "onnxruntime_pybind11_state" in line]
places = [int(place, 16) for line in lines for place in line.split()[0].split("-")]
print(json.dumps({"tokens": tokens, "machine": platform.machine(), "python": platform.python_version(),
                  "onnxruntime": onnxruntime.__version__, "code": [min(places), max(places)]}))
"""


def main() -> None:
    """Run the model here and there, compare, look at the instructions, keep the result."""
    missing = [name for name in ("apt-get", "dpkg") if shutil.which(name) is None]
    if missing:
        raise CourseError(f"this needs {' and '.join(missing)}, as Debian and Ubuntu have them")
    root = cache.cached_folder("arm64", unpack, f"{ONNXRUNTIME}-{NUMPY}-1", 1200)
    tokenizer = AutoTokenizer.from_pretrained(packed.checkpoint_folder())
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True)["input_ids"]
    rows = []
    for level, name in LEVELS.items():
        folder = export.onnx_folder(level)
        print(f"{name} ...", flush=True)
        here = decode.generate(decode.open_session(folder), prompt, NEW)
        there = emulate(root, [decode.__file__, str(folder), json.dumps(prompt), str(NEW)])
        rows += [{"what": f"{name}: text", "value": tokenizer.decode(there["tokens"])},
                 {"what": f"{name}: the {NEW} tokens of this machine", "value": there["tokens"] == here}]
        blocks = translated(root, [decode.__file__, str(folder), json.dumps(prompt[:2]), "1"])
        for instruction, meaning in NEON.items():
            places = sum(block[instruction] for block in blocks)
            rows.append({"what": f"{name}: places of {instruction} ({meaning})", "value": places,
                         "activations": name, "instruction": instruction})
        richest = max(blocks, key=lambda block: sum(block[instruction] for instruction in NEON))
        rows.append({"what": f"{name}: the run of instructions with most of them", "value": ", ".join(
            f"{count} {instruction}" for instruction, count in richest.most_common())})
    rows.insert(0, {"what": "machine", "value": f"{CPU} of qemu, {there['machine']}, Python "
                                                f"{there['python']}, ONNX Runtime {there['onnxruntime']}"})
    for row in rows:
        print(f"{row['what']}: {row['value']}")
    records.save("bench_phone_arm64", {"title": TITLE, "rows": rows})


# What NEON does for this model: the instructions of its matrix products, and what each of them does.
NEON = {"sdot": "sixteen products of 8-bit integers, added up into four sums",
        "udot": "the same without signs",
        "smmla": "a 2 x 8 by 8 x 2 product of 8-bit integers",
        "fmla": "four products of FP32 numbers, each added to a sum"}
# Their encodings, (mask, value) of the 32 bits, with a vector and with one element of it (Arm Architecture
# Reference Manual for A-profile, C7.2): the disassembler in this qemu knows only some of them by name.
ENCODINGS = {"sdot": ((0xBFE0FC00, 0x0E809400), (0xBFC0F400, 0x0F80E000)),
             "udot": ((0xBFE0FC00, 0x2E809400), (0xBFC0F400, 0x2F80E000)),
             "smmla": ((0xFFE0FC00, 0x4E80A400),),
             "fmla": ((0xBFE0FC00, 0x0E20CC00), (0xBFC0F400, 0x0F801000))}


def unpack(folder: Path) -> None:
    """qemu, Debian's arm64 Python, and the wheels, unpacked side by side.

    Args:
        folder: an empty one.
    """
    with tempfile.TemporaryDirectory() as aside:
        aside = Path(aside)
        print("fetching qemu and Debian's arm64 Python ...")
        for package in download(aside / "host", None, ["qemu-user-static"]):
            run(["dpkg", "-x", str(package), str(folder / "host")])
        for package in download(aside / "arm64", "arm64", [f"python{PYTHON}", "libstdc++6"]):
            run(["dpkg", "-x", str(package), str(folder / "root")])
    for link in [path for path in (folder / "root").rglob("*") if path.is_symlink()]:
        settle(link, folder / "root")
    shutil.rmtree(folder / "root" / "usr" / "share", ignore_errors=True)
    keep = folder / "host" / "usr" / "bin" / "qemu-aarch64-static"
    shutil.copy(keep, folder / "qemu-aarch64-static")
    shutil.rmtree(folder / "host")
    print("fetching the aarch64 wheels ...")
    run([sys.executable, "-m", "pip", "install", "-q", "--no-input", "--disable-pip-version-check",
         "--platform", "manylinux_2_28_aarch64", "--platform", "manylinux_2_17_aarch64", "--python-version",
         PYTHON, "--only-binary", ":all:", "--target", str(folder / "site"), f"onnxruntime=={ONNXRUNTIME}",
         f"numpy=={NUMPY}"])


def settle(link: Path, root: Path) -> None:
    """Make a link relative to its root a file, or leave it out: the cache keeps plain files only."""
    target = Path(os.readlink(link))
    target = root / target.relative_to("/") if target.is_absolute() else link.parent / target
    target = target.resolve()
    link.unlink()
    if target.is_file():
        shutil.copy(target, link)


def download(folder: Path, architecture: str | None, names: list[str]) -> list[Path]:
    """Debian packages and all that they need, by apt, without touching the system's own state.

    Args:
        folder: for apt's state and the packages.
        architecture: None for this machine's, which needs the packages alone.
        names: of the packages.

    Returns:
        The files.
    """
    for place in ("lists/partial", "archives/partial"):
        (folder / place).mkdir(parents=True)
    (folder / "status").touch()
    options = ["-qq", f"-oDir::State::Lists={folder}/lists", f"-oDir::Cache={folder}",
               f"-oDir::State::status={folder}/status", "-oDebug::NoLocking=1", "-oAPT::Sandbox::User=root"]
    if architecture:
        options += [f"-oAPT::Architecture={architecture}", f"-oAPT::Architectures={architecture}"]
    run(["apt-get", *options, "update"])
    if architecture:
        run(["apt-get", *options, "-y", "--download-only", "--no-install-recommends", "install", *names])
        return sorted((folder / "archives").glob("*.deb"))
    run(["apt-get", *options, "download", *names], cwd=folder)
    return sorted(folder.glob("*.deb"))


def emulate(root: Path, arguments: list[str], *options: str) -> dict:
    """Run the program under the ARM64 Python.

    Args:
        root: from `unpack`.
        arguments: of the program.
        options: for qemu.

    Returns:
        What it printed as its last line, from JSON.
    """
    programs = root / "qemu-aarch64-static", root / "root" / "usr" / "bin" / f"python{PYTHON}"
    for program in programs:  # the cache keeps plain files
        program.chmod(0o755)
    qemu, python = map(str, programs)
    command = [qemu, "-cpu", CPU, *options, "-L", str(root / "root"), python, "-c", PROGRAM, *arguments]
    # PYTHONHOME: where its own library lies, seen from here.
    done = run(command, env={"PYTHONPATH": str(root / "site"), "PYTHONHOME": str(root / "root" / "usr"),
                             "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1",
                             "PYTHONDONTWRITEBYTECODE": "1"})
    return json.loads(done.splitlines()[-1])


def translated(root: Path, arguments: list[str]) -> list[Counter]:
    """The code of ONNX Runtime that ran: qemu lists what it translates, when it comes there first.

    Args:
        root: from `unpack`.
        arguments: of the program.

    Returns:
        For each run of instructions without a jump into it or out of its middle: instruction -> how often it
        stands there.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "translated"
        first, end = emulate(root, arguments, "-d", "in_asm", "-D", str(log))["code"]
        blocks, seen = [], set()
        with open(log, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("IN:"):
                    blocks.append(Counter())
                match = re.match(r"0x([0-9a-f]+):\s+([0-9a-f]{8})\s+(\S+)", line)
                if match and first <= int(match[1], 16) < end and match[1] not in seen:
                    seen.add(match[1])
                    blocks[-1][neon(int(match[2], 16)) or match[3]] += 1
    return [block for block in blocks if block]


def neon(word: int) -> str | None:
    """Which of `NEON` an instruction is.

    Args:
        word: its 32 bits.

    Returns:
        The name; None for all others.
    """
    return next((name for name, encodings in ENCODINGS.items()
                 if any(word & mask == value for mask, value in encodings)), None)


def run(command: list[str], **settings: object) -> str:
    """Run a program.

    Returns:
        Its standard output.

    Raises:
        CourseError: it failed; with its last lines.
    """
    done = subprocess.run(command, capture_output=True, text=True, **settings)
    if done.returncode:
        raise CourseError(f"{Path(command[0]).name} failed ({done.returncode}): {done.stderr.strip()[-800:]}")
    return done.stdout


if __name__ == "__main__":
    try:
        main()
    except CourseError as error:
        sys.exit(str(error))
