"""A folder with a whole model in the GPTQ format: written, read, and loaded as a model."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from course_utils.errors import named
from course_utils.measure import release_memory
from course_utils.quantize.affine import Scheme
from course_utils.quantize.checkpoint.layers import PARTS, layer_from_tensors, layer_to_tensors
from course_utils.quantize.checkpoint.words import check_format
from course_utils.quantize.gptq import GPTQWeight

# ---- writing ---------------------------------------------------------------------------------------------


def save(
    folder: str | Path,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    weights: dict[str, GPTQWeight],
    *,
    format: str | None = None,
) -> Path:
    """Write a folder that GPTQModel and transformers read: model.safetensors, config.json, tokenizer.

    Written into a folder aside and renamed, so that no half-written checkpoint survives.

    Args:
        folder: where to write; must not exist.
        model: the quantized model; layers that are not in `weights` are stored as they are.
        tokenizer: the model's.
        weights: from `gptq.quantize_model(keep=...)`, by full name.
        format: "gptq" or "gptq_v2"; by default version 1 for symmetric weights (every reader knows it),
            version 2 for asymmetric ones (it can hold a zero point of 0).

    Returns:
        The folder.

    Raises:
        FileExistsError: when the folder exists.
        ValueError: for another format, and when the format cannot hold the weights.
    """
    folder = Path(folder)
    scheme, act_order = _one_scheme(weights)
    format = format or ("gptq" if scheme.symmetric else "gptq_v2")
    check_format(format)
    if folder.exists():
        raise FileExistsError(f"{folder} exists: name another folder, or remove it first")
    tensors = _plain_tensors(model, weights)
    for name, weight in weights.items():
        with named(name):
            parts = layer_to_tensors(weight, format)
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
        release_memory(garbage=False)  # packing leaves holes: 240 MB of them for SmolLM2

    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        save_file(tensors, aside / "model.safetensors", metadata={"format": "pt"})
        settings = quantization_config(scheme, act_order, format)
        config = model.config.to_dict() | {"quantization_config": settings}
        _write_json(aside / "config.json", config)
        _write_json(aside / "quantize_config.json", settings)  # what AutoGPTQ looks for
        model.generation_config.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        os.chmod(aside, 0o755)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def quantization_config(scheme: Scheme, act_order: bool, format: str) -> dict:
    """The settings that stand in config.json; loaders decide by them how to read the tensors.

    Args:
        scheme: of all layers.
        act_order: whether columns were rounded by their activations (desc_act).
        format: "gptq" (version 1) or "gptq_v2".

    Returns:
        What can be written as JSON.
    """
    return {
        "quant_method": "gptq",
        "bits": scheme.bits,
        "group_size": scheme.group or -1,
        "sym": scheme.symmetric,
        "desc_act": act_order,
        "checkpoint_format": format,
        "pack_dtype": "int32",
        "lm_head": False,
        "damp_percent": 0.01,
        # GPTQModel reads asymmetric version 1 only from itself: other writers used to pack it differently.
        "meta": {"quantizer": ["llm-inference-course:0.1.0"]},
    }


def _one_scheme(weights: dict[str, GPTQWeight]) -> tuple[Scheme, bool]:
    """The scheme that all layers share, and whether columns were reordered. ValueError if there is none."""
    schemes = {weight.scheme for weight in weights.values()}
    if len(schemes) != 1:
        raise ValueError(f"one scheme for all layers is needed, got {len(schemes)}")
    (scheme,) = schemes
    if scheme.bits not in (2, 3, 4, 8):
        raise ValueError(f"the format holds 2, 3, 4 or 8 bits, not {scheme.bits}")
    if scheme.symmetric and not scheme.full_range:
        raise ValueError("the format's symmetric grid uses all integers: Scheme(full_range=True)")
    return scheme, any(bool((weight.g_idx.diff() < 0).any()) for weight in weights.values())


def _plain_tensors(model: nn.Module, weights: dict[str, GPTQWeight]) -> dict[str, Tensor]:
    """What is stored unquantized: everything else, a tied output layer only once."""
    tensors, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if name.removesuffix(".weight") in weights or tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        tensors[name] = tensor.detach().cpu().contiguous()
    return tensors


def _write_json(path: Path, content: dict) -> None:
    """Write JSON with sorted keys; what JSON does not know is written as a string."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True, default=str) + "\n")


# ---- reading ---------------------------------------------------------------------------------------------


def read(folder: str | Path) -> tuple[dict[str, GPTQWeight], dict[str, Tensor]]:
    """Read a GPTQ checkpoint by any writer.

    Args:
        folder: with config.json and *.safetensors.

    Returns:
        The quantized layers by name, and all other tensors by name.

    Raises:
        ValueError: when the folder holds no GPTQ checkpoint, or one of a kind not known here.
    """
    folder = Path(folder)
    settings = _settings(folder)
    group = None if settings["group_size"] == -1 else settings["group_size"]
    with named(f"{folder}: quantization settings"):
        scheme = Scheme(settings["bits"], group, symmetric=bool(settings.get("sym", True)))
    format = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    tensors = _all_tensors(folder)
    names = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    if not names:
        raise ValueError(f"{folder} holds no quantized layer (no tensor named *.qweight)")
    # Without act-order the groups are neighbours, and some writers leave g_idx out.
    needed = PARTS if settings.get("desc_act") else [part for part in PARTS if part != "g_idx"]
    weights = {}
    for name in names:
        missing = [part for part in needed if f"{name}.{part}" not in tensors]
        if missing:
            raise ValueError(f"{folder}: layer {name} has no {missing[0]}")
        parts = {part: tensors.pop(f"{name}.{part}") for part in PARTS if f"{name}.{part}" in tensors}
        with named(f"{folder}: layer {name}"):
            weights[name] = layer_from_tensors(parts, scheme, format)
    return weights, tensors


