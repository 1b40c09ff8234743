"""The last task: make the language model fit into a byte budget, in few minutes, losing as little as you can.

`check` runs a learner's function on a fresh model, counts the bytes of what it returns, and compares its
perplexity, window by window, with that of the reference entry. `enter` keeps scores in a CSV for a class.
"""

from __future__ import annotations

import csv
import io
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from course_utils import compressed, data, measure, models, records
from course_utils.checking import parts
from course_utils.measure import Comparison, Perplexity
from course_utils.measure.memory import stored_tensors
from course_utils.quantize import packed

BUDGET = 100_000_000  # bytes of weights
SECONDS = 240  # for the function alone
LOOSE_BYTES = 10_000  # a tensor outside of parameters and buffers may take: positions, a mask
CALIBRATION_TOKENS, SCORED_TOKENS, WINDOW = 8192, 4096, 512
SCORED_FROM = 16_384  # held-out tokens before this one scored other things
COLUMNS = ("name", "bytes", "perplexity", "seconds", "nats above the reference", "standard error", "counts")

Compress = Callable[[PreTrainedModel, Tensor], nn.Module]


@dataclass(frozen=True)
class Score:
    """What an entry came to.

    Attributes:
        name: of the entry.
        bytes: of the weights as they are stored (`measure.weight_bytes`).
        seconds: that the function took.
        quality: perplexity on text that the function has not seen.
        against: compared with the reference; None of the reference itself.
    """

    name: str
    bytes: int
    seconds: float
    quality: Perplexity
    against: Comparison | None = field(default=None)

    @property
    def problems(self) -> list[str]:
        """Why the entry does not count: [] where it does."""
        found = []
        if self.bytes > BUDGET:
            found.append(f"{(self.bytes - BUDGET) / 1e6:.1f} MB over the budget of {BUDGET / 1e6:.0f} MB")
        if self.seconds > SECONDS:
            found.append(f"{self.seconds - SECONDS:.0f} s over the limit of {SECONDS} s")
        if not math.isfinite(self.quality.value):
            found.append("its perplexity is no finite number: the model is ruined")
        return found

    def __str__(self) -> str:
        text = (f"{self.name}: {self.bytes / 1e6:.1f} MB in {self.seconds:.0f} s, perplexity "
                f"{self.quality.value:.2f}; {'; '.join(self.problems) or 'it counts'}")
        return text + (f"\n{self.against.sentence(self.name, 'the reference')}" if self.against else "")

    def row(self) -> dict[str, object]:
        """The figures as a row of the leaderboard.

        Returns:
            Column -> value, the columns of `COLUMNS`.
        """
        above = (self.against.difference, self.against.error) if self.against else (0.0, 0.0)
        values = (self.name, self.bytes, self.quality.value, self.seconds, *above, not self.problems)
        return dict(zip(COLUMNS, values, strict=True))


def reference(model: PreTrainedModel, windows: Tensor) -> nn.Module:
    """The entry to beat: round the blocks to 4 bits in groups of 64, the token table to 8 bits.

    Args:
        model: the full model; it may be changed.
        windows: text to calibrate on, int64 [n, 512]; not needed here.

    Returns:
        A model with packed weights.
    """
    packed.replace_linears(model, compressed.INT4, progress=False)
    packed.replace_embedding(model, compressed.INT8)
    return model


def check(compress: Compress, name: str = "mine", against: Score | None = None) -> Score:
    """Run an entry on a fresh model and score it.

    Args:
        compress: takes the full model in FP32, which it may change, and calibration text [n, 512]; returns
            the small one. It must hold its weights as small as they are counted: packed.
        name: of the entry.
        against: what to compare with, the score of `reference`; None: nothing.

    Returns:
        The score.

    Raises:
        TypeError: the function returns no model, or the name is no text.
        ValueError: the name does not fit into a line; the model cannot read the text, holds weights where
            they are not counted, or looks at the tokens that it should predict.
    """
    _check_name(name)
    measure.release_memory()
    model, tokenizer = models.load_lm()
    windows = data.windows(data.wikipedia_tokens(tokenizer, "calibration", CALIBRATION_TOKENS), WINDOW)
    start = time.perf_counter()
    small = compress(model, windows)
    seconds = time.perf_counter() - start
    if not isinstance(small, nn.Module):
        raise TypeError(f"compress must return the model, not {type(small).__name__}")
    del model
    _check_counted(small)
    for parameter in small.parameters():  # lets the full model's file go, which is mapped as a whole
        parameter.data = parameter.data.clone()
    measure.release_memory()
    nbytes = measure.weight_bytes(small).total
    text = data.wikipedia_tokens(tokenizer, "heldout", SCORED_FROM + SCORED_TOKENS)[SCORED_FROM:]
    with torch.inference_mode():
        small = compressed.unpacked(small.eval())
        _check_order(small, text[:WINDOW])
        measure.release_memory()  # of the packed layers
        quality = measure.perplexity(small, text, WINDOW, batch_size=1)
    compared = measure.compare(quality, against.quality) if against else None
    return Score(name, nbytes, seconds, quality, compared)


