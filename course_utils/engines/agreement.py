"""How much of a model is left in an engine: its scores beside those of the FP32 model, on the same tokens."""

import numpy as np


def top1_match(logits: np.ndarray, reference: np.ndarray) -> float:
    """Share of positions at which both put the same token first.

    Args:
        logits: the engine's scores, array [positions, vocabulary].
        reference: those of the FP32 model, of the same shape.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: the shapes differ.
    """
    if np.shape(logits) != np.shape(reference):
        raise ValueError(f"both need the same shape, not {np.shape(logits)} and {np.shape(reference)}")
    return float((np.argmax(logits, axis=-1) == np.argmax(reference, axis=-1)).mean())


def mean_kl(reference: np.ndarray, logits: np.ndarray) -> float:
    """KL(reference || engine) in nats, the mean over positions.

    How many nats longer a text drawn from the reference gets, each token, when the engine's probabilities
    code it. 0 only when all probabilities agree; adding a constant to all logits of a position changes
    nothing.

    Args:
        reference: logits of the FP32 model, array [positions, vocabulary].
        logits: the engine's, of the same shape. Both are computed with in float64.

    Returns:
        Nats a token, 0 or more.

    Raises:
        ValueError: the shapes differ.
    """
    if np.shape(reference) != np.shape(logits):
        raise ValueError(f"both need the same shape, not {np.shape(reference)} and {np.shape(logits)}")
    log_p, log_q = np.asarray(reference, np.float64), np.asarray(logits, np.float64)
    log_p, log_q = (x - x.max(axis=-1, keepdims=True) for x in (log_p, log_q))  # so that exp cannot overflow
    log_p, log_q = (x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in (log_p, log_q))
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean())
