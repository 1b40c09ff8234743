"""Every weight-only method of the course on one model and text: bits a weight against perplexity.

Takes about ten minutes on two cores. Each row is kept as soon as it is measured, and rows that are there are
not measured again, so the run can be interrupted. The lesson on AWQ draws its table and picture from it.
"""

from collections.abc import Callable

from torch import Tensor, nn

from authoring.bench import resume
from course_utils import data, formats, measure, models
from course_utils.quantize import affine, awq, gptq, hqq, layerwise
from course_utils.quantize.affine import Scheme

TITLE = "Weight-only quantization: bits a weight and perplexity on held-out text"
NAME = "bench_weight_only"
HELDOUT_TOKENS, CALIBRATION_TOKENS, WINDOW = 2048, 1024, 512  # as in the lesson on AWQ
CALIBRATION_WINDOW = 256  # shorter windows: more articles for the same number of tokens
ORDER, DAMPING = "activation", 0.2  # for GPTQ, with static groups: the settings of the lesson on GPTQ
WIDTH = 576  # input channels of most of the model's matrices

RTN, GPTQ, AWQ, CLIP, HQQ, NF4 = "round to nearest", "GPTQ", "AWQ", "AWQ + clip", "HQQ", "NF4"
RUNS = [("FP32", 32, None, True), (NF4, 4, 64, True)]
for bits, group in [(3, 64), (4, 64), (4, None)]:  # with zero points: HQQ has no other grid
    RUNS += [(method, bits, group, False) for method in (RTN, CLIP, GPTQ, AWQ, HQQ)]


def bench() -> list[dict]:
    """All rows, measuring those that the record does not hold.

    Returns:
        One row for each of `RUNS`.
    """
    return resume(NAME, TITLE, {run: _names(*run) for run in RUNS}, _measure)


def _names(method: str, bits: int, group: int | None, symmetric: bool) -> dict:
    row = {"method": method, "bits": bits, "group": group, "symmetric": symmetric,
           "text": f"{HELDOUT_TOKENS} held-out, {CALIBRATION_TOKENS} calibration tokens"}
    if method == GPTQ:
        row["method's settings"] = f"order {ORDER}, static groups, damping {DAMPING:g}"
    return row


def _measure(method: str, bits: int, group: int | None, symmetric: bool) -> dict:
    model, tokenizer = models.load_lm()
    heldout = data.wikipedia_tokens(tokenizer, "heldout", HELDOUT_TOKENS)
    text = data.wikipedia_tokens(tokenizer, "calibration", CALIBRATION_TOKENS)
    text = data.windows(text, CALIBRATION_WINDOW)
    scheme = None if method in ("FP32", NF4) else Scheme(bits, group, symmetric)
    size = 32.0 if scheme is None else affine.bits_per_weight(scheme, WIDTH)
    if method == RTN:
        layerwise.round_to_nearest(model, scheme)
    elif method == GPTQ:
        gptq.quantize_model(model, text, scheme, order=ORDER, static_groups=True, damping=DAMPING,
                            progress=False)
    elif method in (AWQ, CLIP):
        awq.awq(model, text, scheme, use_clip=method == CLIP, progress=False)
    elif method == HQQ:
        size = hqq.hqq_bits_per_weight(scheme, WIDTH)
        _each_weight(model, lambda weight: hqq.hqq_fake_quantize(weight, scheme))
    elif method == NF4:
        size = formats.NF4.bits_per_weight()
        _each_weight(model, lambda weight: formats.quantize(weight, formats.NF4).dequantize())
    found = measure.perplexity(model, heldout, window=WINDOW)
    return {"bits a weight": size, "perplexity": found.value, "nll": found.nll, "tokens scored": found.tokens,
            "window": WINDOW, "calibration tokens": text.numel()}


def _each_weight(model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    for linear in layerwise.block_linears(model).values():
        linear.weight.data.copy_(change(linear.weight.detach()))
