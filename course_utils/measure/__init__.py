"""Measuring: quality, bytes, time and the machine. Results are small dataclasses that print themselves."""

from course_utils.measure.comparison import Comparison, compare, paired_difference, ranking
from course_utils.measure.likeness import Likeness, likeness, same_greedy
from course_utils.measure.machine import MachineCard, machine_card
from course_utils.measure.memory import (
    PeakMemory,
    WeightBytes,
    frequent_collection,
    peak_memory,
    release_memory,
    weight_bytes,
)
from course_utils.measure.quality import (
    Accuracy,
    Perplexity,
    accuracy,
    accuracy_of_answers,
    check_causal,
    check_text,
    evaluating,
    perplexity,
    perplexity_of_windows,
)
from course_utils.measure.report import table
from course_utils.measure.speed import (
    Bandwidth,
    GenerationSpeed,
    Latency,
    MatmulSpeed,
    bandwidth,
    generation_speed,
    latency,
    matmul_speed,
    synchronize,
)
from course_utils.measure.zero_shot import LastWords, last_word_accuracy, last_words

__all__ = [
    "Accuracy",
    "Bandwidth",
    "Comparison",
    "GenerationSpeed",
    "LastWords",
    "Latency",
    "Likeness",
    "MachineCard",
    "MatmulSpeed",
    "PeakMemory",
    "Perplexity",
    "WeightBytes",
    "accuracy",
    "accuracy_of_answers",
    "bandwidth",
    "check_causal",
    "check_text",
    "compare",
    "evaluating",
    "frequent_collection",
    "generation_speed",
    "last_word_accuracy",
    "last_words",
    "latency",
    "likeness",
    "machine_card",
    "matmul_speed",
    "paired_difference",
    "peak_memory",
    "perplexity",
    "perplexity_of_windows",
    "ranking",
    "release_memory",
    "same_greedy",
    "synchronize",
    "table",
    "weight_bytes",
]
