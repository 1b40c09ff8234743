"""The capstone: the reference entry and three strategies, scored as `capstone.check` scores a learner's."""

from collections.abc import Callable
from dataclasses import asdict

from torch import Tensor, nn
from transformers import PreTrainedModel

from authoring.bench import resume
from course_utils import capstone, compressed
from course_utils.quantize import packed
from course_utils.quantize.affine import Scheme

TITLE = (f"Entries under {capstone.BUDGET / 1e6:.0f} MB and {capstone.SECONDS} s: perplexity on "
         f"{capstone.SCORED_TOKENS:,} held-out tokens")
REFERENCE = "the reference: rounding, 4 bits"
INT5 = Scheme(5, 64, symmetric=False)


def _with_small_table(model: PreTrainedModel) -> nn.Module:
    packed.replace_embedding(model, compressed.INT8)
    return model


def scaled(model: PreTrainedModel, windows: Tensor) -> nn.Module:
    """Better integers: AWQ at the reference's 4 bits.

    Args:
        model: the full model.
        windows: calibration text.

    Returns:
        The small model.
    """
    return _with_small_table(compressed.awq_packed(model, windows))


def wider(model: PreTrainedModel, windows: Tensor) -> nn.Module:
    """More bits: the budget has room for 5, and GPTQ chooses them.

    Args:
        model: the full model.
        windows: calibration text.

    Returns:
        The small model.
    """
    return _with_small_table(compressed.gptq_packed(model, windows, INT5))


def shorter(model: PreTrainedModel, windows: Tensor) -> nn.Module:
    """Fewer blocks, healed, for more bits in those that stay: 27 blocks at 5 bits.

    Args:
        model: the full model.
        windows: calibration text.

    Returns:
        The small model.
    """
    student = compressed.owned(compressed.healed(model, windows))
    return _with_small_table(compressed.gptq_packed(student, windows[:8], INT5))


ENTRIES: dict[str, Callable[[PreTrainedModel, Tensor], nn.Module]] = {
    REFERENCE: capstone.reference,
    "AWQ, 4 bits": scaled,
    "GPTQ, 5 bits": wider,
    "27 blocks, healed, GPTQ, 5 bits": shorter,
}


def bench() -> list[dict]:
    """Score each entry.

    Returns:
        One row for each, with the perplexity of all windows.
    """
    return resume("bench_capstone", TITLE, {(name,): {"name": name} for name in ENTRIES}, _measure)


def _measure(name: str) -> dict:
    score = capstone.check(ENTRIES[name], name)
    return {"bytes": score.bytes, "seconds": score.seconds, "counts": not score.problems,
            "result": asdict(score.quality)}
