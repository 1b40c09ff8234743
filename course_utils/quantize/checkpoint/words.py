"""Integers of 2, 3, 4 or 8 bits in words of 32 bits, and zero points by both conventions."""

from __future__ import annotations

import torch
from torch import Tensor

from course_utils.quantize import packed

FORMATS = ("gptq", "gptq_v2")


def pack_nibbles(values: Tensor) -> Tensor:
    """Pack eight 4-bit integers into each int32 word, the first into the lowest four bits.

    Args:
        values: integers [8 * n, columns] from 0 to 15.

    Returns:
        int32 [n, columns]: rows 0 ... 7 of `values` make row 0 of the result. A word whose last integer is 8
        or more has its highest bit set: it is negative.
    """
    eight = values.long().reshape(-1, 8, values.shape[1])
    shifts = 4 * torch.arange(8).reshape(1, 8, 1)
    return (eight << shifts).sum(dim=1).to(torch.int32)


def unpack_nibbles(words: Tensor) -> Tensor:
    """The 4-bit integers that `pack_nibbles` put into words.

    Args:
        words: int32 [n, columns].

    Returns:
        uint8 [8 * n, columns].
    """
    shifts = 4 * torch.arange(8).reshape(1, 8, 1)
    eight = (words.long().unsqueeze(1) >> shifts) & 15
    return eight.reshape(-1, words.shape[1]).to(torch.uint8)


def pack_words(values: Tensor, bits: int) -> Tensor:
    """Like `pack_nibbles` for 2, 3, 4 or 8 bits.

    3-bit integers follow each other without gaps, 32 of them in three words.

    Args:
        values: integers [n, columns] from 0 to 2^bits - 1.
        bits: of one integer.

    Returns:
        int32 [n * bits / 32, columns].

    Raises:
        ValueError: when n * bits is no multiple of 32.
    """
    if len(values) * bits % 32:
        raise ValueError(f"{len(values)} integers of {bits} bits do not fill whole 32-bit words")
    if bits == 4:
        return pack_nibbles(values)
    return packed.pack(values.T, bits).view(torch.int32).T.contiguous()


def unpack_words(words: Tensor, bits: int) -> Tensor:
    """What `pack_words` packed.

    Args:
        words: int32 [n, columns].
        bits: of one integer.

    Returns:
        uint8 [32 * n / bits, columns].
    """
    if bits == 4:
        return unpack_nibbles(words)
    # `contiguous` would leave the strides of one row as they are, and `view` asks for plain ones.
    rows = words.T.clone(memory_format=torch.contiguous_format).view(torch.uint8)
    return packed.unpack(rows, bits, len(words) * 32 // bits).T.contiguous()


def zeros_to_words(zero: Tensor, bits: int, format: str) -> Tensor:
    """Zero points as the words of `qzeros`.

    Args:
        zero: [groups, out], whole numbers from 0.
        bits: of one zero point.
        format: "gptq" (version 1) or "gptq_v2".

    Returns:
        int32 [groups, out * bits / 32].

    Raises:
        ValueError: for another format, and for a zero point of 0 in version 1, which would have to be stored
            as -1: readers disagree about what that means.
    """
    check_format(format)
    if format == "gptq" and bool((zero < 1).any()):
        raise ValueError('a zero point is 0: version 1 of the format cannot hold it, use format="gptq_v2"')
    stored = zero - 1 if format == "gptq" else zero
    return pack_words(stored.T.long(), bits).T.contiguous()


def zeros_from_words(words: Tensor, bits: int, format: str) -> Tensor:
    """The zero points in words of `qzeros`.

    Args:
        words: int32 [groups, out * bits / 32].
        bits: of one zero point.
        format: "gptq" (version 1) or "gptq_v2".

    Returns:
        uint8 [groups, out].

    Raises:
        ValueError: for another format.
    """
    check_format(format)
    stored = unpack_words(words.T.contiguous(), bits).T
    return (stored + 1) & (2**bits - 1) if format == "gptq" else stored


def check_format(format: str) -> None:
    """Refuse a format other than the two.

    Args:
        format: should be "gptq" or "gptq_v2".

    Raises:
        ValueError: when it is another.
    """
    if format not in FORMATS:
        raise ValueError(f'format must be "gptq" or "gptq_v2", got {format!r}')