def recorded() -> list[Score]:
    """The entries that were scored once and recorded (`course bench capstone`), the reference first.

    Returns:
        The scores, each but the reference compared with it; [] before anything was recorded.
    """
    kept = records.load("bench_capstone")
    scores: list[Score] = []
    for row in kept["results"]["rows"] if kept else []:
        quality = Perplexity(**row["result"])
        against = measure.compare(quality, scores[0].quality) if scores else None
        scores.append(Score(row["name"], row["bytes"], row["seconds"], quality, against))
    return scores


def enter(score: Score, path: str | Path) -> pandas.DataFrame:
    """Add a score to a class's leaderboard and show it: those that count first, by perplexity.

    Args:
        score: from `check`.
        path: of the CSV file; it is made when it is missing. An entry of the same name is replaced.

    Returns:
        The leaderboard.

    Raises:
        TypeError: the entry's name is no text.
        ValueError: the file is no leaderboard, its folder is missing, or the name does not fit into a line.
    """
    _check_name(score.name)
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is no folder: make it, or name another file")
    rows = [row for row in read(path) if row["name"] != score.name] + [score.row()]
    rows.sort(key=lambda row: (not row["counts"], math.isnan(row["perplexity"]), row["perplexity"]))
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    with open(aside, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(aside, path)
    return measure.table(rows)


def read(path: str | Path) -> list[dict[str, object]]:
    """The rows of a leaderboard.

    Args:
        path: of the CSV file.

    Returns:
        Its rows; [] when there is no such file.

    Raises:
        ValueError: the file is no leaderboard.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:  # a spreadsheet may have written a mark in front and TRUE for True
        text = path.read_bytes().decode("utf-8-sig") if path.is_file() else "no file"
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header, *rows = [row for row in reader if row] or [COLUMNS]
    except (UnicodeDecodeError, csv.Error):
        header, rows = (), []
    if tuple(header) != COLUMNS:
        raise ValueError(f"{path} is no leaderboard of this task: name another file.")
    try:
        return [_row(dict(zip(COLUMNS, row, strict=True))) for row in rows]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} has a damaged row ({error}): mend or remove it.") from error


# ---- inside ------------------------------------------------------------------------------------------------


def _row(cells: dict[str, str]) -> dict[str, object]:
    """A row of the file with its types."""
    return {"name": cells["name"], "bytes": int(cells["bytes"]),
            **{column: float(cells[column]) for column in COLUMNS[2:-1]},
            "counts": {"true": True, "false": False}[cells["counts"].lower()]}  # fmt: skip


def _check_name(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"the name of an entry must be a text, not {name!r}")
    if not name or not name.isprintable() or name != name.strip() or name[0] in "=+-@":
        raise ValueError(f"{name!r} is no name for an entry: take one line, no spaces at its ends and no "
                         "=, +, - or @ in front, which a spreadsheet takes for a formula")  # fmt: skip


def _check_counted(model: nn.Module) -> None:
    """Refuse tensors that `measure.weight_bytes` does not see: plain attributes, alone or in containers."""
    counted = {stored.untyped_storage().data_ptr() for weight in (*model.parameters(), *model.buffers())
               for stored in stored_tensors(weight)}  # fmt: skip
    for name, module in model.named_modules():
        hidden = {key: value for key, value in vars(module).items()
                  if key not in ("_parameters", "_buffers", "_modules")}  # fmt: skip
        for place, part in parts.parts(hidden, name or "the model"):
            if isinstance(part, Tensor) and part.untyped_storage().data_ptr() in counted:
                continue  # such as what bitsandbytes keeps beside a parameter
            if isinstance(part, Tensor | np.ndarray) and part.nbytes > LOOSE_BYTES:
                raise ValueError(f"{place} holds {part.nbytes / 1e6:.1f} MB that are not counted: make it a "
                                 "buffer, with register_buffer")  # fmt: skip


def _check_order(model: nn.Module, text: Tensor) -> None:
    """Refuse a model whose scores depend on tokens behind them."""
    other = text.clone()
    half = len(text) // 2
    other[half:] = text[half:].flip(0)
    device = next(model.parameters()).device
    scores, moved = (model(input_ids=ids[None].to(device)).logits[0, :half].float() for ids in (text, other))
    if (scores - moved).abs().max() > 1e-3 * scores.std():
        raise ValueError("the model looks at later tokens, which it should predict: give it a causal mask")
