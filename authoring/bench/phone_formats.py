"""Which runtime for phones reads which file: the ONNX file given to each, then a file of its own kind."""

import contextlib
import os
import tempfile
from pathlib import Path

from course_utils import engines, models
from course_utils.engines import process
from course_utils.errors import CourseError
from course_utils.phone import decode, export, packed

TITLE = "The exported model and the runtimes of phones"
QUESTION, NEW, TOKENS = "What is the capital of France?", 16, 16


def bench() -> list[dict]:
    """Give the files to the runtimes.

    Returns:
        A row for each runtime and file: what came of it, and the file's size.
    """
    folder = export.onnx_folder()
    size = sum(path.stat().st_size for path in folder.glob("model.onnx*")) / 1e6
    file = folder / "model.onnx"
    found = {"ONNX Runtime": _onnx(folder), "PyTorch Mobile": _pytorch_mobile(file),
             "ExecuTorch": _executorch(file)}
    rows = [{"runtime": name, "file": "ONNX", "result": result, "MB": size}
            for name, result in found.items()]
    return rows + _litert(file, size)


def _onnx(folder: Path) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(packed.checkpoint_folder())
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True)["input_ids"]
    tokens = decode.generate(decode.open_session(folder), prompt, NEW, tokenizer.eos_token_id)
    return f"writes {tokenizer.decode(tokens, skip_special_tokens=True).strip()!r}"


def _pytorch_mobile(file: Path) -> str:
    """What is left of PyTorch Mobile in PyTorch: its loader."""
    try:
        from torch.jit.mobile import _load_for_lite_interpreter
    except ImportError as error:
        return f"is no part of this PyTorch: {error}"
    try:
        _load_for_lite_interpreter(str(file))
    except (RuntimeError, ValueError) as error:
        return f"does not read it: {_line(error)}"
    return "reads it"


def _executorch(file: Path) -> str:
    """The file under the name that the runtime is given."""
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(file, Path(folder) / "model.pte")
        answer = engines.run("executorch", {
            "task": "measure", "folder": folder, "prompt": [1, 2, 3], "new_tokens": 1, "score": [1]}, 120)
    return "reads it" if answer else f"does not read it: {_line(answer.details)}"


def _litert(onnx: Path, size: float) -> list[dict]:
    with contextlib.suppress(CourseError):
        engines.install(engines.find("litert"))
    rows = []
    answer = engines.run("litert", {"task": "load", "file": str(onnx)}, 120)
    says = "reads it" if answer and answer.values["loads"] else f"does not read it: {_said(answer)}"
    rows.append({"runtime": "LiteRT", "file": "ONNX", "result": says, "MB": size})
    with tempfile.TemporaryDirectory() as folder:
        answer = process.run("litert", {"task": "block", "model": str(models.embedded_lm()), "tokens": TOKENS,
                                        "out": str(Path(folder) / "block.tflite")}, 600)
    if answer:
        says = (f"runs it; the largest difference to PyTorch is {answer.values['difference']:.1e} of the "
                "largest output")
    rows.append({"runtime": "LiteRT", "file": ".tflite of one block, FP32",
                 "result": says if answer else f"not measured: {_line(answer.details)}",
                 "MB": answer.values["bytes"] / 1e6 if answer else None})
    return rows


def _said(answer: process.Answer | process.EngineUnavailable) -> str:
    return answer.values["says"] if answer else _line(answer.details)


def _line(error: object) -> str:
    return str(error).strip().splitlines()[0].split(". ")[0][:160]