def load(
    folder: str | Path, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a GPTQ checkpoint by any writer, with its weights dequantized. Needs no GPTQ library.

    Args:
        folder: with config.json, *.safetensors and a tokenizer.
        dtype: of the model's weights.

    Returns:
        (model, tokenizer), the model in eval mode.

    Raises:
        ValueError: as `read`, and when a tensor is missing, or there is no place for one.
    """
    weights, tensors = read(folder)
    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):  # shapes and names, no memory
        shell = AutoModelForCausalLM.from_config(config, dtype=dtype)
    shell.tie_weights()
    _check_names(folder, shell, weights, tensors)
    state = {name: tensors[name] for name in tensors.keys() & shell.state_dict().keys()}
    for name in list(weights):  # one layer at a time: the whole model is never held twice
        state[f"{name}.weight"] = weights.pop(name).dequantize()
    model = type(shell).from_pretrained(None, config=config, state_dict=state, dtype=dtype)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def _check_names(
    folder: Path, model: nn.Module, weights: dict[str, GPTQWeight], tensors: dict[str, Tensor]
) -> None:
    """Refuse a checkpoint that does not fill the model, tensor by tensor: ValueError."""
    modules, state = dict(model.named_modules()), model.state_dict(keep_vars=True)  # tied: the same object
    plain = {id(state[name]): name for name in tensors if name in state}
    for name, weight in weights.items():
        layer = modules.get(name)
        if not isinstance(layer, nn.Linear) or layer.weight.shape != weight.q.shape:
            raise ValueError(f"{folder}: {type(model).__name__} has no linear layer {name} "
                             f"{list(weight.q.shape)} to put the quantized one into")
        if id(layer.weight) in plain:
            raise ValueError(f"{folder}: {name} is quantized, and it is tied to the tensor "
                             f"{plain[id(layer.weight)]} of the same file")
    for name, tensor in tensors.items():
        # AutoGPTQ writes a bias of zeros for each layer, and old files hold tables that are computed today.
        spare = name.endswith(("inv_freq", "masked_bias", "attn.bias")) or not tensor.count_nonzero()
        if name in state and state[name].shape != tensor.shape:
            raise ValueError(f"{folder}: {name} is {list(tensor.shape)}, the model needs "
                             f"{list(state[name].shape)}")
        if name not in state and not spare:
            raise ValueError(f"{folder}: {type(model).__name__} has no place for the tensor {name}")
    given = {f"{name}.weight" for name in weights} | tensors.keys()
    shared = {id(state[name]) for name in given if name in state}  # tied weights: one name is enough
    absent = [name for name, tensor in state.items() if name not in given and id(tensor) not in shared]
    if absent:
        raise ValueError(f"{folder} has no tensor {absent[0]}")


def _settings(folder: Path) -> dict:
    """The quantization settings of a folder. ValueError when it is no GPTQ checkpoint known here."""
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} holds no config.json")
    settings = _read_json(file).get("quantization_config")
    if settings is None:
        file = folder / "quantize_config.json"
        if not file.is_file():
            raise ValueError(f"{folder} is no GPTQ checkpoint: config.json does not say how")
        settings = _read_json(file)
    if settings.get("quant_method", "gptq") != "gptq":
        raise ValueError(f"{folder} was quantized by {settings['quant_method']!r}, not by gptq")
    for key in ("bits", "group_size"):
        if not isinstance(settings.get(key), int):
            raise ValueError(f"{file} does not say {key} as a whole number")
    if settings["bits"] not in (2, 3, 4, 8):
        raise ValueError(f"{file} says {settings['bits']} bits; the format holds 2, 3, 4 or 8")
    if settings.get("pack_dtype", "int32") != "int32":
        raise ValueError(f"{file} packs into {settings['pack_dtype']}; only int32 can be read here")
    if settings.get("dynamic"):
        raise ValueError(f"{file} has settings for single layers (dynamic), which cannot be read here")
    return settings


def _all_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder by name. ValueError when a file is damaged or missing.

    Which *.safetensors files count: those that an index lists; else model.safetensors; else all (AutoGPTQ
    names its one file otherwise).
    """
    files = sorted(folder.glob("*.safetensors"))
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        files = [folder / name for name in sorted(set(_read_json(indices[0]).get("weight_map", {}).values()))]
    elif folder / "model.safetensors" in files:
        files = [folder / "model.safetensors"]
    if not files:
        raise ValueError(f"{folder} holds no *.safetensors file")
    tensors = {}
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file} is missing, and {indices[0].name} lists it")
        try:
            with safe_open(file, "pt") as opened:
                tensors |= {name: opened.get_tensor(name) for name in opened.keys()}
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged: {error}") from None
    return tensors


def _read_json(path: Path) -> dict:
    """An object from a JSON file. ValueError when there is none in it."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content
