"""TensorRT, NVIDIA's compiler, on the graph that the engine onnxruntime exports."""

from pathlib import Path

from course_utils.engines.entry import Engine, Variant

ENGINE = Engine(
    Path(__file__).parent, "TensorRT through ONNX Runtime on our ONNX export, FP16; needs an NVIDIA GPU",
    place=80, needs=("onnxruntime",), gpu=True)
VARIANTS = {"TensorRT FP16": Variant(
    ENGINE.name, bits=16, activation_bits=16, loads="onnxruntime", part="fp32")}
