"""course_utils.distill: losses against autograd and torch's own, students, the Trainer, healing."""

import copy
import hashlib

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    TrainingArguments,
)

from course_utils import data, distill, finetune, models, records


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def small_bert(seed=0, layers=4, kind=BertForSequenceClassification, **config):
    torch.manual_seed(seed)
    return kind(BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, num_labels=2,
        intermediate_size=64, max_position_embeddings=64, **config)).eval()  # fmt: skip


def small_llama(seed=0, layers=4):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=101, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True)).eval()  # fmt: skip


def fingerprint(model):
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def batch(rows=6, length=9):
    ids = torch.randint(1000, 3000, (rows, length), generator=seeded())
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


# ---- losses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("shape", [(5, 2), (1, 7), (2, 3, 11)])
def test_kd_loss_equals_torchs_kl_divergence(shape, temperature):
    student, teacher = randn(*shape), randn(*shape, seed=1)
    expected = F.kl_div(
        F.log_softmax(student / temperature, -1).flatten(0, -2),
        F.log_softmax(teacher / temperature, -1).flatten(0, -2), reduction="batchmean", log_target=True,
    ) * temperature**2  # fmt: skip
    torch.testing.assert_close(distill.kd_loss(student, teacher, temperature), expected)
    # The other direction is the same formula with the roles exchanged.
    swapped = distill.kd_loss(teacher, student, temperature)
    torch.testing.assert_close(distill.reverse_kl(student, teacher, temperature), swapped)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 20.0])
def test_the_closed_gradient_is_autograds(temperature):
    student, teacher = randn(6, 5).double().requires_grad_(), randn(6, 5, seed=1).double().requires_grad_()
    distill.kd_loss(student, teacher, temperature).backward()
    expected = distill.kd_gradient(student.detach(), teacher.detach(), temperature)
    torch.testing.assert_close(student.grad, expected)
    assert teacher.grad is None  # the teacher gets no gradient
    assert torch.autograd.gradcheck(lambda s: distill.kd_loss(s, teacher.detach(), temperature), student)
    assert torch.autograd.gradcheck(lambda s: distill.reverse_kl(s, teacher.detach(), temperature), student)


def test_at_a_high_temperature_it_is_the_squared_error_of_centred_logits():
    student, teacher = randn(8, 5).double(), randn(8, 5, seed=1).double()
    apart = (student - student.mean(-1, True)) - (teacher - teacher.mean(-1, True))
    expected = apart.square().sum(-1).mean() / (2 * 5)  # equations 3 and 4 of arXiv 1503.02531
    torch.testing.assert_close(distill.kd_loss(student, teacher, 1e3), expected, rtol=5e-3, atol=0)


def test_losses_are_zero_for_a_perfect_student_and_never_negative():
    for seed in range(5):
        student, teacher = 3 * randn(4, 6, seed=seed), 3 * randn(4, 6, seed=seed + 10)
        for loss in (distill.kd_loss, distill.reverse_kl):
            assert loss(teacher, teacher, 2.0).item() == pytest.approx(0, abs=1e-6)
            assert loss(student, teacher, 2.0) > 0
            shifted = loss(student + 5.0, teacher, 2.0)  # a constant on all logits changes no probability
            torch.testing.assert_close(shifted, loss(student, teacher, 2.0))


def test_hidden_loss_looks_at_real_tokens_only_and_takes_a_projection():
    student, teacher = randn(2, 3, 4), randn(2, 3, 4, seed=1)
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    real = [(0, 0), (0, 1), (1, 0)]
    expected = sum(F.mse_loss(student[at], teacher[at]) for at in real) / 3
    torch.testing.assert_close(distill.hidden_loss(student, teacher, mask), expected)
    wide = randn(2, 3, 6, seed=2)
    with pytest.raises(ValueError, match=r"projection, nn.Linear\(4, 6\)"):
        distill.hidden_loss(student, wide, mask)
    projection = torch.nn.Linear(4, 6)
    found = distill.hidden_loss(student, wide, mask, projection)
    torch.testing.assert_close(found, distill.hidden_loss(projection(student), wide, mask))
    found.backward()
    assert projection.weight.grad.abs().sum() > 0


