"""Lesson pruning: wrong answers are rejected for their reason, right ones written otherwise pass.

test_all.py walks these dictionaries.
"""

import math

import numpy as np
import torch

# --- wanda_score ------------------------------------------------------------------------------------------


def _wanda_einsum(weight, inputs):
    return torch.einsum("oi,i->oi", weight.abs(), torch.linalg.vector_norm(inputs, dim=0))


def _wanda_gram(weight, inputs):
    """From the diagonal of X^T X, as from a Hessian."""
    return torch.sqrt(weight.square() * torch.diagonal(inputs.T @ inputs))


def _wanda_signed(weight, inputs):
    return weight * inputs.norm(dim=0)


def _wanda_no_root(weight, inputs):
    return weight.abs() * (inputs**2).sum(dim=0)


def _wanda_rms(weight, inputs):
    return weight.abs() * (inputs**2).mean(dim=0) ** 0.5


def _wanda_l1(weight, inputs):
    return weight.abs() * inputs.norm(p=1, dim=0)


def _wanda_size_only(weight, inputs):
    return torch.abs(weight)


def _wanda_token_length(weight, inputs):
    return weight.abs() * inputs.norm(dim=1)


# --- n_m_mask ---------------------------------------------------------------------------------------------


def _loop(score, n=2, m=4):
    rows, columns = score.shape
    if columns % m != 0:
        raise ValueError("m does not divide the columns")
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    for row in range(rows):
        for start in range(0, columns, m):
            places = sorted(range(start, start + m), key=lambda j: (-score[row, j].item(), j))
            mask[row, places[:n]] = True
    return mask


def _by_rank(score, n=2, m=4):
    """A weight stays when fewer than n of its group beat it: higher, or equal and further left."""
    if score.shape[1] % m:
        raise ValueError(f"need a multiple of {m} columns")
    groups = score.reshape(score.shape[0], -1, m)
    a, b = groups.unsqueeze(-1), groups.unsqueeze(-2)
    left = torch.ones(m, m).tril(-1).bool()
    return (((b > a) | ((b == a) & left)).sum(-1) < n).reshape(score.shape)


def _numpy_mask(score, n=2, m=4):
    if score.shape[1] % m:
        raise ValueError("columns")
    groups = score.numpy().reshape(-1, m)
    order = np.argsort(-groups, axis=1, kind="stable")[:, :n]
    mask = np.zeros(groups.shape, dtype=bool)
    np.put_along_axis(mask, order, True, axis=1)
    return torch.from_numpy(mask.reshape(tuple(score.shape)))


def _keeps_lowest(score, n=2, m=4):
    if score.shape[1] % m:
        raise ValueError
    groups = score.reshape(-1, m)
    lowest = groups.argsort(dim=1, stable=True)[:, :n]
    return torch.zeros_like(groups).bool().scatter(1, lowest, True).reshape(score.shape)


def _inverted(score, n=2, m=4):
    return ~_loop(score, n, m)


def _threshold(score, n=2, m=4):
    if score.shape[1] % m:
        raise ValueError
    groups = score.reshape(-1, m)
    return (groups >= groups.topk(n, dim=1).values[:, -1:]).reshape(score.shape)


