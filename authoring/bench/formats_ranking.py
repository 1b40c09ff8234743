"""Every number format of the lesson on formats, and MXFP4 with its scale rounded up: 16,384 tokens each."""

from dataclasses import asdict

import torch

from authoring.bench import resume
from course_utils import data, formats, measure, models

TITLE = "All matrices of SmolLM2 in one format: perplexity on 16,384 held-out tokens"
HELDOUT_TOKENS, WINDOW = 16_384, 512
ROUNDED_UP = "MXFP4, scale rounded up"
LEFT_OUT = ("TF32", "FP4 E2M1")  # FP32 in memory; and ruined, as the lesson shows
SMALL = 1e-30


def bench() -> list[dict]:
    """FP32 and each format.

    Returns:
        One row for each, with the perplexity of all windows and the bits a weight.
    """
    model, tokenizer = models.load_lm()
    heldout = data.wikipedia_tokens(tokenizer, "heldout", HELDOUT_TOKENS)
    names = [name for name in formats.FORMATS if name not in LEFT_OUT] + [ROUNDED_UP]

    def scored(name: str) -> dict:
        with formats.converting(model) as put_weights_in:
            converted = put_weights_in("MXFP4" if name == ROUNDED_UP else name)
            if name == ROUNDED_UP:
                put_weights_in("FP32")
                for matrix in (parameter for parameter in model.parameters() if parameter.dim() >= 2):
                    matrix.data.copy_(mxfp4_rounded_up(matrix.data))
            return {"bits": converted.bits, "result": asdict(measure.perplexity(model, heldout, WINDOW))}

    return resume("bench_formats_ranking", TITLE, {(name,): {"format": name} for name in names}, scored)


def mxfp4_rounded_up(weight: torch.Tensor) -> torch.Tensor:
    """MXFP4 with the smallest power of two as scale that cuts nothing off; the standard rounds down.

    Args:
        weight: float [out, in], in a multiple of 32.

    Returns:
        What it becomes, float32 of the same shape.
    """
    blocks = weight.float().view(-1, 32)
    largest = blocks.abs().amax(dim=1, keepdim=True).clamp(min=SMALL)
    scale = 2.0 ** (largest / formats.E2M1.largest).log2().ceil()
    return (formats.round_to(blocks / scale, formats.E2M1) * scale).view_as(weight)
