"""Lesson gptq: wrong answers are rejected for their reason, right ones written otherwise pass.

test_all.py walks these dictionaries.
"""

import numpy as np
import torch

# --- Hessian ----------------------------------------------------------------------------------------------


class _Base:
    """Keeps all inputs: another way to write it, and the base of the wrong answers."""

    def __init__(self):
        self.batches = []

    def add(self, x):
        self.batches.append(x.clone())

    @property
    def matrix(self):
        x = torch.cat(self.batches)
        return 2 / x.shape[0] * torch.einsum("ni,nj->ij", x, x)


class _RunningMean:
    """What GPTQ's reference code does: rescale the mean at each batch."""

    def __init__(self):
        self.matrix, self.n = None, 0

    def add(self, x):
        n = x.shape[0]
        old = torch.zeros(x.shape[1], x.shape[1]) if self.matrix is None else self.matrix
        scaled = (2 / (self.n + n)) ** 0.5 * x
        self.matrix = old * (self.n / (self.n + n)) + scaled.T @ scaled
        self.n += n


class _NoTwo(_Base):
    @property
    def matrix(self):
        x = torch.cat(self.batches)
        return x.T @ x / len(x)


class _PerBatch(_Base):
    @property
    def matrix(self):
        return 2 * sum(x.T @ x for x in self.batches) / len(self.batches)


class _LastOnly:
    def __init__(self):
        self.matrix = None

    def add(self, x):
        self.matrix = 2 * (x.T @ x) / x.shape[0]


class _MeanOfMeans(_Base):
    @property
    def matrix(self):
        return torch.stack([2 * x.T @ x / len(x) for x in self.batches]).mean(dim=0)


class _InDouble(_Base):
    @property
    def matrix(self):
        x = torch.cat(self.batches).double()
        return 2 * x.T @ x / len(x)


class _ScalesOnReading:
    """Each reading of the matrix divides the sum once more."""

    def __init__(self):
        self.total, self.n = 0, 0

    def add(self, x):
        self.total, self.n = self.total + x.T @ x, self.n + len(x)

    @property
    def matrix(self):
        self.total = self.total * (2 / self.n)
        return self.total


class _NotDivided(_Base):
    @property
    def matrix(self):
        return 2 * sum(x.T @ x for x in self.batches)


# --- column_update ----------------------------------------------------------------------------------------


def _loops(weight, column, rounded, factor):
    new, errors = weight.clone(), torch.empty(len(weight))
    for row in range(len(weight)):
        errors[row] = (weight[row, column] - rounded[row]) / factor[column, column]
        for other in range(column, weight.shape[1]):
            new[row, other] = weight[row, other] - errors[row] * factor[column, other]
    return new, errors


def _slices(weight, column, rounded, factor):
    error = (weight[:, column] - rounded) / factor[column, column]
    new = weight.clone()
    new[:, column] = rounded
    new[:, column + 1 :] -= error.unsqueeze(1) * factor[column, column + 1 :].unsqueeze(0)
    return new, error


def _adds(weight, column, rounded, factor):
    error = (weight[:, column] - rounded) / factor[column, column]
    return weight + error[:, None] * factor[column], error


def _takes_a_column(weight, column, rounded, factor):
    error = (weight[:, column] - rounded) / factor[column, column]
    return weight - error[:, None] * factor[:, column], error


def _forgets_the_diagonal(weight, column, rounded, factor):
    error = weight[:, column] - rounded
    return weight - error[:, None] * factor[column], error


def _rounds_only(weight, column, rounded, factor):
    new = weight.clone()
    new[:, column] = rounded
    return new, (weight[:, column] - rounded) / factor[column, column]


def _in_place(weight, column, rounded, factor):
    new, error = _slices(weight.detach(), column, rounded, factor)
    weight.data.copy_(new)
    return weight, error


def _full_inverse(weight, column, rounded, factor):
    inverse = torch.matmul(factor.T, factor)
    error = (weight[:, column] - rounded) / inverse[column, column]
    return weight - error[:, None] * inverse[column], error


# --- nibbles ----------------------------------------------------------------------------------------------


