"""The calibration walk: run text through a model block by block and let a method edit each block's weights.

GPTQ, AWQ, SmoothQuant and the pruning methods all need the same thing: what goes into each linear layer when
real text passes, with the blocks before it already edited. So the walk is written once:

1. run the model up to its first block and keep what goes in, and what else each block is called with: its
   mask, its positions (`capture`);
2. for each block: collect statistics of the inputs of its linear layers (one pass over the text), let the
   method edit the block, run the block again with its new weights, and hand the outputs to the next block.

Only one block's activations are kept, and statistics accumulate batch by batch, so memory does not grow with
depth. A method is a function on (name, linear, statistic) -> new weight, made into a block edit by
`each_linear`; a method that needs several layers at once (AWQ, SmoothQuant) takes the `Block` itself.

    walk(model, tokens, each_linear(gptq), Hessian)      # tokens: LongTensor [n, length]

Works for every model whose blocks run one after another, each on what the one before it put out, and whose
weights stand in linear layers; others are refused. On any device.

statistics  what a method may want to know about a layer's inputs: Hessian, mean, largest, a sample
finding     where the blocks and their linear layers are, and what share of the weights these hold
block       one block with the inputs that reach it
folding     a factor that moves from a norm into the layers that read it, and whether it can
walking     the walk; statistics without an edit; what the blocks are called with
replacing   new weights for each linear layer, by a method or by round to nearest
backup      the weights as they were, on disk
"""

from course_utils.quantize.layerwise.block import Block, Call
from course_utils.quantize.layerwise.finding import (
    MINIMUM_SHARE,
    NORM_READERS,
    block_linears,
    check_coverage,
    check_untied,
    coverage,
    find_blocks,
    linears_of,
    short_text,
)
from course_utils.quantize.layerwise.folding import fold_scale, folds, norm_readers
from course_utils.quantize.layerwise.replacing import (
    check_replaceable,
    check_weights,
    each_linear,
    round_to_nearest,
)
from course_utils.quantize.layerwise.statistics import AbsMax, Hessian, MeanAbs, Sample, Together
from course_utils.quantize.layerwise.walking import capture, collect_statistics, walk

__all__ = [
    "MINIMUM_SHARE", "NORM_READERS", "AbsMax", "Block", "Call", "Hessian", "MeanAbs", "Sample", "Together",
    "block_linears", "capture", "check_coverage", "check_replaceable", "check_untied", "check_weights",
    "collect_statistics", "coverage", "each_linear", "find_blocks", "fold_scale", "folds", "linears_of",
    "norm_readers", "round_to_nearest", "short_text", "walk",
]  # fmt: skip