def test_attention_loss_is_the_mean_kl_of_the_rows_of_real_tokens():
    student, teacher = (torch.softmax(2 * randn(2, 3, 4, 4, seed=s), -1) for s in (0, 1))
    mask = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    rows = [(0, q) for q in range(4)] + [(1, 0), (1, 1)]
    kl = [F.kl_div(student[b, h, q].log(), teacher[b, h, q], reduction="sum")
          for b, q in rows for h in range(3)]  # fmt: skip
    torch.testing.assert_close(distill.attention_loss(student, teacher, mask), sum(kl) / len(kl))
    teacher[0, 0, 0] = torch.tensor([1.0, 0.0, 0.0, 0.0])  # a zero is no NaN
    assert distill.attention_loss(student, teacher, mask).isfinite()
    with pytest.raises(ValueError, match="number of heads"):
        distill.attention_loss(student[:, :2], teacher, mask)


# ---- students ---------------------------------------------------------------------------------------------


def test_layer_map_is_uniform_and_ends_with_the_last():
    assert distill.layer_map(6, 3) == [1, 3, 5] and distill.layer_map(6, 2) == [2, 5]
    assert distill.layer_map(12, 4) == [2, 5, 8, 11] and distill.layer_map(5, 2) == [1, 4]
    for teacher in range(1, 13):
        assert distill.layer_map(teacher, teacher) == list(range(teacher))
        for student in range(1, teacher + 1):
            layers = distill.layer_map(teacher, student)
            assert layers == sorted(set(layers)) and len(layers) == student and layers[-1] == teacher - 1
    for student in (0, 7):
        with pytest.raises(ValueError, match="from 1 to 6"):
            distill.layer_map(6, student)


def test_a_student_is_a_shorter_copy(tmp_path):
    teacher = small_bert()
    before = fingerprint(teacher)
    student = distill.make_student(teacher, [1, 3])
    assert student.config.num_hidden_layers == 2 and teacher.config.num_hidden_layers == 4
    for mine, theirs in zip(student.bert.encoder.layer, (1, 3), strict=True):
        for a, b in zip(mine.parameters(), teacher.bert.encoder.layer[theirs].parameters(), strict=True):
            assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert fingerprint(teacher) == before
    same = distill.make_student(teacher, range(4))
    with torch.no_grad():
        assert torch.equal(same(**batch()).logits, teacher(**batch()).logits)
    distill.make_student(teacher, [0]).save_pretrained(tmp_path)
    assert len(BertForSequenceClassification.from_pretrained(tmp_path).bert.encoder.layer) == 1
    for wrong in ([], [3, 1], [1, 1], [4], [-1, 2]):
        with pytest.raises(ValueError, match="rise from 0 to 3"):
            distill.make_student(teacher, wrong)


def test_a_student_that_shares_memory_trains_its_own_blocks_only():
    teacher = small_llama()
    before = fingerprint(teacher)
    student = distill.make_student(teacher, [0, 1, 3], train=[1])
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith("model.layers.1.") for name in trained)
    assert student.lm_head.weight is student.model.embed_tokens.weight
    assert student.lm_head.weight.data_ptr() == teacher.lm_head.weight.data_ptr()
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert [block.self_attn.layer_idx for block in student.model.layers] == [0, 1, 2]
    windows = torch.randint(0, 101, (4, 12), generator=seeded())
    distill.heal(student, teacher, windows, steps=3, lr=1e-2)
    assert fingerprint(teacher) == before
    with pytest.raises(ValueError, match=r"\[2\] that are not kept"):
        distill.make_student(teacher, [0, 1, 3], train=[2])


