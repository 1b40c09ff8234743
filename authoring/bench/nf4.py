"""Our NF4 beside bitsandbytes': the same matrices of the real model, quantized and read back, in turns."""

import bitsandbytes.functional as bnb
import torch

from course_utils import formats, measure, models

TITLE = "NF4, block 64, quantize and read back: ours beside bitsandbytes, on the CPU"
RATIO_OF = "median (s)"


def bench() -> list[dict]:
    """Quantize and read back, by bitsandbytes and by our code.

    Returns:
        One row for each: seconds, MB stored, and how many weights differ.
    """
    model, _ = models.load_lm()
    linears = [m for m in model.model.layers[:3].modules() if isinstance(m, torch.nn.Linear)]
    weights = [linear.weight.detach() for linear in linears]

    def theirs() -> tuple[list[torch.Tensor], int]:
        stored = [bnb.quantize_4bit(w, blocksize=64, quant_type="nf4") for w in weights]
        size = sum(packed.nbytes + state.absmax.nbytes for packed, state in stored)
        return [bnb.dequantize_4bit(packed, state) for packed, state in stored], size

    def ours() -> tuple[list[torch.Tensor], int]:
        stored = [formats.quantize(w, formats.NF4) for w in weights]
        return [q.dequantize() for q in stored], sum(q.nbytes for q in stored)

    (expected, their_bytes), (found, our_bytes) = theirs(), ours()
    different = sum((a != b).sum().item() for a, b in zip(expected, found, strict=True))
    samples = {"bitsandbytes": [], "ours": []}
    for _ in range(7):  # in turns, so that both see the same good and bad seconds of the machine
        for name, work in (("bitsandbytes", theirs), ("ours", ours)):
            samples[name].append(measure.latency(work, warmup=0, repeats=1).median)
    size = {"bitsandbytes": their_bytes, "ours": our_bytes}
    millions = sum(w.numel() for w in weights) / 1e6
    return [{"what": name, "median (s)": sorted(times)[3],
             "fastest (s)": min(times), "slowest (s)": max(times),
             "million weights": millions, "MB": size[name] / 1e6,
             "differ": 0 if name == "bitsandbytes" else different}
            for name, times in samples.items()]
