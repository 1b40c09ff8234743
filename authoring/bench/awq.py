"""Our AWQ beside GPTQModel's: same model, bits, group, calibration windows and held-out text, one run.

GPTQModel's result is read back from the checkpoint it writes, through our reader of the format, so that both
are measured by the same code in FP32. Both searches see all calibration tokens. They are few, because
GPTQModel's clip search multiplies element by element: on a CPU that is slow, and grows with the tokens. CPU
seconds are given beside wall seconds: they hold on a machine that is not quiet.

GPTQModel's factor is s = a^r / w^(1 - r), with w the size of the weights of a channel; ours is a^r. One row
of ours is with that term, another without clipping: each is compared with GPTQModel window by window.
"""

import gc
import inspect
import os
import tempfile
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from course_utils import data, measure, models
from course_utils.quantize import affine, awq, awq_format, layerwise
from course_utils.quantize.affine import Scheme

TITLE = "AWQ 4 bit, group 64, zero points: ours beside GPTQModel"
RATIO_OF = "cpu seconds"
SCHEME = Scheme(bits=4, group=64, symmetric=False)
CALIBRATION_TOKENS, CALIBRATION_WINDOW = 128, 64
HELDOUT_TOKENS, WINDOW = 16_384, 512


def bench() -> list[dict]:
    """AWQ by GPTQModel and by our code, and the two baselines.

    Returns:
        One row for each: perplexity, its difference to GPTQModel's, seconds, peak memory in MB.
    """
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(os.cpu_count() or 1))
    _, tokenizer = models.load_lm()
    text = data.wikipedia_tokens(tokenizer, "calibration", CALIBRATION_TOKENS)
    text = data.windows(text, CALIBRATION_WINDOW)
    heldout = data.wikipedia_tokens(tokenizer, "heldout", HELDOUT_TOKENS)
    methods = {
        "GPTQModel, its defaults": lambda: _gptqmodel(text),
        "ours": lambda: _ours(text),
        "ours, with the size of the weights": lambda: _ours(text, weight_size=True),
        "ours, without clipping": lambda: _ours(text, use_clip=False),
        "round to nearest": lambda: _timed(lambda model: layerwise.round_to_nearest(model, SCHEME)),
        "FP32": lambda: _timed(lambda model: None),
    }
    rows, first = [], None
    for name, method in methods.items():
        model, wall, cpu, peak = method()
        found = measure.perplexity(model, heldout, window=WINDOW)
        first = first or found
        compared = measure.compare(found, first)
        rows.append({
            "method": name, "perplexity": found.value, "nll": found.nll, "wall seconds": wall,
            "cpu seconds": cpu, "peak MB": peak, "calibration tokens": text.numel(),
            "tokens scored": found.tokens, "window": WINDOW, "threads": torch.get_num_threads(),
            "nats above the first row": compared.difference, "its standard error": compared.error,
            "result": asdict(found),
        })
        print(rows[-1], flush=True)
        del model
        gc.collect()
    return rows


def _timed(
    work: Callable[[nn.Module], object], load: Callable[[], nn.Module] = lambda: models.load_lm()[0]
) -> tuple[nn.Module, float, float, float]:
    """(model, wall seconds, CPU seconds of all threads, peak memory in MB) of the work, loading left out."""
    model = load()
    wall, cpu = time.perf_counter(), time.process_time()
    with measure.peak_memory() as peak:
        work(model)
    return model, time.perf_counter() - wall, max(time.process_time() - cpu, 1e-9), peak.peak / 1e6


def _ours(
    text: torch.Tensor, weight_size: bool = False, use_clip: bool = True
) -> tuple[nn.Module, float, float, float]:
    def work(model: nn.Module) -> None:
        if weight_size:
            divide_by_weight_size(model, SCHEME)
        awq.awq(model, text, SCHEME, use_clip=use_clip, search_tokens=text.numel(), progress=False)

    return _timed(work)


@torch.no_grad()
def divide_by_weight_size(model: nn.Module, scheme: Scheme) -> None:
    """Fold 1 / w into every place that AWQ scales, in place; the model computes what it did.

    w is a channel's mean of |weight| / (largest |weight| of its group). The layers then read a * w, so AWQ's
    own factor (a w)^r and this one together are a^r / w^(1 - r): GPTQModel's. Plain rounding is then not
    among the trials, as it is not among GPTQModel's.

    Args:
        model: a causal language model with Llama's blocks.
        scheme: whose groups count.
    """
    for _, block in layerwise.find_blocks(model):
        for group in awq.scaling_groups(block):
            layers = list(group.layers.values())
            weights = torch.cat([layer.weight for layer in layers])
            values = affine.to_groups(weights, scheme).abs()
            share = values / (values.amax(dim=-1, keepdim=True) + 1e-6)
            size = share.reshape(weights.shape).mean(dim=0)
            awq.fold_scale(group.previous, layers, 1 / (size + 1e-4))


def _gptqmodel(text: torch.Tensor) -> tuple[nn.Module, float, float, float]:
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
    from gptqmodel.quantization.config import FORMAT, AWQConfig

    # Its CPU layer computes in 16 bits and so refuses a model in FP32. We only want the words it packs: like
    # this its search runs in FP32, as ours does.
    AwqTorchLinear.SUPPORTS_DTYPES = list({*AwqTorchLinear.SUPPORTS_DTYPES, torch.float32})
    _mend_scale_search()
    settings = AWQConfig(bits=SCHEME.bits, group_size=SCHEME.group, sym=SCHEME.symmetric, format=FORMAT.GEMM)
    examples = [{"input_ids": window.tolist(), "attention_mask": [1] * len(window)} for window in text]
    quantized, wall, cpu, peak = _timed(
        # Without a named kernel GPTQModel 7.6 picks a CUDA one for its check and refuses the CPU.
        lambda model: model.quantize(examples, batch_size=4, backend=BACKEND.AWQ_TORCH),
        lambda: GPTQModel.load(str(models.embedded_lm()), settings, dtype=torch.float32, device="cpu"))
    with tempfile.TemporaryDirectory() as folder:
        quantized.save(str(Path(folder) / "checkpoint"))
        del quantized
        gc.collect()
        return _read(Path(folder) / "checkpoint"), wall, cpu, peak


def _mend_scale_search() -> None:
    """Let GPTQModel 7.6's search for scales keep a real copy of the weights.

    It tries 20 scales and puts the weights back after each one, from a copy made by .to(float32).cpu(). For
    weights that are FP32 on the CPU already these two copy nothing: each try starts from weights that all
    tries before have rounded, and the model ends in ruins (perplexity 1.9 million).
    """
    from gptqmodel.looper import awq_processor

    search = awq_processor.AWQProcessor._compute_best_scale
    source = textwrap.dedent(inspect.getsource(search))
    mended = source.replace(".to(torch.float32).cpu().contiguous()", ".to(torch.float32, copy=True).cpu()")
    if mended != source:
        exec(mended, vars(awq_processor))
        awq_processor.AWQProcessor._compute_best_scale = awq_processor._compute_best_scale


def _read(folder: Path) -> nn.Module:
    """The FP32 model that an AWQ checkpoint stands for."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    model, _ = models.load_lm()
    found = model.state_dict()
    for name in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        parts = {part: tensors.pop(f"{name}.{part}") for part in ("qweight", "qzeros", "scales")}
        found[f"{name}.weight"].copy_(affine.dequantize(awq_format.unpack(parts)))
    for name, tensor in tensors.items():  # the norms, which carry the scales
        if name in found:
            found[name].copy_(tensor)
    return model
