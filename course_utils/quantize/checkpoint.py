"""The GPTQ checkpoint format: what GPTQModel, AutoGPTQ and transformers write and read.

A quantized linear layer [out, in] is stored as four tensors in place of its weight:

    qweight  int32   [in * bits / 32, out]     integers, packed along `in`, the first in the lowest bits
    qzeros   int32   [groups, out * bits / 32] zero points, packed along `out`
    scales   float16 [groups, out]
    g_idx    int32   [in]                      the group of each input

All integers are unsigned: a symmetric grid -8 ... 7 is stored as 0 ... 15 with zero point 8.
weight[o, i] = scales[g_idx[i], o] * (q[i, o] - zero[g_idx[i], o])

Two conventions for zero points are in use. Version 1 ("gptq") stores zero - 1, a slip of the first tools that
every reader of the format now undoes; version 2 ("gptq_v2") stores zero itself. Symmetric 4-bit words of
qzeros are 0x77777777 in version 1 and 0x88888888 in version 2.
Sources: AutoGPTQ 0.7.1 nn_modules/qlinear/qlinear_cuda_old.py; GPTQModel 7.6.0
nn_modules/qlinear/__init__.py, utils/model.py (convert_gptq_v1_to_v2_format_module).
"""

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
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from course_utils.quantize import packed
from course_utils.quantize.affine import Scheme
from course_utils.quantize.gptq import GPTQWeight

FORMATS = ("gptq", "gptq_v2")
PARTS = ("qweight", "qzeros", "scales", "g_idx")


# ---- words of 32 bits ------------------------------------------------------------------------------------


def pack_nibbles(values: Tensor) -> Tensor:
    """Pack eight 4-bit integers into each int32 word, the first into the lowest four bits.

    values: integers [8 * n, columns] from 0 to 15. Returns int32 [n, columns]: rows 0 ... 7 of `values` make
    row 0 of the result. A word whose last integer is 8 or more has its highest bit set: it is negative.
    """
    eight = values.long().reshape(-1, 8, values.shape[1])
    shifts = 4 * torch.arange(8).reshape(1, 8, 1)
    return (eight << shifts).sum(dim=1).to(torch.int32)


def unpack_nibbles(words: Tensor) -> Tensor:
    """The 4-bit integers that `pack_nibbles` put into words: int32 [n, columns] -> uint8 [8 * n, columns]."""
    shifts = 4 * torch.arange(8).reshape(1, 8, 1)
    eight = (words.long().unsqueeze(1) >> shifts) & 15
    return eight.reshape(-1, words.shape[1]).to(torch.uint8)


def pack_words(values: Tensor, bits: int) -> Tensor:
    """Like `pack_nibbles` for 2, 3, 4 or 8 bits: integers [n, columns] -> int32 [n * bits / 32, columns].

    3-bit integers follow each other without gaps, 32 of them in three words.
    Raises ValueError when n * bits is no multiple of 32.
    """
    if len(values) * bits % 32:
        raise ValueError(f"{len(values)} integers of {bits} bits do not fill whole 32-bit words")
    if bits == 4:
        return pack_nibbles(values)
    return packed.pack(values.T, bits).view(torch.int32).T.contiguous()