def _share_of_row(score, n=2, m=4):
    if score.shape[1] % m:
        raise ValueError
    stay = score.argsort(dim=1, descending=True, stable=True)[:, : score.shape[1] * n // m]
    return torch.zeros_like(score).bool().scatter(1, stay, True)


def _asks_for_numel(score, n=2, m=4):
    """Looks at the number of weights instead of that of the columns."""
    if score.numel() % m:
        raise ValueError("not a multiple")
    groups = score.reshape(-1, m)
    best = groups.argsort(dim=1, descending=True, stable=True)[:, :n]
    return torch.zeros_like(groups).bool().scatter(1, best, True).reshape(score.shape)


def _no_error(score, n=2, m=4):
    width = score.shape[1] // m * m
    return _by_rank(score[:, :width], n, m)


# --- storage_bytes ----------------------------------------------------------------------------------------


def _with_numpy(rows, columns, nonzeros, format, value_bits=16):
    """Counts the bytes of real arrays."""
    value = np.dtype(f"u{value_bits // 8}").itemsize
    index = np.packbits(np.zeros((rows, columns), dtype=bool), axis=1).nbytes
    if format == "dense":
        return rows * columns * value
    if format == "bitmask":
        return nonzeros * value + index
    if format == "csr":
        return nonzeros * value + np.empty(nonzeros, np.int16).nbytes + np.empty(rows + 1, np.int32).nbytes
    if format == "2:4":
        return (rows * columns // 2) * value + index
    raise ValueError(format)


def _with_dict(rows, columns, nonzeros, format, value_bits=16, bitmask_row=None):
    row = 8 * (-(-columns // 8)) if bitmask_row is None else bitmask_row(columns)
    bits = {
        "dense": value_bits * rows * columns,
        "bitmask": value_bits * nonzeros + rows * row,
        "csr": (value_bits + 16) * nonzeros + 32 * (rows + 1),
        "2:4": value_bits * rows * columns // 2 + rows * 8 * (-(-columns // 8)),
    }
    if format not in bits:
        raise ValueError("unknown format")
    return bits[format] // 8


def _changed(format, wrong):
    def answer(rows, columns, nonzeros, given, value_bits=16):
        if given == format:
            return wrong(rows, columns, nonzeros, value_bits // 8)
        return _with_dict(rows, columns, nonzeros, given, value_bits)

    return answer


WRONG = {
    "wanda_score": [
        (_wanda_signed, "sign of the weight"),
        (_wanda_no_root, "no root"),
        (_wanda_rms, "number of tokens"),
        (_wanda_l1, r"sum of \|x\|"),
        (_wanda_size_only, "this is magnitude"),
        (_wanda_token_length, "length of each token|shape|size"),
        (lambda w, x: w.abs() * x.norm(dim=0).clamp(min=1e-3), "always zero|tiny"),
    ],
    "n_m_mask": [
        (_keeps_lowest, "lowest scores stay"),
        (_inverted, "which weights go"),
        (_threshold, "more than n stay"),
        (_share_of_row, "share of each whole row"),
        (_no_error, "ValueError"),
        (_asks_for_numel, "ValueError"),
        (lambda s, n=2, m=4: _loop(s, n, m).int(), "bool"),
        (lambda s, n=2, m=4: _loop(s.where(s.abs() > 1e-6, 0), n, m), "tiny scores"),
    ],
    "storage_bytes": [
        (lambda *a, **k: 8 * _with_dict(*a, **k), "bits, not bytes"),
        (_changed("bitmask", lambda r, c, z, v: z * v), "mask of the bitmask"),
        (_changed("bitmask", lambda r, c, z, v: z * v + r * c), "not one byte"),
        (_changed("bitmask", lambda r, c, z, v: z * v + r * (c // 8)), "rounded down"),
        (_changed("csr", lambda r, c, z, v: z * (v + 2)), "starts of the rows are missing"),
        (_changed("csr", lambda r, c, z, v: z * (v + 2) + 4 * r), "one more number"),
        (_changed("csr", lambda r, c, z, v: z * (v + 4) + 4 * (r + 1)), "32 bits"),
        (_changed("2:4", lambda r, c, z, v: z * v + r * math.ceil(c / 8)), "number of nonzeros"),
        (_changed("2:4", lambda r, c, z, v: r * c // 2 * v), "places are missing"),
        (lambda *a: float(_with_dict(*a)), r"\(float\)"),
        (lambda r, c, z, f, b=16: _with_dict(r, c, z, f if f in ("dense", "csr", "bitmask") else "2:4", b),
         "ValueError"),
    ],
    "predict_speed": [
        (0.5, "skips zeros"),
        (2, "takes as long"),
        (0, "stored and multiplied"),
    ],
    "predict_csr_share": [
        (0, "column number"),
        (6.25, "bitmask"),
        (66.7, "32 bits"),
        (0.5, "percent"),
    ],
}

RIGHT = {
    "wanda_score": [_wanda_einsum, _wanda_gram],
    "n_m_mask": [_loop, _by_rank, _numpy_mask],
    "storage_bytes": [_with_numpy, _with_dict],
    "predict_speed": [1, 0.98],
    "predict_csr_share": [50, 50.0],
}
