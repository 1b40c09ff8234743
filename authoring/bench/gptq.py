"""Our GPTQ beside GPTQModel and AutoGPTQ: same model, bits, group, calibration and held-out text, one run.

GPTQModel writes a checkpoint that `checkpoint.load` reads, so that its model and ours are measured by one
piece of code; AutoGPTQ runs in its own environment and measures itself, in the same way. CPU seconds are
given beside wall seconds: they hold on a machine that is not quiet.
"""

import gc
import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils import data, engines, measure, models
from course_utils.quantize import checkpoint, gptq, layerwise
from course_utils.quantize.affine import Scheme

TITLE = "GPTQ 4 bit, group 64, symmetric: ours beside GPTQModel and AutoGPTQ"
RATIO_OF = "cpu seconds"
SCHEME = Scheme(bits=4, group=64)
CALIBRATION_TOKENS, HELDOUT_TOKENS, WINDOW = 8192, 8192, 512
DAMPING = 0.05  # GPTQModel's default, for both
NEAREST, FP32 = "round to nearest", "FP32"


def bench() -> list[dict]:
    """GPTQ by GPTQModel and by our code, each with two settings, round to nearest, FP32 and AutoGPTQ.

    Returns:
        One row for each: perplexity, seconds, peak memory in MB. AutoGPTQ's is missing when it is not
        installed.
    """
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(os.cpu_count() or 1))
    _, tokenizer = models.load_lm()
    calibration = data.windows(data.wikipedia_tokens(tokenizer, "calibration", CALIBRATION_TOKENS), WINDOW)
    heldout = data.wikipedia_tokens(tokenizer, "heldout", HELDOUT_TOKENS)
    methods = {
        "GPTQModel, its defaults": lambda: _gptqmodel(calibration),
        "GPTQModel, act-order, static groups": lambda: _gptqmodel(calibration, static_groups=True),
        "ours, grouped order": lambda: _ours(calibration, order="grouped"),
        "ours, act-order, static groups": lambda: _ours(calibration, order="activation", static_groups=True),
        NEAREST: _nearest,
        FP32: lambda: _timed(lambda: models.load_lm()[0], lambda model: None),
    }
    rows, theirs = [], None
    for name, method in methods.items():
        model, wall, cpu, peak = method()
        scored = [measure.perplexity(model, piece, window=WINDOW) for piece in data.windows(heldout, WINDOW)]
        by_window = torch.tensor([piece.nll for piece in scored])
        theirs = by_window if theirs is None else theirs
        more = by_window - theirs  # paired: the same windows
        nll = by_window.mean().item()
        rows.append({
            "method": name, "perplexity": math.exp(nll), "nll": nll,
            "nll above the first row": more.mean().item(),
            "its standard error": more.std().item() / len(more) ** 0.5, "wall seconds": wall,
            "cpu seconds": cpu, "peak MB": peak,
            "calibration tokens": 0 if name in (NEAREST, FP32) else calibration.numel(),
            "tokens scored": sum(piece.tokens for piece in scored), "window": WINDOW,
            "threads": torch.get_num_threads(),
        })
        print(rows[-1], flush=True)
        del model
        gc.collect()
    return rows + _auto_gptq(calibration, heldout, rows[0])


def _auto_gptq(calibration: torch.Tensor, heldout: torch.Tensor, like: dict[str, Any]) -> list[dict]:
    """AutoGPTQ's row; none when its environment is not installed."""
    answer = engines.run("auto-gptq", {
        "task": "quantize", "model": str(models.embedded_lm()), "tokens": calibration.tolist(),
        "heldout": data.windows(heldout, WINDOW).tolist(), "bits": SCHEME.bits, "group_size": SCHEME.group,
        "sym": SCHEME.symmetric, "desc_act": False, "damp_percent": 0.01, "threads": torch.get_num_threads(),
    }, timeout=1800)  # fmt: skip
    if not answer:
        print(answer)
        return []
    found = answer.values
    like = {key: value for key, value in like.items() if "standard" not in key and "above" not in key}
    return [like | {
        "method": f"AutoGPTQ {found['versions']['auto_gptq']}, its defaults",
        "perplexity": found["perplexity"],
        "nll": math.log(found["perplexity"]), "wall seconds": found["quantize_seconds"],
        "cpu seconds": found["quantize_cpu_seconds"], "peak MB": found["peak_bytes"] / 1e6,
    }]


def _timed(
    load: Callable[[], nn.Module], work: Callable[[nn.Module], nn.Module | None]
) -> tuple[nn.Module, float, float, float]:
    """(model, wall seconds, CPU seconds of all threads, peak memory in MB) of the work, loading left out."""
    model = load()
    wall, cpu = time.perf_counter(), time.process_time()
    with measure.peak_memory() as peak:
        result = work(model)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return (model if result is None else result), wall, max(cpu, 1e-9), peak.peak / 1e6


def _ours(calibration: torch.Tensor, **settings: Any) -> tuple[nn.Module, float, float, float]:
    def work(model: nn.Module) -> None:
        gptq.quantize_model(model, calibration, SCHEME, damping=DAMPING, **settings)

    return _timed(lambda: models.load_lm()[0], work)


def _nearest() -> tuple[nn.Module, float, float, float]:
    return _timed(lambda: models.load_lm()[0], lambda model: layerwise.round_to_nearest(model, SCHEME))


def _gptqmodel(
    calibration: torch.Tensor, static_groups: bool = False
) -> tuple[nn.Module, float, float, float]:
    from gptqmodel import GPTQModel, QuantizeConfig

    examples = [{"input_ids": window.tolist(), "attention_mask": [1] * WINDOW} for window in calibration]

    def load(folder: Path | None = None) -> nn.Module:
        folder = str(folder or models.embedded_lm())
        # One for each model: loading writes into it.
        settings = QuantizeConfig(bits=SCHEME.bits, group_size=SCHEME.group, sym=SCHEME.symmetric,
                                  desc_act=static_groups, static_groups=static_groups,
                                  damp_percent=DAMPING)
        return GPTQModel.load(folder, settings, dtype=torch.float32, device="cpu")

    with tempfile.TemporaryDirectory() as folder:
        def work(model: nn.Module) -> None:
            model.quantize(examples, batch_size=4)

        # Its first run on a machine compiles an extension. That is done once, so it is not counted.
        _tiny_model(Path(folder) / "tiny")
        work(load(Path(folder) / "tiny"))

        model, wall, cpu, peak = _timed(load, work)
        model.save(str(Path(folder) / "checkpoint"))
        del model
        gc.collect()
        return checkpoint.load(Path(folder) / "checkpoint")[0], wall, cpu, peak


def _tiny_model(folder: Path) -> None:
    """Save a random Llama with the tokenizer of the real model."""
    _, tokenizer = models.load_lm()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, head_dim=32)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
