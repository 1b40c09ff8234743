"""Quantization-aware training at 2 bits, for longer than a lesson can take, each setting with four seeds.

Three scales to begin with (the row's largest weight, the least squared error, LSQ's) and two sources of what
is right: the labels, or the FP32 model's own answers, which needs none.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from authoring.bench import resume
from course_utils import data, finetune
from course_utils.distill import losses
from course_utils.quantize import affine, qat

TITLE = "MiniLM on movie sentences, W2A8 after so many QAT steps; accuracy on all held-out sentences"
STEPS, BATCH, LR, SEEDS = 128, 16, 1e-4, (1, 2, 3, 4)
ABSMAX, CLIPPED, LSQ = "absmax", "least squared error, learned", "LSQ, learned"
TAUGHT, MORE = "LSQ, learned, taught by FP32", "FP32, trained on"


def bench() -> list[dict]:
    """Train with each setting and seed. What needs no training is measured once, with 0 steps.

    Returns:
        One row for each setting, number of steps and seed.
    """
    before = [(name, 0, 0) for name in ("FP32", ABSMAX, CLIPPED, LSQ)]
    trained = [(name, STEPS, seed) for seed in SEEDS for name in (MORE, ABSMAX, CLIPPED, LSQ, TAUGHT)]
    runs = {run: dict(zip(("what", "steps", "seed"), run, strict=True)) for run in before + trained}
    return resume("bench_qat", TITLE, runs, _measure)


def _measure(name: str, steps: int, seed: int) -> dict:
    base, tokenizer = finetune.load_classifier()
    model = _prepared(name, copy.deepcopy(base))
    seconds = 0.0
    if steps:
        loss = _teacher_s(base) if name == TAUGHT else None
        run = finetune.train(model, tokenizer, data.reviews("train"), steps=steps, batch_size=BATCH, lr=LR,
                             seed=seed, loss=loss, progress=f"{name}, seed {seed}")
        seconds = run.seconds
    result = finetune.evaluate(model, tokenizer, data.reviews("test"), batch_size=64)
    return {"accuracy": result.value, "low": result.low, "high": result.high, "sentences": result.total,
            "minutes": seconds / 60}


def _prepared(name: str, model: nn.Module) -> nn.Module:
    if name in ("FP32", MORE):
        return model
    model = qat.prepare(model, qat.spec("W2A8", learned=name != ABSMAX))
    if name == CLIPPED:
        for layer in qat.fake_quant_layers(model).values():
            clipped, _ = affine.search_clip(layer.weight.detach(), layer.spec.weight, steps=40, smallest=0.2)
            layer.scale.data.copy_(clipped)
    return model


def _teacher_s(teacher: nn.Module) -> Callable[[nn.Module, dict[str, Tensor], Tensor], Tensor]:
    """The distance to the FP32 model's answers; the labels are not looked at."""
    def loss(student: nn.Module, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = teacher(**batch).logits
        return losses.kd_loss(student(**batch).logits, wanted, temperature=1.0)

    return loss
