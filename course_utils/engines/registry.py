"""The engines of this course, and the variants of them that the lesson on engines compares."""

from dataclasses import dataclass, field
from pathlib import Path

from course_utils.engines.environment import Engine

_ROOT = Path(__file__).resolve().parents[2]
_WORKERS = Path(__file__).resolve().parent / "workers"


def _engine(name: str, purpose: str, **more) -> Engine:
    """An engine whose files have the usual names."""
    requirements = _ROOT / "environments" / f"{name}.txt"
    return Engine(name, purpose, requirements, _WORKERS / f"{name.replace('-', '_')}_worker.py", **more)


ENGINES = {
    engine.name: engine
    for engine in [
        _engine(
            "auto-gptq",
            "AutoGPTQ 0.7.1, the GPTQ library that most tutorials name; its upstream has stopped",
            # auto-gptq has a wheel for some Pythons only. Its source build imports torch, and its CUDA
            # kernels are of no use here.
            build_first=("setuptools", "wheel", "numpy", "torch"),
            variables={"BUILD_CUDA_EXT": "0"},
            megabytes=1500,
        ),
        Engine(
            "torch", "PyTorch through transformers: eager, compiled, INT8 weights of two libraries",
            requirements=None, worker=_WORKERS / "torch_worker.py", modules=("torch", "transformers"),
        ),
        _engine("llamacpp", "llama.cpp in the wheel xllamacpp; reads the packaged GGUF", borrows=True,
                megabytes=127),
        _engine("onnxruntime", "ONNX Runtime on our own export with a KV cache: FP32, INT8, INT4",
                borrows=True, megabytes=900, steps=("fp32", "int8", "int4"), files=5),
        _engine("onnxruntime-genai", "ONNX Runtime GenAI: its own model builder, INT4", borrows=True,
                megabytes=100, steps=("int4",)),
        _engine("openvino", "OpenVINO on our ONNX export, weights INT8 and INT4 by NNCF", borrows=True,
                megabytes=300, needs=("onnxruntime",), steps=("int8", "int4"), files=2),
        _engine("tvm", "TVM: compiled for this processor by LLVM, with loops of our own", borrows=True,
                megabytes=344, steps=("fp32",), files=2),
        _engine("tensorrt", "TensorRT through ONNX Runtime on our ONNX export, FP16; needs an NVIDIA GPU",
                needs=("onnxruntime",), gpu=True),
        _engine("vllm", "vLLM, a server for many requests; needs an NVIDIA GPU", gpu=True),
        _engine("executorch", "ExecuTorch, PyTorch's runtime for phones, with XNNPACK: FP32, INT4",
                borrows=True, megabytes=257, steps=("fp32", "int4")),
    ]
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One row of the table: an engine and what it is told.

    bits: of a weight of a linear layer, as stored. loads: "model" (the model's folder), "gguf" (the packaged
    file's folder) or the name of the engine whose prepared files it loads. part: sub-folder of those files.
    """

    engine: str
    options: dict = field(default_factory=dict)
    bits: int = 32
    loads: str = "model"
    part: str = ""


VARIANTS = {
    "torch FP32": Variant("torch", {"variant": "fp32"}),
    "torch BF16": Variant("torch", {"variant": "bf16"}, bits=16),
    "torch.compile FP32": Variant("torch", {"variant": "compile"}),
    "torchao INT8": Variant("torch", {"variant": "torchao-int8"}, bits=8),
    "bitsandbytes INT8": Variant("torch", {"variant": "bitsandbytes-int8"}, bits=8),
    "ONNX Runtime FP32": Variant("onnxruntime", loads="onnxruntime", part="fp32"),
    "ONNX Runtime INT8": Variant("onnxruntime", bits=8, loads="onnxruntime", part="int8"),
    "ONNX Runtime INT4": Variant("onnxruntime", bits=4, loads="onnxruntime", part="int4"),
    "ONNX Runtime GenAI INT4": Variant("onnxruntime-genai", bits=4, loads="onnxruntime-genai", part="int4"),
    "OpenVINO INT8": Variant("openvino", bits=8, loads="openvino", part="int8"),
    "OpenVINO INT4": Variant("openvino", bits=4, loads="openvino", part="int4"),
    "TVM FP32": Variant("tvm", loads="tvm", part="fp32"),
    "ExecuTorch FP32": Variant("executorch", loads="executorch", part="fp32"),
    "ExecuTorch INT4": Variant("executorch", bits=4, loads="executorch", part="int4"),
    "llama.cpp Q4_1": Variant("llamacpp", bits=4, loads="gguf"),
    "TensorRT FP16": Variant("tensorrt", bits=16, loads="onnxruntime", part="fp32"),
    "vLLM BF16": Variant("vllm", bits=16),
}


def find(name: str) -> Engine:
    """The engine of that name. Raises ValueError when there is none."""
    if name not in ENGINES:
        raise ValueError(f"no engine {name!r}; known: {', '.join(ENGINES)}")
    return ENGINES[name]
