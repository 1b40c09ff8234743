"""The engines of this course."""

from pathlib import Path

from course_utils.engines.environment import Engine

_ROOT = Path(__file__).resolve().parents[2]
_WORKERS = Path(__file__).resolve().parent / "workers"

ENGINES = {
    engine.name: engine
    for engine in [
        Engine(
            name="auto-gptq",
            purpose="AutoGPTQ 0.7.1, the GPTQ library that most tutorials name; its upstream has stopped",
            requirements=_ROOT / "environments" / "auto-gptq.txt",
            worker=_WORKERS / "auto_gptq_worker.py",
            # auto-gptq has a wheel for some Pythons only. Its source build imports torch, and its CUDA
            # kernels are of no use here.
            build_first=("setuptools", "wheel", "numpy", "torch"),
            variables={"BUILD_CUDA_EXT": "0"},
            megabytes=1500,
        ),
    ]
}


def find(name: str) -> Engine:
    """The engine of that name. Raises ValueError when there is none."""
    if name not in ENGINES:
        raise ValueError(f"no engine {name!r}; known: {', '.join(ENGINES)}")
    return ENGINES[name]
