"""Lesson engines: wrong answers are rejected for their reason, right ones written otherwise pass."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import log_softmax, rel_entr, softmax

# --- decode_bound -------------------------------------------------------------------------------------------


def _bound_by_time(weight_bytes, bandwidth, cache_bytes=0, batch=1):
    seconds = weight_bytes / bandwidth
    for _ in range(batch):
        seconds += cache_bytes / bandwidth
    return batch / seconds


def _bound_by_share(weight_bytes, bandwidth, cache_bytes=0, batch=1):
    return bandwidth / (weight_bytes / batch + cache_bytes)


def _checked(bound):
    def checked(weight_bytes, bandwidth, cache_bytes=0, batch=1):
        if not (bandwidth > 0 and weight_bytes + batch * cache_bytes > 0):
            raise ValueError("not positive")
        return bound(weight_bytes, bandwidth, cache_bytes, batch)
    return checked


def _bound_without_a_look(weight_bytes, bandwidth, cache_bytes=0, batch=1):
    return batch * bandwidth / ((weight_bytes + batch * cache_bytes) or 1)


def _bound_checked(weight_bytes, bandwidth, cache_bytes=0, batch=1, least=0.0):
    read = weight_bytes + batch * cache_bytes
    if weight_bytes < 0 or min(read, bandwidth) <= least:
        raise ValueError("nothing to read")
    return batch * bandwidth / read


# --- mean_kl ------------------------------------------------------------------------------------------------


def _kl_torch(reference, logits, dtype=torch.double):
    if reference.shape != logits.shape:
        raise ValueError("shapes")
    p, q = (F.log_softmax(torch.as_tensor(x.copy()).to(dtype), dim=-1) for x in (reference, logits))
    return F.kl_div(q, p, log_target=True, reduction="batchmean").item()


def _kl_smoothed(reference, logits, least):
    if reference.shape != logits.shape:
        raise ValueError("shapes")
    p, q = (softmax(x.astype(float), axis=1) + least for x in (reference, logits))
    return float(((p - least) * (np.log(p) - np.log(q))).sum(axis=1).mean())


def _kl_by_loops(reference, logits):
    if reference.shape != logits.shape:
        raise ValueError("shapes")
    total = 0.0
    for a, b in zip(reference.astype(float), logits.astype(float), strict=True):
        p, q = softmax(a), log_softmax(b)
        total += sum(x * (y - z) for x, y, z in zip(p, log_softmax(a), q, strict=True))
    return total / len(reference)


# --- missing_parts ------------------------------------------------------------------------------------------


def _missing_by_filter(inputs, outputs):
    def four(side):
        return [shape for _, shape in side if len(shape) == 4]

    found = {
        "cache": len(four(inputs)) > 0 and len(four(inputs)) == len(four(outputs))
        and all(not isinstance(shape[-2], int) for shape in four(inputs)),
        "mask": any(name == "attention_mask" for name, _ in inputs),
        "dynamic length": all(not isinstance(shape[1], int) for name, shape in inputs if name == "input_ids"),
    }  # fmt: skip
    return {name for name, there in found.items() if not there}


def _missing_by_removing(inputs, outputs):
    parts = {"cache", "mask", "dynamic length"}
    past = 0
    for name, shape in inputs:
        if name == "attention_mask":
            parts.discard("mask")
        if name == "input_ids" and type(shape[1]) is not int:
            parts.discard("dynamic length")
        if len(shape) == 4:
            past += 1 if type(shape[2]) is not int else 10**6
    if 0 < past == sum(len(shape) == 4 for _, shape in outputs):
        parts.remove("cache")
    return parts


WRONG = {
    "decode_bound": [
        (lambda w, b, c=0, n=1: (w + n * c) / b, "seconds for a step"),
        (lambda w, b, c=0, n=1: n * b / w, "cache left out"),
        (lambda w, b, c=0, n=1: n * b / (n * w + n * c), "once for each sequence"),
        (lambda w, b, c=0, n=1: b / (w + n * c), "steps a second"),
        (lambda w, b, c=0, n=1: n * b / (w + c), "one cache for all"),
        (lambda w, b, c=0, n=1: n * b / 8 / (w + n * c), "bits taken for bytes"),
        (_bound_without_a_look, "ValueError raised"),
        (lambda w, b, c=0, n=1: _bound_checked(w, b, c, n, least=1e-6), "tiny figures"),
        (lambda w, b, c=0, n=1: _bound_checked(w or -1, b, c, n), "no weights"),
    ],
    "predict_tokens_read": [
        (127, "with a cache"),
        (4096, "the prompt alone"),
        (8192, "whole text each time"),
    ],
    "missing_parts": [
        (lambda i, o: {"cache", "mask", "dynamic length"} - _missing_by_filter(i, o), "what the graph has"),
        (lambda i, o: _missing_by_filter(i, i), "only the inputs"),
        (lambda i, o: _missing_by_filter(i, o) - {"cache"} | (
            set() if any(len(s) == 4 for _, s in o) else {"cache"}), "only the outputs"),
        (lambda i, o: _missing_by_filter([(n, s) for n, s in i if len(s) < 4 or n.startswith("past")], o),
         "recognised by its name"),
        (lambda i, o: _missing_by_filter(i, o) - {"cache"} | (
            set() if any("past" in n for n, _ in i) else {"cache"}), "a name among the inputs"),
        (lambda i, o: _missing_by_filter([(n, s[:2] + [""] + s[3:] if len(s) == 4 else s) for n, s in i], o),
         "fixed length accepted"),
        (lambda i, o: _missing_by_filter([(n, s[::-1] if n == "input_ids" else s) for n, s in i], o),
         "batch looked at"),
        (lambda i, o: _missing_by_filter([(n, [-1 if d is None else d for d in s]) for n, s in i], o),
         "without a name taken for fixed"),
        (lambda i, o: sorted(_missing_by_filter(i, o)), "a list"),
        (lambda i, o: _missing_by_filter([(n, s[:4]) for n, s in i], [(n, s[:4]) for n, s in o]), "five dim"),
        (lambda i, o: _missing_by_filter(i, [output for output in o if len(output[1]) == 4][
            :sum(len(s) == 4 for _, s in i)]), "more comes out"),
        (lambda i, o: None, "is a `return` missing"),
        (lambda i, o: _missing_by_filter(i, o) - {"dynamic length"} | (
            {"dynamic length"} if any(type(d) is int for d in dict(i)["input_ids"]) else set()),
         "any number"),
        (lambda i, o: _missing_by_filter([(n, [d or 1 for d in s] if len(s) == 4 else s) for n, s in i], o),
         "without a name"),
        (lambda i, o: _missing_by_filter([x for x in i if len(x[1]) != 4] + [x for x in i if len(x[1]) == 4][
            -1:] * sum(len(s) == 4 for _, s in i), o), "first tensor of the cache"),
        (lambda i, o: _missing_by_filter(i, o) - ({"mask"} if any("mask" in n for n, _ in i) else set()),
         "another input taken for the mask"),
        (lambda i, o: _missing_by_filter(i, o) - (
            {"mask"} if any(n.startswith("attention") for n, _ in i) else set()), "bias of the attention"),
        (lambda i, o: _missing_by_filter(i, o) - ({"mask"} if "attention_mask" in dict(i + o) else set()),
         "comes out and does not go in"),
    ],
    "mean_kl": [
        (lambda r, x: _kl_smoothed(r, x, 1e-12), "a small number added"),
        (lambda r, x: _kl_smoothed(r, x, 1e-20), "in the thousands, turned upside down"),
        (lambda r, x: _kl_torch(x, r), "other way round"),
        (lambda r, x: _kl_torch(r, x) * len(r), "sum over"),
        (lambda r, x: rel_entr(softmax(r.astype(float), -1), softmax(x.astype(float), -1)).sum(-1).mean(),
         "in the thousands, turned upside down"),
        (lambda r, x: _kl_torch(r, x) / r.shape[1], "over the vocabulary"),
        (lambda r, x: -(softmax(r.astype(float), -1) * log_softmax(x.astype(float), -1)).sum(-1).mean(),
         "cross-entropy"),
        (lambda r, x: _kl_torch(r, x) / np.log(2), "bits"),
        (lambda r, x: (softmax(r, -1) * (r - x)).sum(-1).mean(), "taken for log-probabilities"),
        (lambda r, x: (lambda p, q: (p * np.log(p / q)).sum(1).mean())(
            *(np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (r, x))), "overflows"),
        (lambda r, x: _kl_torch(np.float32(r), np.float32(x), torch.float), "a constant added"),
        (lambda r, x: _kl_torch(r, np.broadcast_to(x, r.shape)), "ValueError raised"),
        (lambda r, x: _kl_torch(r, np.resize(x, r.shape)), "ValueError raised"),
    ],
}  # fmt: skip

def _bound_in_float32(weight_bytes, bandwidth, cache_bytes=0, batch=1):
    read = torch.tensor(weight_bytes + batch * cache_bytes, dtype=torch.float32)
    return (batch * torch.tensor(bandwidth) / read).item()


RIGHT = {
    "decode_bound": [_checked(_bound_by_time), _checked(_bound_by_share), _checked(_bound_in_float32),
                     _bound_checked],
    "predict_tokens_read": [6112, sum(64 + i for i in range(64))],
    "missing_parts": [_missing_by_filter, _missing_by_removing],
    "mean_kl": [_kl_torch, _kl_by_loops],
}
