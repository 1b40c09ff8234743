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

words   integers in words of 32 bits, zero points by both conventions
layers  the four tensors of one layer
files   a folder with a whole model: save, read, load

Sources: AutoGPTQ 0.7.1 nn_modules/qlinear/qlinear_cuda_old.py; GPTQModel 7.6.0
nn_modules/qlinear/__init__.py, utils/model.py (convert_gptq_v1_to_v2_format_module).
"""

from course_utils.quantize.checkpoint.files import load, quantization_config, read, save
from course_utils.quantize.checkpoint.layers import PARTS, layer_from_tensors, layer_to_tensors
from course_utils.quantize.checkpoint.words import (
    FORMATS,
    pack_nibbles,
    pack_words,
    unpack_nibbles,
    unpack_words,
    zeros_from_words,
    zeros_to_words,
)

__all__ = [
    "FORMATS", "PARTS", "layer_from_tensors", "layer_to_tensors", "load", "pack_nibbles", "pack_words",
    "quantization_config", "read", "save", "unpack_nibbles", "unpack_words", "zeros_from_words",
    "zeros_to_words",
]  # fmt: skip
