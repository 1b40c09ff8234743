"""ONNX Runtime GenAI, a generation library on top of ONNX Runtime."""

from pathlib import Path

from course_utils.engines.entry import Engine, Variant

ENGINE = Engine(
    Path(__file__).parent, "ONNX Runtime GenAI: its own model builder, INT4", place=30, borrows=True,
    megabytes=100, steps=("int4",))
VARIANTS = {"ONNX Runtime GenAI INT4": Variant(
    ENGINE.name, bits=4, activation_bits=8, group="32", loads=ENGINE.name, part="int4")}
