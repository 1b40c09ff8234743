"""Unstructured pruning: which single weights can become zero?

Every method here is a *score*: the higher, the more a weight is needed. The lowest go.

random      no reason at all: the baseline
magnitude   |W|: small weights matter least (Han et al., arXiv 1506.02626)
Wanda       |W| * ||x||: a small weight on a large input may matter (Sun et al., arXiv 2306.11695)

Weights compete within a row, a layer, the whole model, or a group of neighbours (2 of each 4 stay). Shapes:
weight and score [out, in] as in nn.Linear; a mask is bool, True where a weight stays.

scores       random, magnitude, Wanda
masks        which weights stay: a share, or n of m neighbours
whole_model  the linear layers of all blocks; zeros held in training
"""

from course_utils.prune.unstructured.masks import (
    Sparsity,
    check_pattern,
    describe,
    keep_highest,
    mask_of,
    n_m_mask,
)
from course_utils.prune.unstructured.scores import InputNorm, magnitude_score, random_score, wanda_score
from course_utils.prune.unstructured.whole_model import (
    COMPETE,
    HoldZeros,
    prune_model,
    share_of_zeros,
    wanda_model,
)

__all__ = [
    "COMPETE", "HoldZeros", "InputNorm", "Sparsity", "check_pattern", "describe", "keep_highest",
    "magnitude_score", "mask_of", "n_m_mask", "prune_model", "random_score", "share_of_zeros", "wanda_model",
    "wanda_score",
]  # fmt: skip
