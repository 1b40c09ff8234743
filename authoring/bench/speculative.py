"""What speculative decoding gains: our loop, transformers and llama.cpp, each against itself without a draft.

Eight passages of held-out text, each once as it is and once with its beginning repeated, so that the model
copies. A row is one passage; the lesson compares the times of the same passages.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from course_utils import data, engines, measure, models, speculative
from course_utils.engines import process
from course_utils.errors import CourseError
from course_utils.prune import depth
from course_utils.speculative import ModelDraft, PromptLookup

TITLE = "SmolLM2, 48 tokens written greedily: with and without a draft, in three programs"
PASSAGES, PROMPT, REPEATED, NEW, COUNT, LONGEST, BLOCKS, REPEATS = 8, 96, 24, 48, 4, 3, 3, 2
NO_DRAFT, LOOKUP, SHORTER = "no draft", "prompt lookup", "3 blocks fewer"
DRAFTS = (NO_DRAFT, LOOKUP, SHORTER)


def bench() -> list[dict]:
    """Write after each prompt by each program with each draft.

    Returns:
        A row for each, with its seconds (the fastest of a few), and what became of the drafted tokens.

    Raises:
        CourseError: the engine llamacpp is not installed, or it failed.
    """
    model, tokenizer = models.load_lm()
    text = data.windows(data.wikipedia_tokens(tokenizer, "heldout", PASSAGES * 1024), 1024)[:, :PROMPT]
    calibration = data.windows(data.wikipedia_tokens(tokenizer, "calibration", 2 * 1024), 1024)[:, :256]
    removed = depth.influences(model, calibration).argsort(stable=True).tolist()[:BLOCKS]
    prompts = {("repeats", i): torch.cat([row, row[:REPEATED]]) for i, row in enumerate(text)}
    prompts |= {("does not repeat", i): row for i, row in enumerate(text)}
    rows = _in_torch(model, speculative.shorter(model, removed), prompts)
    rows += _in_llamacpp(removed, prompts)
    plain = {(row["program"], row["text"], row["passage"]): row for row in rows if row["draft"] == NO_DRAFT}
    for row in rows:
        like = plain[row["program"], row["text"], row["passage"]]
        row["times as fast"] = like["seconds"] / row["seconds"]
        row["same"] = row.pop("written") == like["written"] if row is not like else True
    for row in plain.values():
        row.pop("written")
    return rows


def _in_torch(model: PreTrainedModel, short: PreTrainedModel, prompts: dict) -> list[dict]:
    """Our loop and transformers, in turns."""
    config = short.generation_config
    config.num_assistant_tokens_schedule, config.num_assistant_tokens = "constant", COUNT
    config.assistant_confidence_threshold = 0
    vocabulary = model.config.vocab_size
    makers = {NO_DRAFT: lambda: None, LOOKUP: lambda: PromptLookup(vocabulary, LONGEST),
              SHORTER: lambda: ModelDraft(short)}
    arguments = {NO_DRAFT: {}, SHORTER: {"assistant_model": short},
                 LOOKUP: {"prompt_lookup_num_tokens": COUNT, "max_matching_ngram_size": LONGEST}}

    def library(ids: torch.Tensor, draft: str) -> list[int]:
        texts = model.generate(ids[None], attention_mask=torch.ones_like(ids[None]), max_new_tokens=NEW,
                               min_new_tokens=NEW, do_sample=False, pad_token_id=0, **arguments[draft])
        return texts[0, len(ids) :].tolist()

    rows = []
    for (kind, i), ids in tqdm(prompts.items(), desc="prompts"):
        named = {"text": kind, "passage": i}
        best: dict[tuple, dict] = {}
        for _ in range(REPEATS):
            for draft in DRAFTS:
                run = speculative.generate(model, makers[draft](), ids, NEW, COUNT)
                ours = {"seconds": run.seconds, "drafted": run.drafted, "accepted": run.accepted,
                        "written": run.tokens}
                found: list = []
                seconds = measure.latency(_keeping(found, library, ids, draft), warmup=0, repeats=1).fastest
                theirs = {"seconds": seconds, "drafted": None, "accepted": None, "written": found[0]}
                for program, row in (("ours", ours), ("transformers", theirs)):
                    key = program, draft
                    if key not in best or row["seconds"] < best[key]["seconds"]:
                        best[key] = {"program": program, "draft": draft} | named | row
        rows += best.values()
    return rows


def _keeping(found: list, function: Callable, *arguments: object) -> Callable[[], None]:
    """A call without arguments that keeps what it returns."""
    return lambda: found.append(function(*arguments))


def _in_llamacpp(removed: Sequence[int], prompts: dict) -> list[dict]:
    """llama.cpp's own server, one process for each draft."""
    engine = dataclasses.replace(engines.find("llamacpp"), script="llamacpp_speculative.py")
    rows = []
    with TemporaryDirectory() as folder:
        whole, short = models.embedded_gguf(), Path(folder) / "shorter.gguf"
        write_shorter_gguf(whole, removed, short)
        for draft, more in {NO_DRAFT: {}, LOOKUP: {"ngram": LONGEST}, SHORTER: {"draft": str(short)}}.items():
            answer = process.run(engine, {
                "model": str(whole), "prompts": [ids.tolist() for ids in prompts.values()], "new_tokens": NEW,
                "count": COUNT, "threads": torch.get_num_threads(), "repeats": REPEATS} | more, timeout=600)
            if not answer:
                raise CourseError(str(answer))
            for (kind, i), found in zip(prompts, answer.values["prompts"], strict=True):
                rows.append({"program": "llama.cpp", "draft": draft, "text": kind, "passage": i} | found)
    return rows


def write_shorter_gguf(source: Path, removed: Sequence[int], target: Path) -> None:
    """Copy a GGUF file without some blocks; every tensor stays as it is stored.

    Args:
        source: the file.
        removed: numbers of the blocks to leave out.
        target: the new file.
    """
    import gguf

    reader = gguf.GGUFReader(source)
    kind = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, kind)
    blocks = reader.fields[f"{kind}.block_count"].contents()
    numbers = {old: new for new, old in enumerate(i for i in range(blocks) if i not in set(removed))}
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value = len(numbers) if field.name == f"{kind}.block_count" else field.contents()
        element = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, value, field.types[0], element)
    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            if int(parts[1]) not in numbers:
                continue
            parts[1] = str(numbers[int(parts[1])])
        writer.add_tensor(".".join(parts), tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
