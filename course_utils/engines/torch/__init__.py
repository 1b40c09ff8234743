"""PyTorch itself, in the course's own Python."""

from pathlib import Path

from course_utils.engines.entry import Engine, Variant

ENGINE = Engine(
    Path(__file__).parent, "PyTorch through transformers: eager, compiled, INT8 weights of two libraries",
    place=10, modules=("torch", "transformers"))
INT8 = {"bits": 8, "group": "row"}
VARIANTS = {
    "torch FP32": Variant(ENGINE.name, {"variant": "fp32"}),
    "torch BF16": Variant(ENGINE.name, {"variant": "bf16"}, bits=16, activation_bits=16),
    "torch.compile FP32": Variant(ENGINE.name, {"variant": "fp32", "compile": True}),
    "torchao INT8": Variant(ENGINE.name, {"variant": "torchao-int8"}, **INT8),
    "torchao INT8, compiled": Variant(ENGINE.name, {"variant": "torchao-int8", "compile": True}, **INT8),
    "bitsandbytes INT8": Variant(ENGINE.name, {"variant": "bitsandbytes-int8"}, activation_bits=8, **INT8),
}
