"""Step 1: the machine, its speeds, and which packages it has."""

import importlib.util
from importlib import metadata

import torch

from authoring.gpu.plan import Settings
from authoring.gpu.results import Results, attempt, nvidia_smi
from course_utils import measure

TITLE = "The machine: memory bandwidth, matrix products, packages"
PACKAGES = ("torch", "transformers", "numpy", "bitsandbytes", "accelerate", "onnxruntime", "papermill",
            "nbclient", "nbval", "ipykernel", "gguf", "mwparserfromhell", "triton", "torchao", "gptqmodel",
            "optimum", "mergekit", "torch_pruning", "vllm", "tensorrt", "jupyterlab", "jupytext", "nbgrader")


def measure_into(settings: Settings, results: Results) -> None:
    """Add rows "what", "value", "unit"; the card and the packages stand beside them.

    Args:
        settings: of the run.
        results: gets the rows.

    Raises:
        RuntimeError: torch finds no GPU, and this is no rehearsal.
    """
    results.note(card=str(measure.machine_card()).splitlines(), packages=packages())
    if settings.device != "cpu" and not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} finds no CUDA GPU")
    names = "name,memory.total,driver_version,compute_cap,clocks.max.sm,clocks.max.mem,power.limit"
    results.note(nvidia_smi=dict(zip(names.split(","), nvidia_smi(names), strict=False)))
    device = settings.device

    def bandwidth() -> None:
        found = measure.bandwidth(device, nbytes=2**26 if settings.small else None)
        results.add(what="memory, reading", value=found.read / 1e9, unit="GB/s")
        results.add(what="memory, copying", value=found.copy / 1e9, unit="GB/s")

    attempt(results, {"what": "memory, reading"}, bandwidth)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        what = f"matrix product, {str(dtype).removeprefix('torch.')}"

        def product(dtype: torch.dtype = dtype, what: str = what) -> None:
            found = measure.matmul_speed(device, dtype, n=256 if settings.small else None)
            results.add(what=what, value=found.flops / 1e12, unit="TFLOP/s", n=found.n)

        attempt(results, {"what": what}, product)


def packages() -> dict[str, str]:
    """Which packages that a lesson or a step may want are here.

    Returns:
        Name -> version, "there" where a module has none, or "missing".
    """
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "there" if importlib.util.find_spec(name) else "missing"
    return found
