"""A linear layer that really stores packed integers.

Fake quantization keeps a float for every weight: it shows the error, it saves nothing. Here the integers are
packed bit by bit into bytes (two 4-bit integers in one byte, eight 3-bit integers in three bytes), beside
their scales. The forward pass unpacks, dequantizes and multiplies: small in memory, but without a kernel that
unpacks inside the matrix product it is no faster than a float layer, and usually slower.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from course_utils.quantize import affine, layerwise
from course_utils.quantize.affine import Quantized, Scheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PORTION = 4096  # rows that are packed at a time


def pack(values: Tensor, bits: int) -> Tensor:
    """Pack unsigned integers, low bits first.

    The n integers of a row follow each other without gaps; the last bytes are filled with zeros.

    Args:
        values: integers [rows, n] from 0 to 2^bits - 1.
        bits: of one integer, 1 to 8.

    Returns:
        uint8 [rows, bytes], see `packed_width`.

    Raises:
        ValueError: for a value that needs more bits.
    """
    if values.numel() and (values.min() < 0 or values.max() > 2**bits - 1):
        raise ValueError(f"values must be from 0 to {2**bits - 1} to fit into {bits} bits, "
                         f"got {values.min().item()} to {values.max().item()}")
    if bits == 8:
        return values.to(torch.uint8).clone(memory_format=torch.contiguous_format)  # with plain strides
    per_word, bytes_per_word = _word(bits)
    values = F.pad(values.long(), (0, -values.shape[1] % per_word))
    shifts = bits * torch.arange(per_word, device=values.device)
    words = (values.reshape(len(values), -1, per_word) << shifts).sum(-1, keepdim=True)
    shifts = 8 * torch.arange(bytes_per_word, device=values.device)
    return ((words >> shifts) & 255).to(torch.uint8).reshape(len(values), -1)


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """The integers that `pack` packed.

    Args:
        packed: uint8 [rows, bytes].
        bits: of one integer, 1 to 8.
        n: so many integers of each row.

    Returns:
        uint8 [rows, n].
    """
    if bits == 8:
        return packed[:, :n]
    per_word, bytes_per_word = _word(bits)
    dtype = torch.uint8 if bytes_per_word == 1 else torch.int64
    shifts = 8 * torch.arange(bytes_per_word, device=packed.device, dtype=dtype)
    words = (packed.reshape(len(packed), -1, bytes_per_word).to(dtype) << shifts).sum(-1, True, dtype=dtype)
    shifts = bits * torch.arange(per_word, device=packed.device, dtype=dtype)
    values = (words >> shifts) & (2**bits - 1)
    return values.to(torch.uint8).reshape(len(packed), -1)[:, :n]


def packed_width(bits: int, n: int) -> int:
    """Bytes of n packed integers.

    Args:
        bits: of one integer, 1 to 8.
        n: number of integers.

    Returns:
        Bytes.

    Raises:
        ValueError: for other bits.
    """
    per_word, bytes_per_word = _word(bits)
    return math.ceil(n / per_word) * bytes_per_word


def _word(bits: int) -> tuple[int, int]:
    """The fewest integers that fill whole bytes, and how many bytes: 4 bits (2, 1), 3 bits (8, 3)."""
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be from 1 to 8, got {bits}")
    per_word = 8 // math.gcd(8, bits)
    return per_word, per_word * bits // 8


class QuantLinear(nn.Module):
    """y = x W^T + b with W [out, in] stored as packed integers.

    Symmetric integers are stored with 2^(bits-1) added, so that they are never negative.

    Attributes:
        packed: buffer, uint8 [out, ceil(in * bits / 8)].
        scale: buffer, scheme.scale_dtype [out, groups] or [1, 1].
        packed_zero: buffer, only for an asymmetric scheme: uint8, the zero points packed in the same way.
        bias: buffer, float [out], or None.
        scheme: what the weight is quantized to.

    Raises:
        ValueError: when the scheme's group does not divide in_features.
    """

    def __init__(self, in_features: int, out_features: int, scheme: Scheme, bias: bool = False) -> None:
        super().__init__()
        affine.check_group(scheme, in_features)
        self.in_features, self.out_features, self.scheme = in_features, out_features, scheme
        groups = 1 if scheme.group in (None, "tensor") else in_features // scheme.group
        self.scale_shape = (1, 1) if scheme.group == "tensor" else (out_features, groups)
        width = packed_width(scheme.bits, in_features)
        self.register_buffer("packed", torch.zeros(out_features, width, dtype=torch.uint8))
        self.register_buffer("scale", torch.ones(self.scale_shape, dtype=scheme.scale_dtype))
        if not scheme.symmetric:
            width = packed_width(scheme.bits, self.scale_shape[1])
            self.register_buffer("packed_zero", torch.zeros(self.scale_shape[0], width, dtype=torch.uint8))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    @classmethod
    def from_linear(cls, linear: nn.Linear, scheme: Scheme, clip_search: bool = False) -> QuantLinear:
        """Round a linear layer's weight to nearest and pack it.

        Args:
            linear: weight [out, in], perhaps with a bias; it is not changed.
            scheme: what to quantize to.
            clip_search: as for `affine.quantize`.

        Returns:
            The new layer.

        Raises:
            TypeError: as `affine.quantize`.
            ValueError: as `affine.quantize`.
        """
        return cls.from_quantized(affine.quantize(linear.weight, scheme, clip_search), linear.bias)

    @classmethod
    def from_quantized(cls, quantized: Quantized, bias: Tensor | None = None) -> QuantLinear:
        """Pack integers that some method chose (GPTQ, AWQ, ...).

        Args:
            quantized: the weight [out, in].
            bias: float [out], or None.

        Returns:
            The new layer.
        """
        scheme = quantized.scheme
        out_features, in_features = quantized.q.shape
        layer = cls(in_features, out_features, scheme, bias is not None).to(quantized.q.device)
        # In portions: `pack` works on 64-bit words, and a table of tokens has 28 million integers.
        for rows, q in zip(layer.packed.split(PORTION), quantized.q.split(PORTION), strict=True):
            rows.copy_(pack(q.int() - scheme.qmin, scheme.bits))
        layer.scale.copy_(quantized.scale)
        if not scheme.symmetric:
            layer.packed_zero.copy_(pack(quantized.zero, scheme.bits))
        if bias is not None:
            layer.bias = bias.detach().clone()
        return layer

    def quantized(self, dtype: torch.dtype = torch.float32, rows: Tensor | None = None) -> Quantized:
        """The stored integers, scales and zero points.

        Args:
            dtype: what `affine.dequantize` gives back.
            rows: int64 [n], numbers of the rows that are wanted, and only they are unpacked; None: all.

        Returns:
            The weight [out, in], or [n, in].
        """
        parts = [self.packed, self.scale, *([] if self.scheme.symmetric else [self.packed_zero])]
        if rows is not None:
            parts = [part if self.scheme.group == "tensor" and part is not self.packed else part[rows]
                     for part in parts]
        q, scale = unpack(parts[0], self.scheme.bits, self.in_features), parts[1].float()
        if self.scheme.symmetric:
            q = (q.to(torch.int16) + self.scheme.qmin).to(torch.int8)
            zero = torch.zeros_like(scale)
        else:
            zero = unpack(parts[2], self.scheme.bits, self.scale_shape[1]).float()
        return Quantized(q, scale, zero, self.scheme, dtype)

    def dequantize(self, dtype: torch.dtype = torch.float32, rows: Tensor | None = None) -> Tensor:
        """The weight that the layer stands for.

        Args:
            dtype: of the result.
            rows: as for `quantized`.

        Returns:
            [out, in], or [n, in].
        """
        return affine.dequantize(self.quantized(dtype, rows))

    def forward(self, x: Tensor) -> Tensor:
        """Unpack, dequantize, multiply.

        Args:
            x: float [..., in].

        Returns:
            [..., out] in x's dtype.
        """
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.dequantize(x.dtype), bias)

    def extra_repr(self) -> str:
        """What `print` shows in the brackets of this layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.scheme}"


