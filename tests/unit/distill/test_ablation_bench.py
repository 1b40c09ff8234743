"""The bench of the lesson: it goes on where it stopped, and its interval is Student's."""

import pytest

from course_utils import data, finetune, models, records
from tests.unit.distill.common import fingerprint, small_bert


def test_the_ablation_bench_runs_and_goes_on_where_it_stopped(monkeypatch, tmp_path):
    bench = pytest.importorskip("authoring.bench.distill_ablation")
    tokenizer, teacher = models.load_encoder()[1], small_bert(layers=6)
    before = fingerprint(teacher)
    examples = [(f"the film was {word}", i % 2) for i, word in enumerate("good bad fine dull".split())]
    monkeypatch.setattr(finetune, "load_classifier", lambda: (teacher, tokenizer))
    monkeypatch.setattr(data, "reviews", lambda split: examples)
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    for name, value in {"STEPS": 4, "BATCH": 2, "HELDOUT": 3, "SEEDS": (0, 1)}.items():
        monkeypatch.setattr(bench, name, value)
    trained = []
    train = finetune.train
    monkeypatch.setattr(finetune, "train", lambda *args, **kwargs: trained.append(train(*args, **kwargs)))
    rows = bench.bench()
    assert [(row["what"], row["layers"]) for row in rows] == list(bench.runs())
    assert fingerprint(teacher) == before
    first, *students = rows
    assert first["+-"] is None and all(row["+-"] >= 0 and len(row["by seed"]) == 2 for row in students)
    assert {row["layers"] for row in students} == {2, 3} and all(row["MB"] < first["MB"] for row in students)
    assert sum(run.steps for run in trained) == 4 * 2 * len(students)
    record = records.load(bench.NAME)
    records.save(bench.NAME, {"title": bench.TITLE, "rows": rows[:-1]})  # as if it had been interrupted
    trained.clear()
    again = bench.bench()
    assert len(trained) == 2 and again[:-1] == rows[:-1]
    assert records.load(bench.NAME)["results"]["rows"][-1]["accuracy"] == again[-1]["accuracy"]
    assert record["results"]["rows"] == rows


def test_the_interval_of_the_mean_is_students():
    bench = pytest.importorskip("authoring.bench.distill_ablation")
    found = bench.row("soft answers", 3, [0.80, 0.82, 0.87], 0.0, small_bert())
    # 4.303 standard errors hold 95 % of Student's t with two degrees of freedom (any table of it).
    spread = (0.03**2 + 0.01**2 + 0.04**2) / 2
    assert found["accuracy"] == pytest.approx(83.0)
    assert found["+-"] == pytest.approx(100 * 4.303 * (spread / 3) ** 0.5, rel=1e-3)