def _pack_loop(values):
    words = torch.zeros(len(values) // 8, values.shape[1], dtype=torch.int64)
    for row in range(len(values)):
        words[row // 8] |= values[row].to(torch.int64) << (4 * (row % 8))
    return words.to(torch.int32)


def _pack_numpy(values):
    pairs = values.numpy().astype(np.uint8)
    octets = pairs[0::2] | (pairs[1::2] << 4)
    return torch.from_numpy(np.ascontiguousarray(octets.T).view("<i4").T.copy())


def _pack_high_first(values):
    words = torch.zeros(len(values) // 8, values.shape[1], dtype=torch.int64)
    for row in range(len(values)):
        words[row // 8] |= values[row].long() << (28 - 4 * (row % 8))
    return words.to(torch.int32)


def _pack_one_bit_steps(values):
    words = torch.zeros(len(values) // 8, values.shape[1], dtype=torch.int64)
    for row in range(len(values)):
        words[row // 8] += values[row].long() << (row % 8)
    return words.to(torch.int32)


def _pack_far_rows(values):
    n = len(values) // 8
    words = torch.zeros(n, values.shape[1], dtype=torch.int64)
    for i in range(8):
        words |= values[i * n : (i + 1) * n].long() << (4 * i)
    return words.to(torch.int32)


def _unpack_loop(words):
    rows = [(word.long() >> (4 * i)) % 16 for word in words for i in range(8)]
    return torch.stack(rows).to(torch.uint8)


def _unpack_bytes(words):
    octets = np.ascontiguousarray(words.numpy().T).view(np.uint8).T
    values = np.empty((2 * len(octets), octets.shape[1]), np.uint8)
    values[0::2], values[1::2] = octets & 15, octets >> 4
    return torch.from_numpy(values)


def _unpack_high_first(words):
    rows = [(word.long() >> (28 - 4 * i)) & 15 for word in words for i in range(8)]
    return torch.stack(rows).to(torch.uint8)


def _unpack_no_mask(words):
    return torch.stack([word.long() >> (4 * i) for word in words for i in range(8)]).to(torch.uint8)


def _unpack_three_bits(words):
    return torch.stack([(word.long() >> (4 * i)) & 7 for word in words for i in range(8)]).to(torch.uint8)


WRONG = {
    "Hessian": [
        (_NoTwo, "factor 2"),
        (_PerBatch, "number of batches"),
        (_LastOnly, "only the last batch"),
        (_MeanOfMeans, "mean of the batches' means"),
        (_NotDivided, "not divided by the number of tokens"),
        (_InDouble, "float64"),
        (_ScalesOnReading, "second time|each time"),
    ],
    "column_update": [
        (_adds, "against the error"),
        (_takes_a_column, "column of the factor"),
        (_forgets_the_diagonal, "not divided by the factor's diagonal"),
        (_rounds_only, "no other column"),
        (_full_inverse, "already rounded move too"),
        (_in_place, "in place"),
        (lambda w, c, r, f: _loops(w, c, torch.where((w[:, c] - r).abs() < 5e-3, w[:, c], r), f), "small"),
    ],
    "pack_nibbles": [
        (_pack_high_first, "highest bits"),
        (_pack_one_bit_steps, "neighbours overlap"),
        (_pack_far_rows, "rows far apart"),
        (lambda values: _pack_loop(values).long(), "int64"),
    ],
    "unpack_nibbles": [
        (_unpack_high_first, "highest four bits come first"),
        (_unpack_no_mask, "& 15"),
        (_unpack_three_bits, "three bits"),
        (lambda words: _unpack_loop(words).int(), "int32"),
        (lambda words: _unpack_loop(words.abs()), "negative|any words"),
    ],
    "predict_hessian_bytes": [
        (1536**2, "number of entries"),
        (1536 * 576 * 4, "weight itself"),
        (1536 * 4, "one row"),
        (576**2 * 4, "outputs of this layer"),
    ],
    "predict_new_text": [
        ("better", "fitted to"),
        ("equal", "different integers"),
        ("no idea", "one word"),
    ],
}

RIGHT = {
    "Hessian": [_Base, _RunningMean],
    "column_update": [_loops, _slices],
    "pack_nibbles": [_pack_loop, _pack_numpy],
    "unpack_nibbles": [_unpack_loop, _unpack_bytes],
    "predict_hessian_bytes": [9.4e6, 1536 * 1536 * 4],
    "predict_new_text": ["worse", "Worse"],
}
