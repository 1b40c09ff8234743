"""What scaling, clipping, error feedback and kept channels are each worth: 16,384 held-out tokens for each.

All methods get the same 8,192 tokens of calibration text and the same grid with zero points. The lessons on
GPTQ and AWQ draw their verdicts from it.
"""

from dataclasses import asdict

from torch import Tensor, nn

from authoring.bench import resume
from course_utils import data, measure, models
from course_utils.quantize import affine, awq, gptq, layerwise
from course_utils.quantize.affine import Scheme

TITLE = "Weight-only methods, groups of 64 with zero points: perplexity on 16,384 held-out tokens"
HELDOUT_TOKENS, CALIBRATION_TOKENS, WINDOW = 16_384, 8192, 512

FP32, RTN, RTN_CLIP, MIXED = "FP32", "rounding", "rounding + clip", "1 % of the channels in 16 bits"
SCALE, CLIP, BOTH = "AWQ scale", "AWQ clip", "AWQ scale + clip"
LOW, HIGH, GPTQ_CLIP = "GPTQ, damping 0.01", "GPTQ, damping 0.2", "GPTQ, damping 0.01, + clip"
NATURAL = "GPTQ, damping 0.01, natural order"
METHODS = {
    4: (RTN, LOW, HIGH, BOTH, GPTQ_CLIP, NATURAL),
    3: (RTN, RTN_CLIP, SCALE, CLIP, BOTH, MIXED, LOW, GPTQ_CLIP),
}
GPTQ = {
    LOW: {"order": "activation", "static_groups": True},
    HIGH: {"order": "activation", "static_groups": True, "damping": 0.2},
    GPTQ_CLIP: {"order": "activation", "static_groups": True, "clip_search": True},
    NATURAL: {"static_groups": True},
}


def bench() -> list[dict]:
    """Every method at 3 bits, the main ones at 4.

    Returns:
        One row for each, with the perplexity of all windows.
    """
    tried = [(FP32, 32)] + [(method, bits) for bits, methods in METHODS.items() for method in methods]
    runs = {run: dict(zip(("method", "bits"), run, strict=True)) for run in tried}
    return resume("bench_weight_only_ranking", TITLE, runs, _measure)


def _measure(method: str, bits: int) -> dict:
    measure.release_memory()
    model, tokenizer = models.load_lm()
    text = data.wikipedia_tokens(tokenizer, "calibration", CALIBRATION_TOKENS)
    if method != FP32:
        quantize(model, method, Scheme(bits, 64, symmetric=False), data.windows(text, WINDOW))
    heldout = data.wikipedia_tokens(tokenizer, "heldout", HELDOUT_TOKENS)
    return {"result": asdict(measure.perplexity(model, heldout, WINDOW))}


def quantize(model: nn.Module, method: str, scheme: Scheme, text: Tensor) -> None:
    """Quantize a model in place.

    Args:
        model: a causal language model with Llama's blocks.
        method: one of `METHODS`.
        scheme: what to quantize to.
        text: calibration text, int64 [windows, tokens].
    """
    if method == RTN:
        layerwise.round_to_nearest(model, scheme)
    elif method == RTN_CLIP:
        for linear in layerwise.block_linears(model).values():
            linear.weight.data.copy_(affine.fake_quantize(linear.weight.detach(), scheme, clip_search=True))
    elif method == MIXED:
        awq.keep_salient(model, awq.model_importance(model, text), scheme)
    elif method in GPTQ:
        gptq.quantize_model(model, text, scheme, **GPTQ[method])
    else:
        ratios = (0.0,) if method == CLIP else awq.RATIOS
        awq.awq(model, text, scheme, use_clip=method != SCALE, ratios=ratios)
