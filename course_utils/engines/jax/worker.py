"""A distillation step in JAX, in a process of its own.

Request {"task": "distill", "weights": file, "out": file, "config": {...}, "temperature": 2.0, "lr": 0.1,
         "steps": 5}. The weights are a safetensors file of FP32 tensors: "ids" [tokens], "teacher" [tokens,
    vocabulary] (its logits), "embedding", "norm", and "0.q", "0.k", ... for each block of the student.
    Writes the gradients of the first step to `out`, under the blocks' names, and answers losses (one for each
    step and one after the last), compile_seconds, jit_seconds of a step, devices, peak_bytes, versions.
Request {"task": "versions"}: the versions that matter.
"""

import importlib.metadata
import sys
import time
from collections.abc import Callable
from functools import partial

from protocol import answer, peak


def versions() -> dict[str, str]:
    """Versions of the packages that matter, and of Python."""
    names = ("jax", "jaxlib", "numpy")
    return {name: importlib.metadata.version(name) for name in names} | {"python": sys.version.split()[0]}


def distill(request: dict) -> dict:
    """Take the steps; request and answer as at the top of this file."""
    import jax
    import numpy as np
    from jax_llama import distillation_step
    from safetensors.numpy import load_file, save_file

    loaded = load_file(request["weights"])
    tensors = {name: jax.numpy.asarray(loaded.pop(name)) for name in list(loaded)}
    ids, teacher = tensors.pop("ids"), tensors.pop("teacher")
    rest = {name: tensors.pop(name) for name in ("embedding", "norm")}
    count = 1 + max(int(name.partition(".")[0]) for name in tensors)
    blocks = [{name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{i}.")}
              for i in range(count)]
    step = partial(distillation_step, config=request["config"], temperature=request["temperature"])
    compiled = jax.jit(step)

    def seconds(function: Callable) -> float:
        start = time.perf_counter()
        jax.block_until_ready(function(blocks, rest, ids, teacher, request["lr"]))
        return time.perf_counter() - start

    first = seconds(compiled)
    jitted = min(seconds(compiled) for _ in range(3))
    losses, now = [], blocks
    for number in range(request["steps"]):
        now, loss, gradients = compiled(now, rest, ids, teacher, request["lr"])
        losses.append(float(loss))
        if number == 0:
            save_file({f"{i}.{name}": np.asarray(value) for i, block in enumerate(gradients)
                       for name, value in block.items()}, request["out"])
    losses.append(float(compiled(now, rest, ids, teacher, request["lr"])[1]))
    return {"losses": losses, "compile_seconds": first - jitted, "jit_seconds": jitted,
            "devices": [device.platform for device in jax.devices()],
            "peak_bytes": peak(), "versions": versions()}


def task(request: dict) -> dict:
    """Answer a request."""
    if request.get("task") == "versions":
        return {"versions": versions()}
    if request.get("task") == "distill":
        return distill(request)
    raise ValueError(f"unknown task {request.get('task')!r}: known are distill, versions")


if __name__ == "__main__":
    answer(task)
