"""PyTorch itself, in the course's own Python."""

from pathlib import Path

from course_utils.engines.entry import Engine, Variant

ENGINE = Engine(
    Path(__file__).parent, "PyTorch through transformers: eager, compiled, INT8 weights of two libraries",
    place=10, modules=("torch", "transformers"))
VARIANTS = {
    "torch FP32": Variant(ENGINE.name, {"variant": "fp32"}),
    "torch BF16": Variant(ENGINE.name, {"variant": "bf16"}, bits=16),
    "torch.compile FP32": Variant(ENGINE.name, {"variant": "compile"}),
    "torchao INT8": Variant(ENGINE.name, {"variant": "torchao-int8"}, bits=8),
    "bitsandbytes INT8": Variant(ENGINE.name, {"variant": "bitsandbytes-int8"}, bits=8),
}
