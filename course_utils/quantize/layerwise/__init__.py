"""The calibration walk: run text through a model block by block and let a method edit each block's weights.

GPTQ, AWQ, SmoothQuant and the pruning methods all need the same thing: what goes into each linear layer when
real text passes, with the blocks before it already edited. So the walk is written once:

1. run the model up to its first block and keep what goes in (`capture`);
2. for each block: collect statistics of the inputs of its linear layers (one pass over the text), let the
   method edit the block, run the block again with its new weights, and hand the outputs to the next block.

Only one block's activations are kept, and statistics accumulate batch by batch, so memory does not grow with
depth. A method is a function on (name, linear, statistic) -> new weight, made into a block edit by
`each_linear`; a method that needs several layers at once (AWQ, SmoothQuant) takes the `Block` itself.

    walk(model, tokens, each_linear(gptq), Hessian)      # tokens: LongTensor [n, length]

Works for decoders of the Llama architecture and for BERT, on any device.

statistics  what a method may want to know about a layer's inputs: Hessian, mean, largest, a sample
finding     where the blocks, their linear layers and the norms before them are
block       one block with the inputs that reach it
walking     the walk; statistics without an edit; what goes into the first block
replacing   new weights for each linear layer, by a method or by round to nearest
backup      the weights as they were, on disk
"""

from course_utils.quantize.layerwise.block import Block, Call
from course_utils.quantize.layerwise.finding import (
    NORM_READERS,
    block_linears,
    find_blocks,
    linears_of,
    norm_readers,
)
from course_utils.quantize.layerwise.replacing import each_linear, round_to_nearest
from course_utils.quantize.layerwise.statistics import AbsMax, Hessian, MeanAbs, Sample, Together
from course_utils.quantize.layerwise.walking import capture, collect_statistics, walk

__all__ = [
    "NORM_READERS", "AbsMax", "Block", "Call", "Hessian", "MeanAbs", "Sample", "Together", "block_linears",
    "capture", "collect_statistics", "each_linear", "find_blocks", "linears_of", "norm_readers",
    "round_to_nearest", "walk",
]  # fmt: skip
