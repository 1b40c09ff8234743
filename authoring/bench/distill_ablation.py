"""What each part of a distillation adds: students of MiniLM on movie sentences, three seeds each."""

import math
import statistics
import time

from course_utils import data, distill, finetune, measure

TITLE = "students of MiniLM after so many steps: accuracy (%) over three seeds, with the interval of the mean"
STEPS, BATCH, LR, SEEDS, HELDOUT = 64, 16, 1e-4, (0, 1, 2), 1000
# Student's t distribution with two degrees of freedom: 95 % of it lies within this many standard errors.
T_TWO_DEGREES = 4.303
METHODS = {
    "from scratch, labels": {"hard": 1.0},
    "fine-tuned, labels": {"hard": 1.0},
    "soft answers": {"soft": 1.0},
    "hidden states": {"hidden": 1.0, "hard": 0.1},
    "attention": {"attention": 1.0, "hard": 0.1},
    "all together": {"hard": 0.5, "soft": 0.5, "hidden": 1.0, "attention": 1.0},
    "layer by layer, then soft": {"soft": 1.0},
}
FEWER = ("fine-tuned, labels", "soft answers", "all together")  # with two layers


def student_after(name: str, layers: list[int], teacher, tokenizer, training, seed: int):
    """A trained student of one kind."""
    student = distill.make_student(teacher, layers)
    frozen = ("embeddings",)
    if name.startswith("from scratch"):
        student, frozen = distill.from_scratch(student, seed), ()
    objectives = [distill.Objective(teacher, layers=layers, **METHODS[name])]
    if name.startswith("layer by layer"):
        objectives = distill.stages(objectives[0], layers)
    for objective in objectives:  # stages share the steps
        finetune.train(student, tokenizer, training, steps=STEPS // len(objectives), batch_size=BATCH, lr=LR,
                       seed=seed, frozen=frozen, loss=objective, progress=f"{name}, seed {seed}")
    return student


def bench() -> list[dict]:
    """The teacher, then a row for each kind of student."""
    teacher, tokenizer = finetune.load_classifier()
    training, heldout = data.reviews("train"), data.reviews("test")[:HELDOUT]
    rows = [row("teacher", 6, [finetune.evaluate(teacher, tokenizer, heldout).value], 0.0, teacher)]
    for kept, names in ((3, METHODS), (2, FEWER)):
        layers = distill.layer_map(6, kept)
        for name in names:
            found, start = [], time.perf_counter()
            for seed in SEEDS:
                student = student_after(name, layers, teacher, tokenizer, training, seed)
                found.append(finetune.evaluate(student, tokenizer, heldout).value)
            minutes = (time.perf_counter() - start) / 60 / len(SEEDS)
            rows.append(row(name, kept, found, minutes, student))
    return rows


def row(name: str, layers: int, found: list[float], minutes: float, model) -> dict:
    """One line of the table; the interval holds the mean over all seeds with 95 % confidence."""
    half = None
    if len(found) > 1:
        half = 100 * T_TWO_DEGREES * statistics.stdev(found) / math.sqrt(len(found))
    return {"what": name, "layers": layers, "steps": STEPS, "accuracy": 100 * statistics.mean(found),
            "+-": half, "seeds": len(found), "sentences": HELDOUT, "minutes": minutes,
            "MB": measure.weight_bytes(model).total / 1e6}
