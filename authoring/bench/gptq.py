"""Our GPTQ beside GPTQModel: same model, bits, group, calibration windows and held-out text, one run.

Both read the same saved model and write a checkpoint that `checkpoint.load` reads, so that both are measured
by the same code. CPU seconds are given beside wall seconds: they hold on a machine that is not quiet.
"""

import gc
import os
import tempfile
import time
from pathlib import Path

import torch

from course_utils import data, measure, models
from course_utils.quantize import checkpoint, gptq, layerwise
from course_utils.quantize.affine import Scheme

TITLE = "GPTQ 4 bit, group 64, symmetric: ours beside GPTQModel"
RATIO_OF = "cpu seconds"
SCHEME = Scheme(bits=4, group=64)
CALIBRATION_TOKENS, HELDOUT_TOKENS, WINDOW = 8192, 8192, 512
DAMPING = 0.05  # GPTQModel's default, for both


def bench() -> list[dict]:
    """One row for GPTQModel, ours with the same settings, ours with more damping, and round to nearest."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(os.cpu_count() or 1))
    _, tokenizer = models.load_lm()
    calibration = data.windows(data.wikipedia_tokens(tokenizer, "calibration", CALIBRATION_TOKENS), WINDOW)
    heldout = data.wikipedia_tokens(tokenizer, "heldout", HELDOUT_TOKENS)
    methods = {
        "GPTQModel, its defaults": lambda: _gptqmodel(calibration),
        "ours, same order and damping": lambda: _ours(calibration, DAMPING),
        "ours, damping 0.2": lambda: _ours(calibration, 0.2),
        "round to nearest": _nearest,
        "FP32": lambda: _timed(lambda: models.load_lm()[0], lambda model: None),
    }
    rows = []
    for name, method in methods.items():
        model, wall, cpu, peak = method()
        found = measure.perplexity(model, heldout, window=WINDOW)
        rows.append({
            "method": name, "perplexity": found.value, "nll": found.nll, "wall seconds": wall,
            "cpu seconds": cpu, "peak MB": peak, "calibration tokens": calibration.numel(),
            "tokens scored": found.tokens, "window": WINDOW, "threads": torch.get_num_threads(),
        })
        print(rows[-1], flush=True)
        del model
        gc.collect()
    return rows


def _timed(load, work):
    """(model, wall seconds, CPU seconds of all threads, peak memory in MB) of the work, loading left out."""
    model = load()
    wall, cpu = time.perf_counter(), time.process_time()
    with measure.peak_memory() as peak:
        result = work(model)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return (model if result is None else result), wall, max(cpu, 1e-9), peak.peak / 1e6


def _ours(calibration, damping):
    def work(model):
        gptq.quantize_model(model, calibration, SCHEME, order="grouped", damping=damping)

    return _timed(lambda: models.load_lm()[0], work)


def _nearest():
    return _timed(lambda: models.load_lm()[0], lambda model: layerwise.round_to_nearest(model, SCHEME))


def _gptqmodel(calibration):
    from gptqmodel import GPTQModel, QuantizeConfig

    settings = QuantizeConfig(bits=SCHEME.bits, group_size=SCHEME.group, sym=SCHEME.symmetric, desc_act=False,
                              damp_percent=DAMPING)
    examples = [{"input_ids": window.tolist(), "attention_mask": [1] * WINDOW} for window in calibration]

    def load():
        return GPTQModel.load(str(models.embedded_lm()), settings, dtype=torch.float32, device="cpu")

    with tempfile.TemporaryDirectory() as folder:
        def work(model):
            model.quantize(examples, batch_size=4)

        model, wall, cpu, peak = _timed(load, work)
        model.save(str(Path(folder) / "checkpoint"))
        del model
        gc.collect()
        return checkpoint.load(Path(folder) / "checkpoint")[0], wall, cpu, peak
