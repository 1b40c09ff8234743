"""Measuring: quality, bytes, time and the machine. Results are small dataclasses that print themselves."""

from course_utils.measure.memory import PeakMemory, WeightBytes, peak_memory, weight_bytes
from course_utils.measure.quality import Accuracy, Perplexity, accuracy, evaluating, perplexity

__all__ = [
    "Accuracy",
    "PeakMemory",
    "Perplexity",
    "WeightBytes",
    "accuracy",
    "evaluating",
    "peak_memory",
    "perplexity",
    "weight_bytes",
]
