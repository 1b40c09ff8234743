"""Block formats: small numbers that share a scale.

A 4-bit number alone has no range: most weights of a real model would round to zero. So the rows of a weight
are cut into blocks, each block is divided by a scale of its own, and the scale is stored beside the codes.

    weight = value of the code * scale of its block  (* scale of the tensor, in NVFP4)

Sources: OCP Microscaling Formats (MX) Specification 1.0 (MXFP4); NVIDIA, "Introducing NVFP4 for Efficient
and Accurate Low-Precision Inference", 2025 (NVFP4); QLoRA, arXiv 2305.14314 (NF4, double quantization).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from course_utils.formats.floats import (
    CHUNK,
    E2M1,
    E4M3,
    block_scale_e8m0,
    check_float,
    decode,
    decode_e8m0,
    encode,
)
from course_utils.formats.tables import decode_int, encode_int, nearest_code, normal_float_table, value_table

SMALLEST_SCALE = 2.0**-127  # its reciprocal is still finite in float32


@dataclass(frozen=True)
class BlockFormat:
    """How a block of weights becomes codes and a scale, and how it is read back.

    Attributes:
        name: how tables call it.
        code_bits: bits of a code, 4 or 8.
        block: weights that share a scale, along the last dimension; None: the whole row.
        table: float32 [2**code_bits], the number behind each code.
        encode: scaled weights -> codes.
        scale_bits: bits of a stored scale.
        store_scale: largest magnitude of each block -> its scale, as it is stored.
        read_scale: the stored scale -> float32.
        tensor_scale: the size that the tensor's largest weight is scaled to before all else (NVFP4), or None.
        double: the format of the scales themselves (double quantization), or None.
    """

    name: str
    code_bits: int
    block: int | None
    table: torch.Tensor
    encode: Callable[[torch.Tensor], torch.Tensor]
    scale_bits: int
    store_scale: Callable[[torch.Tensor], torch.Tensor]
    read_scale: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.float
    tensor_scale: float | None = None
    double: "BlockFormat | None" = None

    def bits_per_weight(self, row_length: int | None = None) -> float:
        """Bits of a code and its share of the block's scale. What a tensor stores only once is left out.

        Args:
            row_length: weights in a row; needed where the block is a whole row.

        Returns:
            Bits a weight.

        Raises:
            ValueError: the block is a whole row, and row_length is missing.
        """
        block = self.block or row_length
        if block is None:
            raise ValueError(f"{self.name} has one scale a row: pass row_length")
        scale_bits = self.double.bits_per_weight() if self.double else self.scale_bits
        return self.code_bits + scale_bits / block


@dataclass(frozen=True)
class Quantized:
    """A quantized tensor: what would be written to disk, and the way back.

    Attributes:
        format: how to read it.
        shape: of the tensor that was quantized.
        codes: uint8; 4-bit codes two a byte, the first in the upper half.
        scales: one a block, as the format stores it; with double quantization quantized themselves.
        tensor_scale: float32 scalar, the scale of the tensor, or None.
        scales_mean: double quantization: subtracted from the scales before it; else None.
    """

    format: BlockFormat
    shape: torch.Size
    codes: torch.Tensor
    scales: "torch.Tensor | Quantized"
    tensor_scale: torch.Tensor | None = None
    scales_mean: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """True bytes: codes, scales, and what the tensor stores once."""
        parts = (self.codes, self.scales, self.tensor_scale, self.scales_mean)
        return sum(part.nbytes for part in parts if part is not None)

    def block_scales(self) -> torch.Tensor:
        """The scale of each block, that of the tensor included.

        Returns:
            float32 [blocks].
        """
        if isinstance(self.scales, Quantized):
            blocks = self.shape.numel() // self.format.block
            return self.scales.dequantize()[:blocks] + self.scales_mean
        scales = self.format.read_scale(self.scales)
        return scales if self.tensor_scale is None else scales * self.tensor_scale

    def dequantize(self) -> torch.Tensor:
        """The weights that codes and scales stand for.

        Returns:
            float32 [shape].
        """
        scales = self.block_scales()[:, None]
        table = self.format.table.to(scales.device)
        codes = self.codes.view(len(scales), -1)
        values = torch.empty(len(scales), self.shape.numel() // len(scales), device=scales.device)
        for part in _parts(values):
            some = unpack_4bit(codes[part]) if self.format.code_bits == 4 else codes[part]
            values[part] = table.index_select(0, some.flatten().int()).view(some.shape) * scales[part]
        return values.view(self.shape)


def quantize(weight: torch.Tensor, format: BlockFormat) -> Quantized:
    """Quantize a tensor in blocks along its last dimension.

    Args:
        weight: float32, float16 or bfloat16, finite, with a last dimension that is a multiple of the block.
        format: what to quantize it to.

    Returns:
        Codes and scales.

    Raises:
        TypeError: the weight has another dtype.
        ValueError: it is empty or not finite, blocks do not divide its rows, or it needs too large a scale.
    """
    block = _check(weight, format)
    blocks = weight.detach().reshape(-1, block)
    tensor_scale = None
    if format.tensor_scale:
        tensor_scale = (blocks.abs().max().float() / format.tensor_scale).clamp(min=SMALLEST_SCALE)

    codes, scales = [], []
    for part in _parts(blocks):
        values = blocks[part].float() if tensor_scale is None else blocks[part] / tensor_scale
        stored = format.store_scale(values.abs().amax(dim=-1))
        scale = format.read_scale(stored)
        if scale.isinf().any():
            raise ValueError(f"{format.name}: {values.abs().max():.3g} would need too large a scale")
        # One division a block and a product a weight, as the libraries do.
        values = values * (1 / scale.clamp(min=SMALLEST_SCALE))[:, None]
        some = format.encode(values).to(torch.uint8)
        codes.append(pack_4bit(some) if format.code_bits == 4 else some)
        scales.append(stored)

    codes, scales, scales_mean = torch.cat(codes).flatten(), torch.cat(scales), None
    if format.double:
        scales_mean = scales.mean()
        missing = -len(scales) % format.double.block
        scales = quantize(torch.nn.functional.pad(scales - scales_mean, (0, missing)), format.double)
    return Quantized(format, weight.shape, codes, scales, tensor_scale, scales_mean)


def _check(weight: torch.Tensor, format: BlockFormat) -> int:
    """The length of a block; TypeError or ValueError when the weight does not fit the format."""
    check_float(weight, format.name)
    if weight.numel() == 0 or weight.dim() == 0:
        raise ValueError(f"{format.name} needs rows of weights, not a tensor of shape {list(weight.shape)}")
    block = format.block or weight.shape[-1]
    if weight.shape[-1] % block:
        raise ValueError(f"{format.name}: blocks of {block} do not divide rows of {weight.shape[-1]} weights")
    unfit = int((~weight.isfinite()).sum())
    if unfit:
        raise ValueError(f"{format.name}: {unfit} of {weight.numel()} weights are infinite or NaN")
    return block


def _parts(blocks: torch.Tensor) -> list[slice]:
    """Slices of at most CHUNK elements that cover the blocks [n, block]."""
    at_once = max(1, CHUNK // blocks.shape[1])
    return [slice(start, start + at_once) for start in range(0, len(blocks), at_once)]


def pack_4bit(codes: torch.Tensor) -> torch.Tensor:
    """Put two codes in each byte, the first in the upper half.

    Args:
        codes: uint8 [..., n], each 0 to 15, n even.

    Returns:
        uint8 [..., n / 2].
    """
    return codes[..., ::2] << 4 | codes[..., 1::2]


def unpack_4bit(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of pack_4bit.

    Args:
        packed: uint8 [..., m].

    Returns:
        uint8 [..., 2 m], each 0 to 15.
    """
    return torch.stack([packed >> 4, packed & 0xF], dim=-1).flatten(-2)