def test_from_scratch_has_the_shape_and_none_of_the_weights():
    student = distill.make_student(small_bert(), [1, 3])
    other = distill.from_scratch(student, seed=1)
    assert [p.shape for p in other.parameters()] == [p.shape for p in student.parameters()]
    assert not torch.equal(other.classifier.weight, student.classifier.weight)
    assert fingerprint(other) == fingerprint(distill.from_scratch(student, seed=1))
    assert fingerprint(other) != fingerprint(distill.from_scratch(student, seed=2))


# ---- objectives -------------------------------------------------------------------------------------------


def test_an_objective_adds_up_its_parts_and_never_touches_the_teacher():
    teacher = small_bert()
    before, layers = fingerprint(teacher), [1, 3]
    student = distill.make_student(small_bert(seed=1), layers).train(False)
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    parts = {"hard": 0.5, "soft": 2.0, "hidden": 3.0, "attention": 0.7}
    single = {name: distill.Objective(teacher, **{name: 1.0}, layers=layers)(student, batch(), labels)
              for name in parts}  # fmt: skip
    assert all(value > 0 for value in single.values())
    whole = distill.Objective(teacher, **parts, layers=layers)(student, batch(), labels)
    torch.testing.assert_close(whole, sum(weight * single[name] for name, weight in parts.items()))
    torch.testing.assert_close(single["hard"], F.cross_entropy(student(**batch()).logits, labels))
    whole.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(block.attention.self.query.weight.grad.abs().sum() > 0 for block in student.bert.encoder.layer)
    assert fingerprint(teacher) == before


def test_the_hidden_states_of_a_student_that_is_the_teacher_agree():
    teacher = small_bert()
    student = distill.make_student(teacher, range(4))
    objective = distill.Objective(teacher, hidden=1.0, attention=1.0, soft=1.0, layers=range(4))
    assert objective(student, batch(), torch.zeros(6, dtype=torch.long)).item() == pytest.approx(0, abs=1e-6)


def test_stages_go_from_the_bottom_up_and_end_with_the_objective():
    objective = distill.Objective(small_bert(), soft=1.0, hard=0.5)
    first, second, last = distill.stages(objective, [1, 3])
    assert (first.compare, second.compare) == ([0], [1]) and last is objective
    assert first.hidden == 1.0 and first.soft == first.hard == 0.0
    student = distill.make_student(objective.teacher, [1, 3])
    first(student, batch(), torch.zeros(6, dtype=torch.long)).backward()
    lower, upper = student.bert.encoder.layer
    assert lower.output.dense.weight.grad is not None and upper.output.dense.weight.grad is None


def test_training_with_an_objective_brings_the_student_closer():
    tokenizer, teacher = models.load_encoder()[1], small_bert(initializer_range=0.3)
    before = fingerprint(teacher)
    student = distill.make_student(teacher, [1, 3])
    words = "the film was a plot of actors and scenes in two long hours".split()
    examples = [(" ".join(words[i % 7 : i % 7 + 5]), i % 2) for i in range(32)]
    objective = distill.Objective(teacher, soft=1.0, temperature=1.0)

    def apart():
        logits = [finetune.predict(m, tokenizer, [t for t, _ in examples]) for m in (student, teacher)]
        return distill.kd_loss(*logits, 1.0).item()

    start = apart()
    run = finetune.train(student, tokenizer, examples, steps=120, batch_size=8, lr=3e-3, loss=objective)
    assert apart() < 0.5 * start
    assert run.steps == 120 and fingerprint(teacher) == before


def test_objectives_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="weight above 0"):
        distill.Objective(small_bert())
    with pytest.raises(ValueError, match="layer_map"):
        distill.Objective(small_bert(), hidden=1.0)


# ---- the Trainer ------------------------------------------------------------------------------------------


def trainer(student, teacher, folder, rows=(), **arguments):
    options = {"output_dir": str(folder), "report_to": [], "use_cpu": True, "disable_tqdm": True,
               "save_strategy": "no", "logging_strategy": "no", "max_grad_norm": 0.0, "optim": "sgd",
               "learning_rate": 0.1, "lr_scheduler_type": "constant", **arguments}  # fmt: skip
    return distill.DistillationTrainer(
        student, TrainingArguments(**options), train_dataset=list(rows) or None, teacher=teacher,
        temperature=3.0, alpha=0.7)  # fmt: skip


