"""Quantization-aware training at 2 bits, for longer than a lesson can take: accuracy against steps."""

import copy

from course_utils import data, finetune, measure
from course_utils.quantize import qat

TITLE = "MiniLM on movie sentences, W2A8 after so many QAT steps; accuracy on 1,000 held-out sentences"
STEPS = (0, 128)
BATCH, LR, SEED, HELDOUT = 16, 1e-4, 1, 1000
SETTINGS = {
    "W2A8, absmax scale": qat.spec("W2A8"),
    "W2A8, learned scale": qat.spec("W2A8", learned=True),
}


def bench() -> list[dict]:
    """Train with each setting for each number of steps. Each run starts anew: its schedule ends with it.

    Returns:
        One row for each setting and number of steps, and one for FP32.
    """
    base, tokenizer = finetune.load_classifier()
    training, heldout = data.reviews("train"), data.reviews("test")[:HELDOUT]
    rows = [_row("FP32", 0, 0.0, finetune.evaluate(base, tokenizer, heldout))]
    for name, spec in SETTINGS.items():
        for steps in STEPS:
            model = qat.prepare(copy.deepcopy(base), spec)
            minutes = 0.0
            if steps:
                minutes = finetune.train(model, tokenizer, training, steps=steps, batch_size=BATCH, lr=LR,
                                         seed=SEED, progress=f"{name}, {steps} steps").minutes
            result = finetune.evaluate(model, tokenizer, heldout, batch_size=64)
            rows.append(_row(name, steps, minutes, result))
    return rows


def _row(name: str, steps: int, minutes: float, result: measure.Accuracy) -> dict:
    return {"what": name, "steps": steps, "minutes": minutes, "accuracy": result.value, "low": result.low,
            "high": result.high, "sentences": result.total}
