"""The words of an AWQ checkpoint: eight 4-bit numbers in an int32, in an order made for a GPU kernel.

A layer with weight [out, in] and groups of `group` input channels is stored as

    qweight  int32   [in, out / 8]      8 output channels in a word
    qzeros   int32   [groups, out / 8]  the same, for the zero points
    scales   float16 [groups, out]

and weight[o, i] = (q[o, i] - zero[o, i // group]) * scale[o, i // group]. Counted from the lowest bits, a
word holds the output channels 0, 2, 4, 6, 1, 3, 5, 7 of its eight. The kernel takes nibbles 0 and 4 out of a
word with one mask, as a pair of FP16 numbers; stored like this, they are neighbours again.
GPTQ's format differs in three ways: it packs along the input channels, in plain order, and its first version
stores zero - 1.
Sources: mit-han-lab/llm-awq (awq/quantize/qmodule.py), and the "gemm" version of AutoAWQ, which transformers
reads as quant_method "awq".
"""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from course_utils.errors import named
from course_utils.quantize.affine import Quantized, Scheme
from course_utils.quantize.checkpoint.layers import half

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # output channel of each nibble, lowest first
BITS, PER_WORD = 4, 8


def pack_words(numbers: Tensor) -> Tensor:
    """Pack 4-bit integers as AWQ does: column 8 j + ORDER[k] stands in bits 4 k to 4 k + 3 of word j.

    Args:
        numbers: integers 0 ... 15, [rows, columns], columns divisible by 8.

    Returns:
        int32 [rows, columns / 8].

    Raises:
        ValueError: for another shape or other numbers.
    """
    if numbers.ndim != 2 or numbers.shape[1] % PER_WORD:
        raise ValueError(f"AWQ packs {PER_WORD} columns in a word; their number must be a multiple of that, "
                         f"got shape {list(numbers.shape)}")
    if numbers.is_floating_point() or numbers.min() < 0 or numbers.max() >= 2**BITS:
        raise ValueError("AWQ's 4-bit words hold the integers 0 to 15 only")
    eights = numbers.long().reshape(len(numbers), -1, PER_WORD)[..., list(ORDER)]
    shifts = BITS * torch.arange(PER_WORD, device=numbers.device)
    words = (eights << shifts).sum(dim=-1)  # up to 2^32 - 1, hence int64
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)  # the same bits, signed


def unpack_words(words: Tensor) -> Tensor:
    """The 4-bit integers that `pack_words` put into words.

    Args:
        words: int32 [rows, words].

    Returns:
        The numbers 0 ... 15, uint8 [rows, 8 * words].

    Raises:
        TypeError: when the words are no int32 matrix.
    """
    if words.dtype != torch.int32 or words.ndim != 2:
        raise TypeError(f"AWQ words are an int32 matrix, got {words.dtype} {list(words.shape)}")
    shifts = BITS * torch.arange(PER_WORD, device=words.device)
    nibbles = (words.unsqueeze(-1) >> shifts) & (2**BITS - 1)
    place = torch.tensor(ORDER, device=words.device).argsort()  # where each channel is
    return nibbles[..., place].reshape(len(words), -1).to(torch.uint8)


def pack(quantized: Quantized) -> dict[str, Tensor]:
    """A 4-bit quantized matrix as AWQ stores it. A symmetric one is stored with zero point 8.

    Args:
        quantized: 4 bits, per channel or group.

    Returns:
        {"qweight", "qzeros", "scales"}, of the shapes in the module's text.

    Raises:
        ValueError: when the format cannot hold it.
    """
    scheme = quantized.scheme
    if scheme.bits != BITS or scheme.group == "tensor":
        raise ValueError(f"the AWQ format holds 4 bits, per channel or group, not {scheme}")
    if not torch.equal(quantized.zero, quantized.zero.round()):
        raise ValueError("the AWQ format stores whole zero points, and these are real numbers (HQQ's?)")
    shift = -scheme.qmin  # symmetric integers -8 ... 7 become 0 ... 15
    return {
        "qweight": pack_words((quantized.q.T.int() + shift).contiguous()),
        "qzeros": pack_words(quantized.zero.T.int() + shift),
        "scales": half(quantized.scale).T.contiguous(),
    }


def unpack(tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Quantized:
    """Read a matrix that AWQ stored.

    Args:
        tensors: {"qweight", "qzeros", "scales"}, of the shapes in the module's text.
        dtype: what `affine.dequantize` of the result gives.

    Returns:
        The matrix, as asymmetric: the file does not say whether its zero points are all 8 on purpose.

    Raises:
        TypeError: when the words are no int32 matrix.
        ValueError: when a tensor is missing, or they do not belong together.
    """
    missing = [part for part in ("qweight", "qzeros", "scales") if part not in tensors]
    if missing:
        raise ValueError(f"an AWQ layer has {missing[0]} too, and it is not here")
    q = unpack_words(tensors["qweight"]).T.contiguous()
    zero = unpack_words(tensors["qzeros"]).T.float()
    scale = tensors["scales"].T.float().contiguous()
    groups = scale.shape[1]
    if scale.shape != zero.shape or scale.shape[0] != q.shape[0] or not groups or q.shape[1] % groups:
        raise ValueError(f"these tensors do not belong together: weight {list(q.shape)}, scales "
                         f"{list(scale.shape)}, zero points {list(zero.shape)}")
    scheme = Scheme(BITS, q.shape[1] // groups if groups > 1 else None, symmetric=False)
    return Quantized(q, scale, zero.contiguous(), scheme, dtype)


def save(
    folder: str | Path, model: nn.Module, tokenizer: PreTrainedTokenizerBase, quantized: dict[str, Quantized]
) -> Path:
    """Write a folder that transformers and GPTQModel load as an AWQ model.

    Written aside and renamed: no half-written checkpoint survives.

    Args:
        folder: where to write; must not exist.
        model: after `awq.awq(..., keep=quantized)`; everything but the quantized layers (the folded norms
            among it) is stored as FP16.
        tokenizer: the model's.
        quantized: the quantized layers by full name.

    Returns:
        The folder.

    Raises:
        FileExistsError: when the folder exists.
        ValueError: when the format cannot hold the layers.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists: name another folder, or remove it first")
    schemes = {layer.scheme for layer in quantized.values()}
    if len(schemes) != 1:
        raise ValueError(f"a checkpoint has one scheme for all layers, got {len(schemes)}")
    tensors = {}
    for name, layer in quantized.items():
        with named(name):
            tensors |= {f"{name}.{part}": tensor.contiguous() for part, tensor in pack(layer).items()}
    for name, tensor in model.state_dict().items():
        tied = name == "lm_head.weight" and model.config.tie_word_embeddings
        if name.removesuffix(".weight") not in quantized and not tied:
            tensors[name] = (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
    config = copy.deepcopy(model.config)
    plain = [name for name, module in model.named_modules()
             if isinstance(module, nn.Linear) and name not in quantized]
    config.quantization_config = quantization_config(schemes.pop(), plain)
    config.dtype = torch.float16
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        save_file(tensors, aside / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(aside)
        model.generation_config.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        aside.chmod(0o755)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def quantization_config(scheme: Scheme, plain: Sequence[str] = ("lm_head",)) -> dict:
    """What stands in config.json, by which loaders decide how to read the tensors.

    Args:
        scheme: of all layers.
        plain: names of the linear layers that are not quantized.

    Returns:
        What can be written as JSON.
    """
    return {"quant_method": "awq", "version": "gemm", "bits": scheme.bits, "group_size": scheme.group or -1,
            "zero_point": True, "modules_to_not_convert": list(plain)}