def test_compute_loss_is_the_formula_and_its_gradient_autograds(tmp_path):
    teacher = small_bert(seed=1)
    student = distill.make_student(small_bert(), [1, 3])
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    loss, outputs = trainer(student, teacher, tmp_path).compute_loss(
        student, batch() | {"labels": labels}, return_outputs=True
    )
    with torch.no_grad():
        wanted = teacher(**batch()).logits
    expected = 0.7 * distill.kd_loss(outputs.logits, wanted, 3.0) + 0.3 * F.cross_entropy(
        outputs.logits, labels)  # fmt: skip
    torch.testing.assert_close(loss, expected)
    (found,) = torch.autograd.grad(loss, outputs.logits, retain_graph=True)
    hard = (torch.softmax(outputs.logits, -1) - F.one_hot(labels, 2)) / 6
    torch.testing.assert_close(found, 0.7 * distill.kd_gradient(outputs.logits, wanted, 3.0) + 0.3 * hard)


def test_masked_tokens_do_not_count(tmp_path):
    teacher = small_bert(seed=1, kind=BertForTokenClassification)
    student = small_bert(seed=2, kind=BertForTokenClassification)
    labels = torch.randint(0, 2, (6, 9), generator=seeded(3))
    labels[:, 5:] = -100
    inputs = batch() | {"labels": labels}
    loss, outputs = trainer(student, teacher, tmp_path).compute_loss(student, inputs, return_outputs=True)
    loss.backward(inputs=[outputs.logits])
    assert (outputs.logits.grad[:, 5:] == 0).all() and (outputs.logits.grad[:, :5] != 0).all()


def test_accumulated_batches_give_the_step_of_one_large_batch(tmp_path):
    teacher = small_bert(seed=1)
    inputs, labels = batch(rows=8), [0, 1, 1, 0, 1, 0, 0, 1]
    rows = [{"input_ids": inputs["input_ids"][i], "labels": label} for i, label in enumerate(labels)]
    states, before = [], fingerprint(teacher)
    for size, accumulated in ((8, 1), (2, 4)):
        student = small_bert(seed=2, layers=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        trainer(student, teacher, tmp_path, rows, max_steps=1, per_device_train_batch_size=size,
                gradient_accumulation_steps=accumulated).train()  # fmt: skip
        states.append(student.state_dict())
    start = small_bert(seed=2, layers=2).state_dict()
    moved = {name: (value - start[name]).abs().max() for name, value in states[0].items()}
    assert moved["classifier.weight"] > 1e-4
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6)
    assert fingerprint(teacher) == before and not teacher.training


def test_the_trainer_refuses_impossible_settings(tmp_path):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        distill.DistillationTrainer(small_bert(), teacher=small_bert(), temperature=0.0)


# ---- language models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", [distill.kd_loss, distill.reverse_kl])
def test_healing_brings_the_student_closer_to_the_teacher(divergence):
    teacher = small_llama()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(3.0)  # random weights, but answers that differ from token to token
    before = fingerprint(teacher)
    windows = torch.randint(0, 101, (8, 16), generator=seeded())
    runs = []
    for _ in range(2):
        student = distill.make_student(teacher, [0, 1, 3], train=[1, 3])
        run = distill.heal(student, teacher, windows, steps=60, lr=1e-2, divergence=divergence)
        runs.append((run, student))
    run, student = runs[0]
    assert sum(run.losses[-8:]) < 0.8 * sum(run.losses[:8])
    assert run.losses == runs[1][0].losses  # the same seed, the same run
    assert fingerprint(teacher) == before and all(p.grad is None for p in student.parameters())


