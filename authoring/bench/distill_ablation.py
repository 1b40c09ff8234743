"""What each part of a distillation adds: students of MiniLM on movie sentences, five seeds each.

The lesson on distillation shows the table from the record. Rows that the record holds already are not
measured again, so the run can be interrupted. Accuracies hold on any machine within the intervals; minutes
are this machine's.
"""

import math
import statistics
import time
from collections.abc import Iterator

from scipy import stats
from torch import nn
from transformers import PreTrainedTokenizerBase

from course_utils import data, distill, finetune, measure, records

TITLE = "students of MiniLM after so many steps: accuracy (%) over five seeds, with the interval of the mean"
NAME = "bench_distill_ablation"
STEPS, BATCH, LR, SEEDS, HELDOUT = 40, 16, 4e-4, (0, 1, 2, 3, 4), 2014
TEACHER, SCRATCH, PLAIN = "teacher", "from scratch, labels", "fine-tuned, labels"
STAGED = "layer by layer, then soft"
METHODS = {
    SCRATCH: {"hard": 1.0},
    PLAIN: {"hard": 1.0},
    "soft answers": {"soft": 1.0},
    "hidden states": {"hidden": 1.0, "hard": 0.1},
    "attention": {"attention": 1.0, "hard": 0.1},
    "all together": {"hard": 0.5, "soft": 0.5, "hidden": 1.0, "attention": 1.0},
    STAGED: {"soft": 1.0},
}
FEWER = ("soft answers",)  # with two layers


def runs() -> Iterator[tuple[str, int]]:
    """All rows: the teacher, then each kind of student.

    Yields:
        (what, layers) of a row.
    """
    yield TEACHER, 6
    yield from ((name, 3) for name in METHODS)
    yield from ((name, 2) for name in FEWER)


def bench() -> list[dict]:
    """All rows, measuring those that the record does not hold.

    Returns:
        One row for the teacher and for each kind of student, see `row`.
    """
    kept = records.load(NAME)
    known = kept["results"]["rows"] if kept else []
    rows = [row for row in known if row["sentences"] == HELDOUT
            and len(row.get("by seed", ())) == len(SEEDS if row["what"] != TEACHER else SEEDS[:1])]
    done = {(row["what"], row["layers"]) for row in rows}
    missing = [run for run in runs() if run not in done]
    if missing:
        teacher, tokenizer = finetune.load_classifier()
        training, heldout = data.reviews("train"), data.reviews("test")[:HELDOUT]
    for name, count in missing:
        found, start, model = [], time.perf_counter(), teacher
        for seed in SEEDS if name != TEACHER else SEEDS[:1]:
            if name != TEACHER:
                layers = distill.layer_map(teacher.config.num_hidden_layers, count)
                model = student_after(name, layers, teacher, tokenizer, training, seed)
            found.append(finetune.evaluate(model, tokenizer, heldout).value)
        minutes = (time.perf_counter() - start) / 60 / len(found)
        rows.append(row(name, count, found, minutes, model))
        records.save(NAME, {"title": TITLE, "rows": rows})
        print(rows[-1], flush=True)
    return rows


def student_after(
    name: str,
    layers: list[int],
    teacher: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    training: list[tuple[str, int]],
    seed: int,
) -> nn.Module:
    """A trained student of one kind.

    Args:
        name: which kind, of `METHODS`.
        layers: numbers of the teacher's layers that it has.
        teacher: a sentence classifier.
        tokenizer: the teacher's own.
        training: pairs (text, label).
        seed: order of the sentences and dropout; new weights too, if it starts from scratch.

    Returns:
        The student.
    """
    student, frozen = distill.make_student(teacher, layers), ("embeddings",)
    if name == SCRATCH:
        student, frozen = distill.from_scratch(student, seed), ()
    objectives = [distill.Objective(teacher, layers=layers, **METHODS[name])]
    if name == STAGED:
        objectives = distill.stages(objectives[0], layers)
    for objective in objectives:  # stages share the steps
        finetune.train(student, tokenizer, training, steps=STEPS // len(objectives), batch_size=BATCH, lr=LR,
                       seed=seed, frozen=frozen, loss=objective, progress=f"{name}, seed {seed}")
    return student


def row(name: str, layers: int, found: list[float], minutes: float, model: nn.Module) -> dict:
    """One line of the table.

    Args:
        name: what was measured.
        layers: how many it has.
        found: accuracy from 0 to 1, one for each seed.
        minutes: how long one seed took.
        model: one of the models, for its bytes.

    Returns:
        The line. Accuracy is in percent; "+-" is half of the 95 % interval of the mean over seeds (Student's
        t), None for one seed; "by seed" are the accuracies, so that two kinds can be compared seed by seed.
    """
    half = None
    if len(found) > 1:
        error = statistics.stdev(found) / math.sqrt(len(found))
        half = 100 * stats.t.ppf(0.975, len(found) - 1) * error
    return {"what": name, "layers": layers, "steps": 0 if name == TEACHER else STEPS,
            "accuracy": 100 * statistics.mean(found), "+-": half, "seeds": len(found),
            "by seed": [100 * value for value in found],
            "sentences": HELDOUT, "minutes": minutes, "MB": measure.weight_bytes(model).total / 1e6}
