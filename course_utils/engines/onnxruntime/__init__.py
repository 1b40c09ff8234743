"""ONNX Runtime. Its FP32 graph, made by onnx_export.py, is what OpenVINO and TensorRT start from, too."""

from pathlib import Path

from course_utils.engines.entry import Engine, Variant

ENGINE = Engine(
    Path(__file__).parent, "ONNX Runtime on our own export with a KV cache: FP32, INT8, INT4", place=20,
    borrows=True, megabytes=900, steps=("fp32", "int8", "int4"), files=5)
VARIANTS = {
    "ONNX Runtime FP32": Variant(ENGINE.name, loads=ENGINE.name, part="fp32"),
    "ONNX Runtime INT8": Variant(ENGINE.name, bits=8, loads=ENGINE.name, part="int8"),
    "ONNX Runtime INT4": Variant(ENGINE.name, bits=4, loads=ENGINE.name, part="int4"),
}
