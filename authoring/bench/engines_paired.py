"""Our INT4 exports beside llama.cpp's formats: decoding in rounds, each round in another order."""

import random

from course_utils import data, models, records
from course_utils.engines import table

TITLE = "Decoding with 4-bit weights: our exports and llama.cpp's formats, round by round"
OURS = ("ONNX Runtime INT4, groups of 64", "ONNX Runtime INT4")
THEIRS = ("llama.cpp Q4_0", "llama.cpp Q4_1", "llama.cpp Q4_K_M", "ONNX Runtime GenAI INT4")
PROMPT, NEW, ROUNDS, THREADS = 64, 96, 10, 2


def bench() -> list[dict]:
    """Let each write in each round.

    The rounds so far are kept, should it be interrupted.

    Returns:
        A row for each engine: bytes it reads a token, and tokens a second of each round. Round i of all rows
        was measured in the same half minute, so the rows can be compared in pairs.
    """
    _, tokenizer = models.load_lm()
    prompt = data.wikipedia_tokens(tokenizer, "heldout", 4096)[2048 : 2048 + PROMPT].tolist()
    request = {"prompt": prompt, "new_tokens": NEW, "threads": THREADS, "repeats": 1}
    names = [name for name in (*OURS, *THEIRS) if name in table.installed()]
    rows = {name: {"engine": name, "read (MB)": 0.0, "decode (tokens/s)": []} for name in names}
    order = random.Random(0)
    for _ in range(ROUNDS):
        for name in order.sample(names, len(names)):
            answer = table.call(name, request)
            if not answer:
                raise RuntimeError(str(answer))
            rows[name]["read (MB)"] = answer.values["read_bytes"] / 1e6
            rows[name]["decode (tokens/s)"].append(answer.values["decode_rate"])
        records.save("bench_engines_paired", {"title": TITLE, "rows": list(rows.values())})
    return list(rows.values())
