"""Number formats for weights and activations, from FP32 down to 4 bits, each decoded and encoded by hand.

Modules:
    floats: sign, exponent, mantissa: FP32, TF32, BF16, FP16, E5M2, E4M3, E2M1; and E8M0, the power of two.
    tables: nearest value in a table, NF4's table, integers.
    block_scaled: codes that share a scale: INT8, INT4, NF4, MXFP4, NVFP4, FP8 with a scale a row.
    convert: any tensor in any of them; all weights of a model in one after another.
"""

from course_utils.formats.block_scaled import (
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
from course_utils.formats.convert import FORMATS, Conversion, convert, converting, mxfp4_rounded_up
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

__all__ = [
    "BF16", "BLOCKS", "E2M1", "E4M3", "E5M2", "FLOATS", "FORMATS", "FP16", "FP32", "FP8_ROW", "INT4", "INT8",
    "MXFP4", "NF4", "NF4_DOUBLE", "NVFP4", "TF32", "BlockFormat", "Conversion", "FloatFormat", "Quantized",
    "bit_string", "block_scale_e8m0", "convert", "converting", "decode", "decode_e8m0", "decode_float",
    "decode_int", "encode", "encode_e8m0", "encode_int", "mxfp4_rounded_up", "nearest_code",
    "normal_float_table", "pack_4bit", "quantize", "round_to", "unpack_4bit", "value_table",
]  # fmt: skip
