"""Step 7: the embedded model in the engines that this machine has, and a line for each that it lacks."""

import importlib.util

import torch

from authoring.gpu.plan import Settings
from authoring.gpu.results import Results, attempt
from course_utils import data, engines, measure, models
from course_utils.engines import environment
from course_utils.engines.table import installed

TITLE = "Engines on this machine"
TORCH = {"torch FP32": torch.float32, "torch BF16": torch.bfloat16, "torch FP16": torch.float16}


def measure_into(settings: Settings, results: Results) -> None:
    """Add rows "engine", "batch": prefill and decode in tokens/s, or why there are none.

    Args:
        settings: of the run.
        results: gets the rows.
    """
    prompt, new = (16, 4) if settings.small else (256, 32)
    results.note(**{"prompt tokens": prompt, "new tokens": new})
    for name, dtype in TORCH.items():

        def with_torch(name: str = name, dtype: torch.dtype = dtype) -> None:
            model, tokenizer = models.load_lm(dtype=dtype, device=settings.device)
            found = measure.generation_speed(model, tokenizer, prompt, new)
            results.add(engine=name, batch=1, **{"prefill (tokens/s)": found.prefill_rate,
                                                 "decode (tokens/s)": found.decode_rate})

        attempt(results, {"engine": name}, with_torch)
    attempt(results, {"engine": "ONNX Runtime, CUDA"}, lambda: onnxruntime(results))
    for name in ("vllm", "tensorrt"):
        if importlib.util.find_spec(name) and not environment.is_installed(engines.find(name)):
            results.add(engine=name, note="the package is in this Python, but not in an environment of the "
                        f"course: course engines install {name}")
    _, tokenizer = models.load_lm()
    text = data.wikipedia_tokens(tokenizer, "heldout", 1024).tolist()
    names = [name for name, variant in engines.VARIANTS.items() if variant.engine != "torch"]
    here = installed(names)  # the others are told at once: each call runs the reference, too
    for name in names:
        if name not in here:
            results.add(engine=name, note=missing(engines.find(engines.VARIANTS[name].engine)))
    for name in here:
        for batch in (1, 16):

            def with_engine(name: str = name, batch: int = batch) -> None:
                request = (text[:prompt], new, text[:128])
                (row,) = engines.measure_all([name], *request, timeout=60, batch=batch)
                results.add(**{key: value for key, value in row.items() if value not in (None, "")})

            attempt(results, {"engine": name, "batch": batch}, with_engine)


def missing(engine: engines.Engine) -> str:
    """Why an engine has no figures here.

    Args:
        engine: one that is not installed.

    Returns:
        The reason, and how to install it where that can be done.
    """
    if engine.gpu and not environment.has_gpu():
        return "there is no NVIDIA GPU"
    return f"not installed: {engine.how_to_install}"


def onnxruntime(results: Results) -> None:
    """Add a row: which providers the onnxruntime in this Python has.

    Args:
        results: gets the row.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        results.add(engine="ONNX Runtime, CUDA", note="onnxruntime is not installed")
        return
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" in providers:
        note = "has the provider; its figures are in the rows of the engine's environment, if there is one"
    else:
        note = f"this build has only {', '.join(providers)}"
    results.add(engine="ONNX Runtime, CUDA", version=onnxruntime.__version__, note=note)
