"""vLLM on the CPU, a server for many requests."""

from pathlib import Path

from course_utils.engines.entry import Engine, Variant

# What is removed belongs to another torch than the one that comes along, and breaks the import of vllm.
ENGINE = Engine(
    Path(__file__).parent, "vLLM on the CPU, a server for many requests", place=85, megabytes=3500,
    without=("torchvision", "torchaudio", "torchcodec"),
    variables={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"})
VARIANTS = {"vLLM FP32": Variant(ENGINE.name, {"dtype": "float32"}, bits=32)}
