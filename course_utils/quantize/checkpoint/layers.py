"""One linear layer: from what GPTQ found to the four tensors of the format, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from course_utils.quantize.affine import Scheme
from course_utils.quantize.checkpoint.words import pack_words, unpack_words, zeros_from_words, zeros_to_words
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
        "scales": weight.scale.cpu().T.to(torch.float16).contiguous(),
        "g_idx": weight.g_idx.cpu().to(torch.int32).clone(),  # q, k and v share one tensor
    }


def layer_from_tensors(tensors: dict[str, Tensor], scheme: Scheme, format: str) -> GPTQWeight:
    """The layer that the four tensors stand for, on the unsigned grid if the scheme is asymmetric.

    Args:
        tensors: by their names in the file.
        scheme: what the layer was quantized to.
        format: "gptq" (version 1) or "gptq_v2".

    Returns:
        Integers, scales and zero points; its damping, which no file holds, is 0.

    Raises:
        ValueError: when the shapes do not belong together.
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
