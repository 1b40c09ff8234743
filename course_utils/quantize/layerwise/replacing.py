"""New weights for linear layers: by a method that looks at statistics, or by rounding to nearest."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from course_utils.quantize import affine
from course_utils.quantize.layerwise.block import Block
from course_utils.quantize.layerwise.finding import block_linears


def each_linear(
    method: Callable[[str, nn.Linear, object], Tensor | None], sequential: bool = False
) -> Callable[[Block], None]:
    """A block edit: each linear layer gets the weight that a method returns for it.

    Args:
        method: method(full name, linear, statistic) -> new weight [out, in], or None to leave the layer as it
            is.
        sequential: collect the statistics of a layer after the layers before it in the same block have their
            new weights ("true sequential" in GPTQ tools). It costs one pass for each distinct input (four in
            a Llama block) instead of one a block.

    Returns:
        A function on a Block, for `walk`. It raises ValueError when a weight has another shape or is not
        finite.
    """

    def replace(block: Block, names: Iterable[str], statistics: dict[str, object]) -> None:
        for name in names:
            full_name, linear = f"{block.name}.{name}", block.linears[name]
            weight = method(full_name, linear, statistics[name])
            if weight is None:
                continue
            if weight.shape != linear.weight.shape or not torch.isfinite(weight).all():
                raise ValueError(f"the method returned no finite weight {list(linear.weight.shape)} "
                                 f"for {full_name}")
            linear.weight.data.copy_(weight)

    def edit(block: Block) -> None:
        if not sequential:
            replace(block, block.statistics, block.statistics)
            return
        for names in block.shared:
            replace(block, names, block.collect(names))

    return edit


def round_to_nearest(model: nn.Module, scheme: affine.Scheme, clip_search: bool = False) -> None:
    """Fake-quantize the linear layers of all blocks in place. Needs no text: the baseline of every method.

    Args:
        model: any model with blocks.
        scheme: what to quantize to.
        clip_search: choose each group's range by squared error (`affine.search_clip`).

    Raises:
        ValueError: when a weight cannot be quantized so; names the layer.
    """
    for name, linear in block_linears(model).items():
        try:
            linear.weight.data.copy_(affine.fake_quantize(linear.weight, scheme, clip_search))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
