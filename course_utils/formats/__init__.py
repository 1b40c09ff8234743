"""Number formats for weights and activations, from FP32 down to 4 bits, each decoded and encoded by hand.

    floats.py   sign, exponent, mantissa: FP32, TF32, BF16, FP16, E5M2, E4M3, E2M1; and E8M0, the power of two
    tables.py   nearest value in a table, NF4's table, integers
    blocks.py   codes that share a scale: INT8, INT4, NF4, MXFP4, NVFP4, FP8 with a scale a row

`convert(x, name)` runs any of them: what x becomes in that format, and the bytes it then takes.
"""

import torch

from course_utils.formats.blocks import (
    BLOCKS,
    FP8_ROW,
    INT4,
    INT8,
    MXFP4,
    NF4,
    NF4_DOUBLE,
    NVFP4,
    BlockFormat,
    Quantized,
    pack_4bit,
    quantize,
    unpack_4bit,
)
from course_utils.formats.floats import (
    BF16,
    E2M1,
    E4M3,
    E5M2,
    FLOATS,
    FP16,
    FP32,
    TF32,
    FloatFormat,
    bit_string,
    block_scale_e8m0,
    decode,
    decode_e8m0,
    decode_float,
    encode,
    encode_e8m0,
    round_to,
)
from course_utils.formats.tables import decode_int, encode_int, nearest_code, normal_float_table, value_table

FORMATS = FLOATS | BLOCKS


def convert(x: torch.Tensor, name: str) -> tuple[torch.Tensor, int]:
    """(x rounded to the format, as float32; the bytes it takes there, scales included).

    Plain floats saturate where x is out of range. TF32 takes 4 bytes: it exists inside matrix units only.
    Raises ValueError for an unknown name, and what `round_to` and `quantize` raise.
    """
    if name not in FORMATS:
        raise ValueError(f"no format {name!r}; there are {', '.join(FORMATS)}")
    if name in BLOCKS:
        quantized = quantize(x, BLOCKS[name])
        return quantized.dequantize(), quantized.nbytes
    bits = 32 if name == TF32.name else FLOATS[name].bits
    return round_to(x, FLOATS[name], saturate=True), -(-x.numel() * bits // 8)


__all__ = [
    "BF16", "BLOCKS", "E2M1", "E4M3", "E5M2", "FLOATS", "FORMATS", "FP16", "FP32", "FP8_ROW", "INT4", "INT8",
    "MXFP4", "NF4", "NF4_DOUBLE", "NVFP4", "TF32", "BlockFormat", "FloatFormat", "Quantized", "bit_string",
    "block_scale_e8m0", "convert", "decode", "decode_e8m0", "decode_float", "decode_int", "encode",
    "encode_e8m0", "encode_int", "nearest_code", "normal_float_table", "pack_4bit", "quantize", "round_to",
    "unpack_4bit", "value_table",
]  # fmt: skip
