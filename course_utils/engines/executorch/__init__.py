"""ExecuTorch, PyTorch's runtime for phones."""

from pathlib import Path

from course_utils.engines.entry import Engine, Variant

ENGINE = Engine(
    Path(__file__).parent, "ExecuTorch, PyTorch's runtime for phones, with XNNPACK: FP32, INT4", place=60,
    borrows=True, megabytes=257, steps=("fp32", "int4"), files=2)
VARIANTS = {
    "ExecuTorch FP32": Variant(ENGINE.name, loads=ENGINE.name, part="fp32"),
    "ExecuTorch INT4": Variant(
        ENGINE.name, bits=4, activation_bits=8, group="32", loads=ENGINE.name, part="int4"),
}