# --- The formats ------------------------------------------------------------------------------------------


def int_format(name: str, bits: int, block: int | None) -> BlockFormat:
    """Symmetric integers with an FP16 scale: a block's largest weight becomes +-(2**(bits - 1) - 1).

    Args:
        name: how tables call it.
        bits: of a code, 4 or 8.
        block: weights that share a scale; None: the whole row.

    Returns:
        The format.
    """
    largest = 2 ** (bits - 1) - 1
    return BlockFormat(
        name, bits, block,
        table=decode_int(torch.arange(2**bits), bits),
        encode=lambda scaled: encode_int(scaled, bits),
        scale_bits=16,
        store_scale=lambda absmax: (absmax / largest).half(),
    )  # fmt: skip


def fp8_format(name: str, block: int | None) -> BlockFormat:
    """E4M3 with an FP32 scale: a block's largest weight becomes 448.

    Args:
        name: how tables call it.
        block: weights that share a scale; None: the whole row.

    Returns:
        The format.
    """
    return BlockFormat(
        name, 8, block,
        table=value_table(E4M3),
        encode=lambda scaled: encode(scaled, E4M3, saturate=True),
        scale_bits=32,
        store_scale=lambda absmax: absmax / E4M3.largest,
    )  # fmt: skip


def nf4_format(name: str, double: bool = False) -> BlockFormat:
    """NormalFloat4: blocks of 64 whose largest weight becomes +-1, with an FP32 scale.

    With double quantization the scales, less their mean, become 8-bit floats in blocks of 256. Here those
    are E4M3; the QLoRA paper says "8-bit floats", and bitsandbytes takes a table of its own.

    Args:
        name: how tables call it.
        double: whether to quantize the scales too.

    Returns:
        The format.
    """
    table = normal_float_table()
    return BlockFormat(
        name, 4, 64,
        table=table,
        encode=lambda scaled: nearest_code(scaled, table.to(scaled.device)),
        scale_bits=32,
        store_scale=lambda absmax: absmax,
        double=fp8_format("E4M3 scales", 256) if double else None,
    )  # fmt: skip


