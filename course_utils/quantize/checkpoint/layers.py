"""One linear layer: from what GPTQ found to the four tensors of the format, and back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from course_utils.quantize.affine import Scheme
from course_utils.quantize.checkpoint.words import (
    FORMATS,
    pack_words,
    unpack_words,
    zeros_from_words,
    zeros_to_words,
)
from course_utils.quantize.gptq import GPTQWeight

PARTS = ("qweight", "qzeros", "scales", "g_idx")


def layer_to_tensors(weight: GPTQWeight, format: str = "gptq") -> dict[str, Tensor]:
    """The four tensors of one layer.

    Args:
        weight: what GPTQ found.
        format: "gptq" (version 1) or "gptq_v2".

    Returns:
        The tensors by their names in the file, on the CPU.

    Raises:
        ValueError: when the format cannot hold the layer.
    """
    scheme = weight.scheme
    shift = -scheme.qmin  # symmetric integers are stored without a sign
    return {
        "qweight": pack_words((weight.q.cpu().int() + shift).T, scheme.bits),
        "qzeros": zeros_to_words((weight.zero.cpu() + shift).T, scheme.bits, format),
        "scales": half(weight.scale.cpu()).T.contiguous(),
        "g_idx": weight.g_idx.cpu().to(torch.int32).clone(),  # q, k and v share one tensor
    }


def half(scale: Tensor) -> Tensor:
    """Scales as FP16, in which the format stores them.

    Args:
        scale: float of any shape.

    Returns:
        float16 of the same shape.

    Raises:
        ValueError: when a scale is no FP16 number: what is read back would be other weights.
    """
    stored = scale.to(torch.float16)
    if not torch.equal(stored.to(scale.dtype), scale):
        raise ValueError("the format stores FP16 scales, and these are others: use "
                         "Scheme(scale_dtype=torch.float16)")
    return stored


def layer_from_tensors(tensors: dict[str, Tensor], scheme: Scheme, format: str) -> GPTQWeight:
    """The layer that the four tensors stand for, on the unsigned grid if the scheme is asymmetric.

    Some writers put zero points of version 2 under the name of version 1. Symmetric layers show it: their
    zero point is 2^(bits - 1) throughout, so the words tell the version, whatever `format` says.

    Args:
        tensors: by their names in the file. Without "g_idx" the inputs are grouped as they stand.
        scheme: what the layer was quantized to.
        format: "gptq" (version 1) or "gptq_v2".

    Returns:
        Integers, scales and zero points; its damping, which no file holds, is 0.

    Raises:
        ValueError: when the shapes do not belong together, words are not int32, or the zero points of a
            symmetric scheme are those of no version.
    """
    for part in ("qweight", "qzeros"):
        if tensors[part].dtype != torch.int32 or tensors[part].ndim != 2:
            raise ValueError(f"{part} is {tensors[part].dtype} {list(tensors[part].shape)}, no int32 matrix")
    q = unpack_words(tensors["qweight"], scheme.bits)
    zero = zeros_from_words(tensors["qzeros"], scheme.bits, format)
    scale, g_idx, group = tensors["scales"].float(), tensors.get("g_idx"), scheme.group or len(q)
    if g_idx is None:
        g_idx = (torch.arange(len(q)) // group).to(torch.int32)
        if len(scale) != math.ceil(len(q) / group):
            raise ValueError(f"{len(q)} inputs in groups of {group} do not fit {len(scale)} row(s) of scales")
    if len(g_idx) != len(q) or zero.shape != scale.shape or scale.shape[1] != q.shape[1]:
        raise ValueError(f"shapes that do not fit: integers {list(q.shape)}, zero points {list(zero.shape)}, "
                         f"scales {list(scale.shape)}, g_idx {list(g_idx.shape)}")
    if len(g_idx) and not 0 <= int(g_idx.min()) <= int(g_idx.max()) < len(scale):
        raise ValueError(f"g_idx names group {int(g_idx.max())} of {len(scale)}")
    if scheme.symmetric:
        versions = (zeros_from_words(tensors["qzeros"], scheme.bits, version) for version in FORMATS)
        zero = next((found for found in versions if bool((found == -scheme.qmin).all())), None)
        if zero is None:
            raise ValueError(f"zero points that are not all {-scheme.qmin}, as those of symmetric "
                             f"{scheme.bits} bits are: is it asymmetric (sym: false)?")
    kind = torch.int8 if scheme.symmetric else torch.uint8
    q = (q.T.to(torch.int16) + scheme.qmin).to(kind)
    return GPTQWeight(q, scale.T.contiguous(), zero.T.float() + scheme.qmin, g_idx, scheme, damping=0.0)
