"""What zeros save: three ways to store a matrix that has many of them.

Bitmask   one bit a weight says whether it is there, then the values of those that are
CSR       compressed sparse rows: each value with the number of its column, and where each row starts
TwoFour   2:4, packed: two values of each four neighbours, and two bits for the place of each

Each is built with `pack(weight)`, gives the matrix back with `unpack()`, and knows its `nbytes`: those of the
tensors it really holds. `matmul(x)` multiplies as a linear layer does, by the means that torch has on a CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from course_utils.quantize import packed


def storage_bytes(rows: int, columns: int, nonzeros: int, format: str, value_bits: int = 16) -> int:
    """Bytes that a matrix takes in a format.

    The bits of a row fill whole bytes: the last one may have bits to spare.

    Args:
        rows: of the matrix.
        columns: of the matrix.
        nonzeros: weights that are not zero.
        format: "dense": every value. "bitmask": the nonzero values, and one bit for each weight. "csr": the
            nonzero values, a column number of 16 bits for each, and rows + 1 numbers of 32 bits that say
            where each row starts and the last one ends. "2:4": two values of each four neighbours, zero or
            not, and 2 bits for the place of each.
        value_bits: bits of a value: 8, 16 or 32.

    Returns:
        Bytes.

    Raises:
        ValueError: for another format.
    """
    row_bytes = math.ceil(columns / 8)  # one bit for each weight; two bits for each second weight are as many
    value_bytes = value_bits // 8
    if format == "dense":
        return rows * columns * value_bytes
    if format == "bitmask":
        return nonzeros * value_bytes + rows * row_bytes
    if format == "csr":
        return nonzeros * (value_bytes + 2) + (rows + 1) * 4
    if format == "2:4":
        return rows * columns // 2 * value_bytes + rows * row_bytes
    raise ValueError(f'format must be "dense", "bitmask", "csr" or "2:4", got {format!r}')


class _Sparse:
    """What the three formats have in common.

    Attributes:
        shape: of the matrix, (out, in).
    """

    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that are stored."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))

    def unpack(self) -> Tensor:
        """The matrix [out, in] as it was, zeros and all."""
        raise NotImplementedError

    def matmul(self, x: Tensor) -> Tensor:
        """Multiply as nn.Linear does, x W^T. There is no kernel for it: unpack first.

        Args:
            x: float [..., in].

        Returns:
            [..., out] in x's dtype.
        """
        return F.linear(x, self.unpack().to(x.dtype))


@dataclass(frozen=True)
class Bitmask(_Sparse):
    """One bit a weight says whether it is there, then the values of those that are.

    Attributes:
        bits: uint8 [out, ceil(in / 8)], lowest bit first.
        values: [nonzeros], row by row.
        shape: of the matrix, (out, in).
    """

    bits: Tensor
    values: Tensor
    shape: tuple[int, int]

    @classmethod
    def pack(cls, weight: Tensor) -> Bitmask:
        """Store a matrix in its own dtype.

        Args:
            weight: [out, in].

        Returns:
            The packed matrix.

        Raises:
            ValueError: for anything but a matrix.
        """
        _check_matrix(weight)
        there = weight != 0
        return cls(packed.pack(there.to(torch.uint8), 1), weight[there], tuple(weight.shape))

    def unpack(self) -> Tensor:
        """The matrix [out, in] as it was, zeros and all."""
        there = packed.unpack(self.bits, 1, self.shape[1]).bool()
        weight = self.values.new_zeros(self.shape)
        weight[there] = self.values
        return weight


@dataclass(frozen=True)
class CSR(_Sparse):
    """Compressed sparse rows: each value with the number of its column, and where each row starts.

    Attributes:
        starts: int32 [out + 1].
        columns: int16 [nonzeros].
        values: [nonzeros], row by row.
        shape: of the matrix, (out, in).
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    shape: tuple[int, int]

    @classmethod
    def pack(cls, weight: Tensor) -> CSR:
        """Store a matrix in its own dtype.

        Args:
            weight: [out, in], 32,768 columns at most.

        Returns:
            The packed matrix.

        Raises:
            ValueError: for anything but a matrix, and for more columns.
        """
        _check_matrix(weight)
        if weight.shape[1] > 2**15:
            raise ValueError(f"{weight.shape[1]} columns do not fit into a column number of 16 bits")
        there = weight != 0
        ends = there.sum(dim=1).cumsum(0)
        starts = F.pad(ends, (1, 0)).to(torch.int32)
        return cls(starts, there.nonzero()[:, 1].to(torch.int16), weight[there], tuple(weight.shape))

    def unpack(self) -> Tensor:
        """The matrix [out, in] as it was, zeros and all."""
        rows = torch.repeat_interleave(torch.arange(self.shape[0], device=self.values.device),
                                       self.starts.diff().long())
        weight = self.values.new_zeros(self.shape)
        weight[rows, self.columns.long()] = self.values
        return weight

    def kernel(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The same as torch's sparse CSR tensor, for its kernel: it takes indices of 32 bits, not of 16.

        Args:
            dtype: of the values.

        Returns:
            A sparse CSR tensor [out, in].
        """
        return torch.sparse_csr_tensor(self.starts, self.columns.to(torch.int32), self.values.to(dtype),
                                       self.shape, check_invariants=False)

    def matmul(self, x: Tensor) -> Tensor:
        """Multiply as nn.Linear does, x W^T, by torch's kernel for CSR.

        Args:
            x: float [..., in].

        Returns:
            [..., out] in x's dtype.
        """
        flat = x.reshape(-1, x.shape[-1])
        return (self.kernel(x.dtype) @ flat.T).T.reshape(*x.shape[:-1], self.shape[0])


@dataclass(frozen=True)
class TwoFour(_Sparse):
    """2:4, packed: two values of each four neighbours, and two bits for the place of each.

    Attributes:
        places: uint8 [out, ceil(in / 8)], 2 bits for each value.
        values: [out, in / 2].
        shape: of the matrix, (out, in).
    """

    places: Tensor
    values: Tensor
    shape: tuple[int, int]

    @classmethod
    def pack(cls, weight: Tensor) -> TwoFour:
        """Store a matrix in its own dtype.

        Args:
            weight: [out, in].

        Returns:
            The packed matrix.

        Raises:
            ValueError: for anything but a matrix, when in is not divisible by 4, or when some four neighbours
                hold more than two nonzeros.
        """
        _check_matrix(weight)
        rows, columns = weight.shape
        if columns % 4:
            raise ValueError(f"{columns} columns cannot be cut into groups of 4")
        groups = weight.reshape(rows, -1, 4)
        there = groups != 0
        crowded = (there.sum(dim=2) > 2).any(dim=1).nonzero()
        if len(crowded):
            raise ValueError(f"row {crowded[0].item()} has more than two nonzeros in a group of four: "
                             "prune it to 2:4 first")
        # Nonzeros first, each half in its order; then the two places in ascending order.
        order = there.to(torch.uint8).argsort(dim=2, descending=True, stable=True)
        places = order[..., :2].sort(dim=2).values
        values = groups.gather(2, places).reshape(rows, -1)
        return cls(packed.pack(places.reshape(rows, -1), 2), values, (rows, columns))

    def unpack(self) -> Tensor:
        """The matrix [out, in] as it was, zeros and all."""
        rows, columns = self.shape
        places = packed.unpack(self.places, 2, columns // 2).long().reshape(rows, -1, 2)
        groups = self.values.new_zeros(rows, columns // 4, 4)
        return groups.scatter(2, places, self.values.reshape(rows, -1, 2)).reshape(self.shape)


FORMATS = {"bitmask": Bitmask, "csr": CSR, "2:4": TwoFour}


def _check_matrix(weight: Tensor) -> None:
    """Refuse what is no matrix, or an empty one: ValueError."""
    if weight.dim() != 2 or weight.numel() == 0:
        raise ValueError(f"a matrix [out, in] is needed, got shape {list(weight.shape)}")