class QuantEmbedding(nn.Module):
    """The vectors of tokens, out of a packed matrix [vocabulary, width].

    Args:
        table: the packed matrix. A model whose output layer is the embedding uses the same object there, so
            that it is stored once.
    """

    def __init__(self, table: QuantLinear) -> None:
        super().__init__()
        self.table = table

    def forward(self, ids: Tensor) -> Tensor:
        """Unpack the rows of these tokens and no others.

        Args:
            ids: integer tensor [...].

        Returns:
            float32 [..., width].
        """
        return self.table.dequantize(rows=ids.flatten()).view(*ids.shape, -1)


def replace_embedding(model: PreTrainedModel, scheme: Scheme) -> None:
    """Pack the embedding, and the output layer with it: one matrix where the two are tied, else two.

    Args:
        model: a causal language model; changed in place.
        scheme: what to quantize to.

    Raises:
        TypeError: as `affine.quantize`.
        ValueError: as `affine.quantize`.
    """
    tokens, output = model.get_input_embeddings(), model.get_output_embeddings()
    table = QuantLinear.from_quantized(affine.quantize(tokens.weight, scheme))
    same = output.weight is tokens.weight and output.bias is None
    packed_output = table if same else QuantLinear.from_linear(output, scheme)
    model.set_input_embeddings(QuantEmbedding(table))
    model.set_output_embeddings(packed_output)


def replace_linears(
    model: nn.Module, scheme: Scheme, clip_search: bool = False, progress: bool = True,
    minimum_share: float = layerwise.MINIMUM_SHARE,
) -> dict[str, QuantLinear]:
    """Put a QuantLinear in place of every linear layer of the model's blocks.

    Embedding, norms and output layer stay as they are. All layers are checked before the first is replaced.

    Args:
        model: any model with blocks; changed in place.
        scheme: what to quantize to.
        clip_search: as for `affine.quantize`.
        progress: show a progress bar when it takes long.
        minimum_share: of the model's matrix weights, as for `layerwise.check_coverage`.

    Returns:
        The new layers by full name.

    Raises:
        TypeError: as `affine.quantize`, with the layer's name.
        ValueError: as `affine.quantize`, with the layer's name, and as `layerwise.check_coverage` and
            `layerwise.check_replaceable`.
    """
    layerwise.check_coverage(model, minimum_share)
    layerwise.check_weights(model, scheme)
    layerwise.check_replaceable(model)
    linears = layerwise.block_linears(model)
    packed = {}
    for name, linear in tqdm(linears.items(), "packing", leave=False, disable=not progress, delay=2):
        packed[name] = QuantLinear.from_linear(linear, scheme, clip_search)
        model.set_submodule(name, packed[name])
    return packed