def unpack_words(words: Tensor, bits: int) -> Tensor:
    """What `pack_words` packed: int32 [n, columns] -> uint8 [32 * n / bits, columns]."""
    if bits == 4:
        return unpack_nibbles(words)
    rows = words.T.contiguous().view(torch.uint8)
    return packed.unpack(rows, bits, len(words) * 32 // bits).T.contiguous()


def zeros_to_words(zero: Tensor, bits: int, format: str) -> Tensor:
    """Zero points [groups, out], whole numbers from 0, as the words of `qzeros`.

    Raises ValueError for a zero point of 0 in version 1, which would have to be stored as -1: readers
    disagree about what that means.
    """
    _check_format(format)
    if format == "gptq" and bool((zero < 1).any()):
        raise ValueError('a zero point is 0: version 1 of the format cannot hold it, use format="gptq_v2"')
    stored = zero - 1 if format == "gptq" else zero
    return pack_words(stored.T.long(), bits).T.contiguous()


def zeros_from_words(words: Tensor, bits: int, format: str) -> Tensor:
    """The zero points [groups, out] in words of `qzeros`, uint8."""
    _check_format(format)
    stored = unpack_words(words.T.contiguous(), bits).T
    return (stored + 1) & (2**bits - 1) if format == "gptq" else stored


# ---- one layer -------------------------------------------------------------------------------------------


def layer_to_tensors(weight: GPTQWeight, format: str = "gptq") -> dict[str, Tensor]:
    """The four tensors of one layer, by their names in the file, on the CPU."""
    scheme = weight.scheme
    shift = -scheme.qmin  # symmetric integers are stored without a sign
    return {
        "qweight": pack_words((weight.q.cpu().int() + shift).T, scheme.bits),
        "qzeros": zeros_to_words((weight.zero.cpu() + shift).T, scheme.bits, format),
        "scales": weight.scale.cpu().T.to(torch.float16).contiguous(),
        "g_idx": weight.g_idx.cpu().to(torch.int32).clone(),  # q, k and v share one tensor
    }


def layer_from_tensors(tensors: dict[str, Tensor], scheme: Scheme, format: str) -> GPTQWeight:
    """The layer that the four tensors stand for, on the unsigned grid if the scheme is asymmetric.

    Raises ValueError when the shapes do not belong together.
    """
    q = unpack_words(tensors["qweight"], scheme.bits)
    zero = zeros_from_words(tensors["qzeros"], scheme.bits, format)
    scale, g_idx = tensors["scales"].float(), tensors["g_idx"]
    if len(g_idx) != len(q) or zero.shape != scale.shape or scale.shape[1] != q.shape[1]:
        raise ValueError(f"shapes that do not fit: integers {list(q.shape)}, zero points {list(zero.shape)}, "
                         f"scales {list(scale.shape)}, g_idx {list(g_idx.shape)}")
    if len(g_idx) and not 0 <= int(g_idx.min()) <= int(g_idx.max()) < len(scale):
        raise ValueError(f"g_idx names group {int(g_idx.max())} of {len(scale)}")
    kind = torch.int8 if scheme.symmetric else torch.uint8
    q = (q.T.to(torch.int16) + scheme.qmin).to(kind)
    return GPTQWeight(q, scale.T.contiguous(), zero.T.float() + scheme.qmin, g_idx, scheme, damping=0.0)


# ---- a whole model ---------------------------------------------------------------------------------------


def save(
    folder: str | Path,
    model: nn.Module,
    tokenizer,
    weights: dict[str, GPTQWeight],
    *,
    format: str | None = None,
) -> Path:
    """Write a folder that GPTQModel and transformers read: model.safetensors, config.json, tokenizer.

    model: the quantized model; layers that are not in `weights` are stored as they are.
    weights: from `gptq.quantize_model(keep=...)`, by full name.
    format: "gptq" or "gptq_v2"; by default version 1 for symmetric weights (every reader knows it), version 2
    for asymmetric ones (it can hold a zero point of 0).
    Written into a folder aside and renamed, so that no half-written checkpoint survives. Returns the folder.
    Raises FileExistsError when the folder exists.
    """
    folder = Path(folder)
    scheme, act_order = _one_scheme(weights)
    format = format or ("gptq" if scheme.symmetric else "gptq_v2")
    _check_format(format)
    if folder.exists():
        raise FileExistsError(f"{folder} exists: name another folder, or remove it first")
    tensors = _plain_tensors(model, weights)
    for name, weight in weights.items():
        tensors |= {f"{name}.{part}": tensor for part, tensor in layer_to_tensors(weight, format).items()}

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
    """The settings that stand in config.json; loaders decide by them how to read the tensors."""
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


def read(folder: str | Path) -> tuple[dict[str, GPTQWeight], dict[str, Tensor]]:
    """The quantized layers by name, and all other tensors by name, of a GPTQ checkpoint by any writer.

    Raises ValueError when the folder holds no GPTQ checkpoint, or one of a kind not known here.
    """
    folder = Path(folder)
    settings = _settings(folder)
    scheme = Scheme(settings["bits"], None if settings["group_size"] == -1 else settings["group_size"],
                    symmetric=bool(settings.get("sym", True)))
    format = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    tensors = _all_tensors(folder)
    names = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    if not names:
        raise ValueError(f"{folder} holds no quantized layer (no tensor named *.qweight)")
    weights = {}
    for name in names:
        missing = [part for part in PARTS if f"{name}.{part}" not in tensors]
        if missing:
            raise ValueError(f"{folder}: layer {name} has no {missing[0]}")
        weights[name] = layer_from_tensors({part: tensors.pop(f"{name}.{part}") for part in PARTS},
                                           scheme, format)
    return weights, tensors


def load(folder: str | Path, dtype: torch.dtype = torch.float32):
    """(model, tokenizer) of a GPTQ checkpoint by any writer, weights dequantized. Needs no GPTQ library."""
    weights, tensors = read(folder)
    config = AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    missing, _ = model.load_state_dict(tensors, strict=False)
    with torch.no_grad():  # one layer at a time: the whole model is never held twice
        for name, weight in weights.items():
            model.get_submodule(name).weight.copy_(weight.dequantize())
    model.tie_weights()
    given = {f"{name}.weight" for name in weights}
    if config.tie_word_embeddings:
        given.add("lm_head.weight")
    absent = [name for name in missing if name not in given]
    if absent:
        raise ValueError(f"{folder} has no tensor {absent[0]}")
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def _one_scheme(weights: dict[str, GPTQWeight]) -> tuple[Scheme, bool]:
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


def _settings(folder: Path) -> dict:
    try:
        settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no config.json") from None
    except KeyError:
        try:
            settings = json.loads((folder / "quantize_config.json").read_text())
        except FileNotFoundError:
            raise ValueError(f"{folder} is no GPTQ checkpoint: config.json does not say how") from None
    if settings.get("quant_method", "gptq") != "gptq":
        raise ValueError(f"{folder} was quantized by {settings['quant_method']!r}, not by gptq")
    return settings


def _all_tensors(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no *.safetensors file")
    tensors = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                tensors |= {name: opened.get_tensor(name) for name in opened.keys()}
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged: {error}") from None
    return tensors


def _check_format(format: str) -> None:
    if format not in FORMATS:
        raise ValueError(f'format must be "gptq" or "gptq_v2", got {format!r}')


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, default=str) + "\n")
