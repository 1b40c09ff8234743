"""AWQ, activation-aware weight quantization: scale the channels that matter before rounding.

A weight's error is multiplied by what flows through its input channel, and a few channels carry far larger
activations than the rest. Multiply the columns of those channels by s > 1 before rounding, and divide what
flows in by the same s: the product is unchanged, while the rounding error of these columns shrinks by s. The
division costs nothing at run time, for it is folded into the weights of the layer before. Every weight is
stored with the same few bits: no column is kept in higher precision.

    walk over the blocks:  for each group of layers that read the same input
        importance  a = mean |x| of each input channel
        scale       s = a^ratio, ratio from a grid of 20: the one with the smallest output error
        fold        layer before / s, columns * s
        clip        shrink each group's range while the output error falls (not for q and k)
        quantize    round to nearest

salient      the motivating experiment: 1 % of the channels in full precision
scaling      importance, scale; the search for the ratio
clipping     the search for the range of each group
whole_model  where a block can be scaled; one block; all of them

Sources: Lin et al., arXiv 2306.00978, and its reference code mit-han-lab/llm-awq (awq/quantize/auto_scale.py,
auto_clip.py).
"""

from course_utils.quantize.awq.clipping import SHRINKS, clip, search_clip
from course_utils.quantize.awq.salient import (
    keep_channels,
    keep_salient,
    model_importance,
    salient_channels,
)
from course_utils.quantize.awq.scaling import (
    RATIOS,
    ScaleSearch,
    awq_scale,
    channel_importance,
    round_in_place,
    scaled_fake_quantize,
    search_scale,
)
from course_utils.quantize.awq.whole_model import Choice, Group, awq, awq_block, scaling_groups
from course_utils.quantize.layerwise import fold_scale

__all__ = [
    "RATIOS", "SHRINKS", "Choice", "Group", "ScaleSearch", "awq", "awq_block", "awq_scale",
    "channel_importance", "clip", "fold_scale", "keep_channels", "keep_salient", "model_importance",
    "round_in_place", "salient_channels", "scaled_fake_quantize", "scaling_groups", "search_clip",
    "search_scale",
]  # fmt: skip
