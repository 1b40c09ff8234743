"""OpenVINO, on the graph that the engine onnxruntime exports."""

from pathlib import Path

from course_utils.engines.entry import Engine, Variant

ENGINE = Engine(
    Path(__file__).parent, "OpenVINO on our ONNX export, weights INT8 and INT4 by NNCF", place=40,
    borrows=True, megabytes=300, needs=("onnxruntime",), steps=("int8", "int4"), files=2)
VARIANTS = {
    "OpenVINO INT8": Variant(
        ENGINE.name, bits=8, activation_bits=8, group="row", loads=ENGINE.name, part="int8"),
    "OpenVINO INT4": Variant(
        ENGINE.name, bits=4, activation_bits=8, group="64", loads=ENGINE.name, part="int4"),
}
