"""How much of a model is left in an engine: its scores beside those of the FP32 model, on the same tokens."""

import numpy as np


def top1_match(logits, reference) -> float:
    """Share of positions at which both put the same token first, from 0 to 1.

    logits, reference: arrays [positions, vocabulary]. Raises ValueError when their shapes differ.
    """
    logits, reference = _pair(logits, reference)
    return float((logits.argmax(axis=-1) == reference.argmax(axis=-1)).mean())


def mean_kl(reference, logits) -> float:
    """KL(reference || engine) in nats, the mean over positions.

    How many nats longer a text drawn from the reference gets, each token, when the engine's probabilities
    code it. 0 only when all probabilities agree. Adding a constant to a position's logits changes nothing.
    reference, logits: arrays [positions, vocabulary], computed in float64. Raises ValueError when their
    shapes differ.
    """
    reference, logits = _pair(reference, logits)
    p, q = log_softmax(reference), log_softmax(logits)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def log_softmax(logits) -> np.ndarray:
    """Log-probabilities along the last axis, float64. Without the largest logit, exp cannot overflow."""
    logits = np.asarray(logits, dtype=np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def _pair(a, b):
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim != 2 or 0 in a.shape:
        raise ValueError(f"both need the same shape [positions, vocabulary], not {a.shape} and {b.shape}")
    return a, b
