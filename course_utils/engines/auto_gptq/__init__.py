"""AutoGPTQ, which quantizes. It has no row in the table: nothing here runs what it writes."""

from pathlib import Path

from course_utils.engines.entry import Engine

ENGINE = Engine(
    Path(__file__).parent,
    "AutoGPTQ 0.7.1, the GPTQ library that most tutorials name; its upstream has stopped", place=100,
    # auto-gptq has a wheel for some Pythons only. Its source build imports torch, and its CUDA kernels are of
    # no use here.
    build_first=("setuptools", "wheel", "numpy", "torch"), variables={"BUILD_CUDA_EXT": "0"}, megabytes=1500)
