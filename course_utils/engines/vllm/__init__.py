"""vLLM, a server for many requests."""

from pathlib import Path

from course_utils.engines.entry import Engine, Variant

ENGINE = Engine(
    Path(__file__).parent, "vLLM, a server for many requests; needs an NVIDIA GPU", place=90, gpu=True)
VARIANTS = {"vLLM BF16": Variant(ENGINE.name, bits=16)}