def mxfp4_format(name: str) -> BlockFormat:
    """E2M1 in blocks of 32 with a power of two, E8M0, as scale.

    Args:
        name: how tables call it.

    Returns:
        The format.
    """
    return BlockFormat(
        name, 4, 32,
        table=value_table(E2M1),
        encode=lambda scaled: encode(scaled, E2M1),
        scale_bits=8,
        store_scale=lambda absmax: block_scale_e8m0(absmax[:, None], E2M1.largest_power).to(torch.uint8),
        read_scale=decode_e8m0,
    )  # fmt: skip


def nvfp4_format(name: str) -> BlockFormat:
    """E2M1 in blocks of 16 with an E4M3 scale, and one FP32 scale a tensor.

    The tensor's largest weight is first scaled to 6 * 448, so that its block gets the largest E4M3 number
    as scale and the largest E2M1 number as code.

    Args:
        name: how tables call it.

    Returns:
        The format.
    """
    return BlockFormat(
        name, 4, 16,
        table=value_table(E2M1),
        encode=lambda scaled: encode(scaled, E2M1),
        scale_bits=8,
        store_scale=lambda absmax: encode(absmax / E2M1.largest, E4M3, saturate=True).to(torch.uint8),
        read_scale=lambda codes: decode(codes, E4M3),
        tensor_scale=E2M1.largest * E4M3.largest,
    )  # fmt: skip


FP8_ROW = fp8_format("FP8 E4M3 row", block=None)
INT8 = int_format("INT8", 8, block=None)
INT4 = int_format("INT4", 4, block=64)
NF4 = nf4_format("NF4")
NF4_DOUBLE = nf4_format("NF4 double", double=True)
MXFP4 = mxfp4_format("MXFP4")
NVFP4 = nvfp4_format("NVFP4")
BLOCKS = {format.name: format for format in (FP8_ROW, INT8, INT4, NF4, NF4_DOUBLE, MXFP4, NVFP4)}
