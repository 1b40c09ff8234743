"""Every engine on the same prompt and the same text, each as a process: one table."""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from course_utils.engines import agreement, environment, export, process
from course_utils.engines.entry import Engine, Variant
from course_utils.engines.environment import is_installed
from course_utils.engines.process import Answer, EngineUnavailable
from course_utils.engines.registry import VARIANTS, find

REFERENCE = "torch FP32"  # agreement is agreement with this one


def installed(names: Iterable[str] | None = None) -> list[str]:
    """Those of the variants (default: all) that can run now."""
    return [name for name in names or VARIANTS if not isinstance(_loads(name, None), EngineUnavailable)]


def measure_all(
    names: Sequence[str], prompt: Sequence[int], new_tokens: int, score: Sequence[int], threads: int = 1,
    repeats: int = 3, timeout: float = 300, model: str | Path | None = None, batch: int = 1,
    window: int | None = None,
) -> list[dict]:
    """A row for each variant: speed, memory, size and agreement with FP32. Shows progress.

    Args:
        names: out of `VARIANTS`. The reference runs first, whether it is among them or not.
        prompt: token ids that are read before anything is written.
        new_tokens: ids to write, 2 or more.
        score: token ids of an ordinary text; agreement is measured at each of its positions.
        threads: for the engine.
        repeats: of the timed part, after one warm-up.
        timeout: seconds for each engine.
        model: folder of the model (default: the embedded one).
        batch: sequences side by side, all with this prompt; rates count the tokens of all of them.
        window: tokens of `score` that are read at once, each window without those before; None: all.

    Returns:
        Rows with the same keys, None where there is no figure: "engine", "bits", "activation bits", "group",
        "load (s)", "disk (MB)", "read (MB)" (weights that one step reads), "resident (MB)", "peak (MB)",
        "prefill (tokens/s)", "decode (tokens/s)", "decode (tokens/CPU s)", "top-1 match" (0 to 1), "KL
        (nats)", "top-1 by window" and "KL by window" (lists of them), "same text" (greedy text equal to the
        reference's), "note" (why there is no figure, and what installs the engine), "threads", "batch".

    Raises:
        ValueError: there is no variant of such a name.
    """
    for name in names:
        _variant(name)
    prompt, score = ([int(token) for token in ids] for ids in (prompt, score))
    request = {"prompt": prompt, "new_tokens": new_tokens, "score": score, "threads": threads,
               "repeats": repeats, "batch": batch, "window": window}
    answers, rows = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        order = [REFERENCE, *(name for name in names if name != REFERENCE)]
        bar = tqdm(order, desc="Engines", unit=" engines")
        for name in bar:
            bar.set_postfix_str(name)
            file = Path(folder) / f"{len(rows)}.npy"
            answers[name] = call(name, request | {"logits_file": str(file)}, timeout, model)
            rows[name] = _row(name, answers[name], file, answers[REFERENCE], Path(folder) / "0.npy",
                              window or len(score))
            rows[name] |= {"threads": threads, "batch": batch}
            if len(rows) > 1:
                file.unlink(missing_ok=True)
    return [rows[name] for name in names]


def call(
    name: str, request: dict, timeout: float = 300, model: str | Path | None = None
) -> Answer | EngineUnavailable:
    """Run one variant's worker.

    Args:
        name: out of `VARIANTS`.
        request: as in shared/protocol.py, without what the variant itself says.
        timeout: seconds.
        model: folder of the model (default: the embedded one).

    Returns:
        The worker's answer, or why there is none.

    Raises:
        ValueError: there is no variant of that name.
    """
    loads = _loads(name, model)
    if isinstance(loads, EngineUnavailable):
        return loads
    variant = _variant(name)
    request = {"task": "measure", "folder": str(loads), "options": variant.options} | request
    return process.run(_engine(variant), request, timeout)


def _variant(name: str) -> Variant:
    if name not in VARIANTS:
        raise ValueError(f"no engine {name!r} in the table; known: {', '.join(VARIANTS)}")
    return VARIANTS[name]


def _engine(variant: Variant) -> Engine:
    return find(variant.engine)


def _loads(name: str, model: str | Path | None) -> Path | EngineUnavailable:
    """The folder that the variant loads."""
    from course_utils import models

    variant = _variant(name)
    engine = _engine(variant)
    missing = EngineUnavailable(name, "missing", f"not installed. Install it with: {engine.how_to_install}")
    if engine.gpu and not environment.has_gpu():
        return EngineUnavailable(name, "missing", "not available here because there is no NVIDIA GPU.")
    if not is_installed(engine):
        return missing
    if variant.loads == "model":
        return Path(model or models.embedded_lm())
    if variant.loads == "gguf":
        return models.embedded_gguf().parent
    folder = export.prepared(find(variant.loads), model)
    return folder / variant.part if folder else missing


def _row(
    name: str, answer: Answer | EngineUnavailable, file: Path, reference: Answer | EngineUnavailable,
    reference_file: Path, window: int,
) -> dict:
    """The table's row of an answer; `file` and `reference_file` hold the two texts' logits."""
    variant = VARIANTS[name]
    row = {"engine": name, "bits": variant.bits, "activation bits": variant.activation_bits,
           "group": variant.group} | dict.fromkeys(
        ["load (s)", "disk (MB)", "read (MB)", "resident (MB)", "peak (MB)", "prefill (tokens/s)",
         "decode (tokens/s)", "decode (tokens/CPU s)", "top-1 match", "KL (nats)", "top-1 by window",
         "KL by window", "same text"])  # fmt: skip
    row["note"] = ""
    if not answer:
        return row | {"note": answer.details}
    found = answer.values
    row |= {
        "load (s)": found["load_seconds"], "disk (MB)": found["disk_bytes"] / 1e6,
        "read (MB)": found["read_bytes"] / 1e6,
        "resident (MB)": found["resident_bytes"] / 1e6, "peak (MB)": found["peak_bytes"] / 1e6,
        "prefill (tokens/s)": found["prefill_rate"], "decode (tokens/s)": found.get("decode_rate"),
        "decode (tokens/CPU s)": found.get("decode_cpu_rate"),
    }  # fmt: skip
    if reference:
        logits, expected = (np.load(each, mmap_mode="r") for each in (file, reference_file))
        pieces = [slice(start, start + window) for start in range(0, len(expected), window)]
        tokens = [len(expected[piece]) for piece in pieces]
        top1 = [agreement.top1_match(logits[piece], expected[piece]) for piece in pieces]
        kl = [agreement.mean_kl(expected[piece], logits[piece]) for piece in pieces]
        row |= {"top-1 match": float(np.average(top1, weights=tokens)),
                "KL (nats)": float(np.average(kl, weights=tokens)),
                "top-1 by window": top1, "KL by window": kl,
                "same text": found["tokens"] == reference.values["tokens"]}
    return row
