"""Apache TVM, a compiler for models."""

from pathlib import Path

from course_utils.engines.entry import Engine, Variant

ENGINE = Engine(
    Path(__file__).parent, "TVM: compiled for this processor by LLVM, with loops of our own", place=50,
    borrows=True, megabytes=344, steps=("fp32",), files=2)
VARIANTS = {"TVM FP32": Variant(ENGINE.name, loads=ENGINE.name, part="fp32")}
