"""Rounding weights and activations, method by method: 16,384 held-out tokens for each."""

import contextlib
from collections.abc import Callable
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from authoring.bench import resume
from course_utils import data, measure, models, shapes
from course_utils.quantize import activations, layerwise
from course_utils.quantize.affine import Scheme

TITLE = "Rounded weights and activations: perplexity on 16,384 held-out tokens"
HELDOUT_TOKENS, WINDOW = 16_384, 512
INT8 = Scheme(8, full_range=False)
WEIGHTS = {
    "INT8, a scale a row": Scheme(8),
    "INT8, a scale a matrix": Scheme(8, "tensor"),
    "INT4, a scale a row": Scheme(4),
    "INT4, groups of 64": Scheme(4, 64),
    "INT4, groups of 64, zero point": Scheme(4, 64, symmetric=False),
    "INT3, groups of 64": Scheme(3, 64),
    "INT3, groups of 64, zero point": Scheme(3, 64, symmetric=False),
}
TOKEN, TENSOR, STATIC = "W8A8, a scale a token", "W8A8, a scale a tensor", "W8A8, static"
SPLIT, LIBRARY, NF4 = "LLM.int8(), ours", "LLM.int8(), bitsandbytes", "NF4, bitsandbytes"
MIXED, SMOOTH = "static after norms", "static after norms, smoothed"
ACTIVATIONS = (TOKEN, TENSOR, STATIC, SPLIT, MIXED, SMOOTH)


def bench() -> list[dict]:
    """FP32 and each way of rounding.

    Returns:
        One row for each, with the perplexity of all windows.
    """
    names = ("FP32", *WEIGHTS, *ACTIVATIONS, LIBRARY, NF4)
    return resume("bench_ptq_ranking", TITLE, {(name,): {"method": name} for name in names}, _measure)


def _measure(name: str) -> dict:
    measure.release_memory()
    model, tokenizer = models.load_lm()
    text = data.windows(data.wikipedia_tokens(tokenizer, "calibration", 3 * 1024), 1024)[:, :512]
    heldout = data.wikipedia_tokens(tokenizer, "heldout", HELDOUT_TOKENS)
    calls = contextlib.nullcontext()
    if name in WEIGHTS:
        layerwise.round_to_nearest(model, WEIGHTS[name])
    elif name in (LIBRARY, NF4):
        model = _library(name)
    elif name != "FP32":
        calls = activations.linear_calls(model, _call(name, model, text))
    with calls:
        return {"result": asdict(measure.perplexity(model, heldout, WINDOW))}


def _library(name: str) -> nn.Module:
    options = (BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0) if name == LIBRARY else
               BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                  bnb_4bit_compute_dtype=torch.float32))
    return AutoModelForCausalLM.from_pretrained(models.embedded_lm(), dtype=torch.float32, device_map="cpu",
                                                quantization_config=options).eval()


def _call(name: str, model: nn.Module, text: Tensor) -> Callable[[str, nn.Linear, Tensor], Tensor]:
    """How each linear layer computes; its weights are rounded to INT8 here, where the method does that."""
    if name == SPLIT:
        return lambda _, layer, x: activations.llm_int8_linear(x, layer.weight, layer.bias, threshold=6.0)
    tops = layerwise.collect_statistics(model, text, layerwise.AbsMax)
    absmax = {layer: top.absmax for layer, top in tops.items()}
    if name == SMOOTH:
        absmax = activations.smooth(model, tops, 0.5)
    layerwise.round_to_nearest(model, INT8)
    static = activations.static_call(absmax)
    if name == STATIC:
        return static
    if name == TENSOR:
        return _one_scale
    reached = tuple(reader for names in shapes.norm_readers(model) for reader in names)
    if name == TOKEN:
        return activations.dynamic_call
    return lambda n, layer, x: (static if n.endswith(reached) else activations.dynamic_call)(n, layer, x)


def _one_scale(name: str, layer: nn.Linear, x: Tensor) -> Tensor:
    """Dynamic, but one scale for the whole tensor: of each window by itself, as when it is read alone."""
    rounded = []
    for row in x.unbind(0):
        q, scale = activations.quantize_static(row, row.abs().max())
        rounded.append(q * scale)
    return F.linear(torch.stack(rounded), layer.weight, layer.bias)
