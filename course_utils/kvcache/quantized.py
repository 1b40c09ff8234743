"""A quantized KV cache: old tokens in 8, 4 or 2 bits, the newest ones as they came.

Keys have a few channels that are large for every token, values have not. So a key shares its scale with the
same channel of its neighbours in time (per channel, `group` tokens), a value with the other channels of its
own token (per token). Z. Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache",
arXiv 2402.02750, sections 3 and 4.

Rounding here is from the minimum: x ~ low + scale * q. The zero point of `course_utils.quantize.affine` is
a whole number and its range always contains 0, which weights want. A key channel may lie between 8 and 10;
a range from 0 to 10 would waste most of the levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from course_utils.kvcache.layers import Layer

BITS = (2, 4, 8)


@dataclass(frozen=True)
class Rounded:
    """Rounded numbers: low + scale * code.

    Attributes:
        codes: uint8 [..., n * bits / 8].
        scale: float16, broadcasts with the numbers.
        low: float16, broadcasts with the numbers.
        bits: of one code: 2, 4 or 8.
    """

    codes: Tensor
    scale: Tensor
    low: Tensor
    bits: int

    def tensors(self) -> list[Tensor]:
        """The tensors that are stored.

        Returns:
            Codes, scale and low.
        """
        return [self.codes, self.scale, self.low]

    def map(self, function: Callable[[Tensor], Tensor]) -> Rounded:
        """The same with a function applied to each tensor.

        Args:
            function: what to apply, such as an indexing of the batch.

        Returns:
            A new Rounded.
        """
        return Rounded(*map(function, self.tensors()), self.bits)


def round_to_bits(values: Tensor, bits: int, dim: int) -> Rounded:
    """Round to 2^bits levels between minimum and maximum along a dimension.

    Args:
        values: float tensor of any shape; its last dimension must be a multiple of 8 / bits.
        bits: 2, 4 or 8.
        dim: the dimension that shares a scale and a minimum.

    Returns:
        A Rounded whose `scale` and `low` (float16) have size 1 in `dim`. Restored numbers are off by at most
        half a scale, and by what float16 loses on `low` and `scale`.

    Raises:
        ValueError: other bits, a width that cannot be packed, or numbers that float16 cannot hold.
    """
    check_bits(bits, values.shape[-1])
    values = values.float()
    low, high = values.amin(dim, keepdim=True), values.amax(dim, keepdim=True)
    low = low.half()
    scale = ((high - low.float()) / (2**bits - 1)).clamp(min=2**-24).half()  # float16's smallest number
    if not (torch.isfinite(low).all() and torch.isfinite(scale).all()):
        raise ValueError("keys or values are NaN, infinite or beyond float16: they cannot be rounded")
    codes = torch.round((values - low.float()) / scale.float()).clamp(0, 2**bits - 1)
    return Rounded(pack(codes.to(torch.uint8), bits), scale, low, bits)


def restore(rounded: Rounded, dtype: torch.dtype) -> Tensor:
    """The numbers that a Rounded stands for: low + scale * code.

    Args:
        rounded: what `round_to_bits` made.
        dtype: of the result.

    Returns:
        Tensor of the shape that was rounded.
    """
    codes = unpack(rounded.codes, rounded.bits).float()
    return (rounded.low.float() + rounded.scale.float() * codes).to(dtype)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Put 8 / bits codes in each byte, the first in the lowest bits.

    Args:
        codes: uint8 [..., n], n a multiple of 8 / bits, each below 2^bits.
        bits: 2, 4 or 8.

    Returns:
        uint8 [..., n * bits / 8].
    """
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
    return (codes.unflatten(-1, (-1, 8 // bits)) << shifts).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The codes out of the bytes that `pack` made.

    Args:
        packed: uint8 [..., m].
        bits: 2, 4 or 8.

    Returns:
        uint8 [..., m * 8 / bits].
    """
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2)


def bits_per_number(bits: int, group: int, head_dim: int) -> float:
    """Bits stored for a number of an old token: codes, and a float16 scale and minimum for each group.

    Half of the numbers are keys (a group of `group` tokens shares), half are values (head_dim share).

    Args:
        bits: of one code.
        group: tokens that are rounded together.
        head_dim: numbers in a head's key or value.

    Returns:
        Bits a number.
    """
    return bits + (32 / group + 32 / head_dim) / 2


class QuantizedLayer(Layer):
    """Old tokens rounded in groups, the newest `recent` to `recent + group - 1` tokens in full precision.

    `update` returns the tokens of the present pass untouched, so reading a prompt in one pass is exact; what
    later passes see of it is rounded. Rounding happens once for each token, never again.

    Args:
        bits: 2, 4 or 8.
        group: tokens that are rounded together once they are old enough.
        recent: tokens that always stay as they came; 0 rounds as soon as a group is full.
        keys_by: "channel" (a scale for each channel of a group) or "token" (a scale for each token).
        values_by: the same for the values; KIVI's choice is "token".

    Raises:
        ValueError: an argument is none of these.
    """

    def __init__(self, bits: int = 4, group: int = 32, recent: int = 128, keys_by: str = "channel",
                 values_by: str = "token") -> None:
        super().__init__()
        check_bits(bits)
        for name, value, low in (("group", group, 1), ("recent", recent, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{name} must be a whole number of at least {low}, not {value!r}")
        for name, value in (("keys_by", keys_by), ("values_by", values_by)):
            if value not in ("channel", "token"):
                raise ValueError(f'{name} must be "channel" or "token", not {value!r}')
        self.bits, self.group, self.recent = bits, group, recent
        self.keys_by, self.values_by = keys_by, values_by
        self.old_keys = self.old_values = None  # Rounded, [batch, heads, groups, group, head_dim]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any,
               **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the new tokens, then round what is old.

        Args:
            key_states: their keys, float [batch, heads, n, head_dim].
            value_states: their values, of the same shape.
            *args: ignored.
            **kwargs: ignored.

        Returns:
            All keys and all values, each [batch, heads, seen, head_dim].

        Raises:
            ValueError: the batch has another size than before, or `round_to_bits` refuses the tokens.
        """
        self._begin(key_states, value_states)
        self.keys = torch.cat([self.keys, key_states], dim=2)
        self.values = torch.cat([self.values, value_states], dim=2)
        self.seen += key_states.shape[2]
        keys = _together(self.old_keys, self.keys)
        values = _together(self.old_values, self.values)
        self._round_what_is_old()
        return keys, values

    def _round_what_is_old(self) -> None:
        """Move whole groups of tokens that are no longer recent from full precision to rounded."""
        groups = max(0, self.keys.shape[2] - self.recent) // self.group
        if groups == 0:
            return
        old = groups * self.group
        self.old_keys = self._append(self.old_keys, self.keys[:, :, :old], self.keys_by)
        self.old_values = self._append(self.old_values, self.values[:, :, :old], self.values_by)
        self.keys, self.values = self.keys[:, :, old:].clone(), self.values[:, :, old:].clone()

    def _append(self, rounded: Rounded | None, states: Tensor, by: str) -> Rounded:
        """Round `states` [batch, heads, groups * group, head_dim] and put them behind what is rounded."""
        dim = {"channel": -2, "token": -1}[by]
        new = round_to_bits(states.unflatten(2, (-1, self.group)), self.bits, dim)
        if rounded is None:
            return new
        pairs = zip(rounded.tensors(), new.tensors(), strict=True)
        return Rounded(*[torch.cat(pair, dim=2) for pair in pairs], self.bits)

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self.old_keys = self.old_values = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beam search: row i of the batch goes on from row beam_idx[i].

        Args:
            beam_idx: integer tensor [batch].
        """
        super().reorder_cache(beam_idx)
        if self.old_keys is not None:
            self.old_keys = self.old_keys.map(lambda tensor: tensor[beam_idx])
            self.old_values = self.old_values.map(lambda tensor: tensor[beam_idx])


def _together(rounded: Rounded | None, recent: Tensor) -> Tensor:
    if rounded is None:
        return recent
    return torch.cat([restore(rounded, recent.dtype).flatten(2, 3), recent], dim=2)


def check_bits(bits: int, width: int | None = None) -> None:
    """Refuse bits that cannot be packed.

    Args:
        bits: of one code.
        width: numbers in a row, or None where that does not matter.

    Raises:
        ValueError: bits is not 2, 4 or 8, or `width` numbers do not fill whole bytes.
    """
    if isinstance(bits, bool) or bits not in BITS:
        raise ValueError(f"bits must be 2, 4 or 8, not {bits!r}")
    if width is not None and width % (8 // bits):
        raise ValueError(f"{8 // bits} numbers of {bits} bits fill a byte, head_dim {width} is no multiple "
                         f"of {8 // bits}: use 8 bits")  # fmt: skip
