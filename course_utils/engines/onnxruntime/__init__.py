"""ONNX Runtime. Its FP32 graph, made by onnx_export.py, is what OpenVINO and TensorRT start from, too."""

from pathlib import Path

from course_utils.engines.entry import Engine, Variant

ENGINE = Engine(
    Path(__file__).parent, "ONNX Runtime on our own export with a KV cache: FP32, INT8, INT4", place=20,
    borrows=True, megabytes=900, steps=("fp32", "int8", "int8-full", "int4", "int4-64"), files=7)
QUANTIZED = {"activation_bits": 8, "loads": ENGINE.name}
VARIANTS = {
    "ONNX Runtime FP32": Variant(ENGINE.name, loads=ENGINE.name, part="fp32"),
    "ONNX Runtime INT8": Variant(ENGINE.name, bits=8, group="row", part="int8", **QUANTIZED),
    "ONNX Runtime INT8, full range": Variant(
        ENGINE.name, {"needs": ["avx512_vnni", "avx_vnni"]}, bits=8, group="row", part="int8-full",
        **QUANTIZED),
    "ONNX Runtime INT4": Variant(ENGINE.name, bits=4, group="32", part="int4", **QUANTIZED),
    "ONNX Runtime INT4, groups of 64": Variant(ENGINE.name, bits=4, group="64", part="int4-64", **QUANTIZED),
}