def test_healing_refuses_what_cannot_be_healed():
    teacher = small_llama()
    student = distill.make_student(teacher, [0, 1, 3], train=[])
    windows = torch.zeros(2, 8, dtype=torch.long)
    with pytest.raises(ValueError, match="unfrozen"):
        distill.heal(student, teacher, windows, steps=1)
    with pytest.raises(ValueError, match="windows"):
        distill.heal(copy.deepcopy(teacher), teacher, windows[0], steps=1)


def test_a_narrower_student_trains_its_projection_along():
    tokenizer, teacher = models.load_encoder()[1], small_bert(initializer_range=0.3)
    torch.manual_seed(1)
    student = BertForSequenceClassification(BertConfig(
        vocab_size=30522, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_labels=2,
        intermediate_size=32, max_position_embeddings=64)).eval()  # fmt: skip
    examples = [(f"the film was {word}", i % 2) for i, word in enumerate("good bad fine dull".split())]
    with pytest.raises(ValueError, match=r"nn.Linear\(16, 32\)"):
        finetune.train(student, tokenizer, examples, steps=1,
                       loss=distill.Objective(teacher, hidden=1.0, layers=[1, 3]))  # fmt: skip
    student.projection = torch.nn.Linear(16, 32)
    before = student.projection.weight.detach().clone()
    objective = distill.Objective(teacher, hidden=1.0, layers=[1, 3], projection=student.projection)
    run = finetune.train(student, tokenizer, examples, steps=40, batch_size=4, lr=1e-2, loss=objective)
    assert not torch.equal(student.projection.weight, before)
    assert run.losses[-1] < 0.7 * run.losses[0]


# ---- the bench of the lesson -------------------------------------------------------------------------------


def test_the_ablation_bench_runs_and_goes_on_where_it_stopped(monkeypatch, tmp_path):
    bench = pytest.importorskip("authoring.bench.distill_ablation")
    tokenizer, teacher = models.load_encoder()[1], small_bert(layers=6)
    before = fingerprint(teacher)
    examples = [(f"the film was {word}", i % 2) for i, word in enumerate("good bad fine dull".split())]
    monkeypatch.setattr(finetune, "load_classifier", lambda: (teacher, tokenizer))
    monkeypatch.setattr(data, "reviews", lambda split: examples)
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    for name, value in {"STEPS": 4, "BATCH": 2, "HELDOUT": 3}.items():
        monkeypatch.setattr(bench, name, value)
    trained = []
    train = finetune.train
    monkeypatch.setattr(finetune, "train", lambda *args, **kwargs: trained.append(train(*args, **kwargs)))
    rows = bench.bench()
    assert [(row["what"], row["layers"]) for row in rows] == list(bench.runs())
    assert fingerprint(teacher) == before
    first, *students = rows
    assert first["+-"] is None and all(row["+-"] >= 0 and row["seeds"] == 3 for row in students)
    assert {row["layers"] for row in students} == {2, 3} and all(row["MB"] < first["MB"] for row in students)
    assert sum(run.steps for run in trained) == 4 * 3 * len(students)
    record = records.load(bench.NAME)
    records.save(bench.NAME, {"title": bench.TITLE, "rows": rows[:-1]})  # as if it had been interrupted
    trained.clear()
    again = bench.bench()
    assert len(trained) == 3 and again[:-1] == rows[:-1]
    assert records.load(bench.NAME)["results"]["rows"][-1]["accuracy"] == again[-1]["accuracy"]
    assert record["results"]["rows"] == rows


def test_the_interval_of_the_mean_is_students():
    bench = pytest.importorskip("authoring.bench.distill_ablation")
    found = bench.row("soft answers", 3, [0.80, 0.82, 0.87], 0.0, small_bert())
    # 4.303 standard errors hold 95 % of Student's t with two degrees of freedom (any table of it).
    spread = (0.03**2 + 0.01**2 + 0.04**2) / 2
    assert found["accuracy"] == pytest.approx(83.0)
    assert found["+-"] == pytest.approx(100 * 4.303 * (spread / 3) ** 0.5, rel=1e-3)
