"""The article's table, measured: every kind of small model of the course beside the full one.

For each: bytes, peak memory, seconds to make it, time to read a prompt and to write a token beside FP32 in
rounds, perplexity on 16,384 held-out tokens with its windows, divergence from FP32, last words guessed.
"""

import multiprocessing
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from authoring.bench import resume
from course_utils import compressed, costs, data, measure, models, records

TITLE = "SmolLM2 before and after: 16,384 held-out tokens, memory, speed beside FP32 in rounds"
HELDOUT_TOKENS, WINDOW = 16_384, 512
KL_TOKENS, PASSAGES = 1024, 128
PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 64, 4, 4
# Perplexities that other benches measured on the same text, of models made in the same way.
RECORDED = {
    "FP32": ("ptq_ranking", {"method": "FP32"}),
    "BF16": ("formats_ranking", {"format": "BF16"}),
    "INT8": ("ptq_ranking", {"method": "INT8, a scale a row"}),
    "INT8, bitsandbytes": ("ptq_ranking", {"method": "LLM.int8(), bitsandbytes"}),
    "NF4, bitsandbytes": ("ptq_ranking", {"method": "NF4, bitsandbytes"}),
    "INT4, GPTQ": ("weight_only_ranking", {"method": "GPTQ, damping 0.01", "bits": 4}),
    "INT4, AWQ": ("weight_only_ranking", {"method": "AWQ scale + clip", "bits": 4}),
    "pruned: half zeros": ("pruning_ranking", {"method": "SparseGPT", "sparsity": "50 %"}),
    "pruned: 27 blocks": ("healing", {"what": "3 blocks fewer"}),
    "distilled: 27 blocks": ("healing", {"what": "forward KL"}),
}
# Models of the same shapes in the same formats read the same bytes: speed and memory are measured once.
SAME_SHAPES = {"INT4, AWQ": "INT4, GPTQ", "pruned: half zeros": "FP32", "merged": "FP32",
               "distilled: 27 blocks": "pruned: 27 blocks"}  # fmt: skip
PHYSICAL = ("peak (MB)", "process without it (MB)", "prefill (s)", "decode (s)", "prefill (s) of FP32",
            "decode (s) of FP32")  # fmt: skip


def bench() -> list[dict]:
    """Make each model of the table and measure it.

    Returns:
        One row for each.
    """
    runs = {(name,): {"what": name} for name in compressed.RECIPES}
    return resume("bench_before_after", TITLE, runs, _measure)


def _measure(name: str) -> dict:
    measure.release_memory()
    made = compressed.make(name)
    if name == "combined":
        compressed.load(name, made.model)  # the lesson starts from it
    full, tokenizer = models.load_lm()
    row = {"seconds to make": made.seconds, "parameters": costs.parameter_count(made.model.config),
           "weights (MB)": measure.weight_bytes(made.model).total / 1e6}
    row |= _physical(name, made.model, full, tokenizer)
    model = compressed.unpacked(made.model)
    heldout = data.wikipedia_tokens(tokenizer, "heldout", HELDOUT_TOKENS)
    passages = measure.last_words(tokenizer, data.wikipedia_texts("heldout"), PASSAGES)
    return row | {
        "likeness": asdict(measure.likeness(model, full, heldout[:KL_TOKENS])),
        "last words": asdict(measure.last_word_accuracy(model, passages)),
        **_perplexity(name, model, heldout),
    }


def _perplexity(name: str, model: nn.Module, heldout: Tensor) -> dict:
    """From the record that has it, else measured: seconds are better spent on what nobody measured yet."""
    if name in RECORDED:
        record, keys = RECORDED[name]
        rows = records.load(f"bench_{record}")["results"]["rows"]
        result = next(row["result"] for row in rows if keys.items() <= row.items())
        return {"result": result, "result from": f"bench_{record}"}
    return {"result": asdict(measure.perplexity(model, heldout, WINDOW)), "result from": "this bench"}


def _physical(name: str, model: nn.Module, full: nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict:
    """Memory and speed."""
    if name in SAME_SHAPES:
        rows = records.load("bench_before_after")["results"]["rows"]
        other = next(row for row in rows if row["what"] == SAME_SHAPES[name])
        return {column: other[column] for column in PHYSICAL} | {"speed and memory from": SAME_SHAPES[name]}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pt"
        compressed.save(model, file)  # before the first run, which changes what bitsandbytes holds
        memory = _in_another_process(file)
    return memory | _speeds(model, full, tokenizer) | {"speed and memory from": name}


def _speeds(model: nn.Module, full: nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict:
    """Medians of each round, the model and FP32 in turns."""
    found: dict[str, list[float]] = {f"{phase} (s){of}": [] for of in ("", " of FP32")
                                     for phase in ("prefill", "decode")}
    for _ in range(ROUNDS):
        for each, of in ((full, " of FP32"), (model, "")):
            speed = measure.generation_speed(each, tokenizer, PROMPT_TOKENS, NEW_TOKENS, repeats=1)
            found[f"prefill (s){of}"].append(speed.prefill.median)
            found[f"decode (s){of}"].append(speed.decode.median)
    return found


def _in_another_process(file: Path) -> dict:
    """Memory of a fresh process that loads the model and writes some tokens."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_memory, (str(file), torch.get_num_threads()))


def _memory(file: str, threads: int) -> dict:
    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(models.embedded_lm())
    with measure.peak_memory() as peak:
        model = compressed.read(Path(file))
        measure.generation_speed(model, tokenizer, PROMPT_TOKENS, NEW_TOKENS, repeats=1)
    return {"peak (MB)": peak.peak / 1e6, "process without it (MB)": peak.start / 1e6}
