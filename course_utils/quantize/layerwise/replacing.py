"""New weights for linear layers: by a method that looks at statistics, or by rounding to nearest."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from course_utils.quantize import affine
from course_utils.quantize.layerwise.block import Block
from course_utils.quantize.layerwise.finding import MINIMUM_SHARE, block_linears, check_coverage


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


def round_to_nearest(model: nn.Module, scheme: affine.Scheme, clip_search: bool = False,
                     minimum_share: float = MINIMUM_SHARE) -> None:
    """Fake-quantize the linear layers of all blocks in place. Needs no text: the baseline of every method.

    Args:
        model: any model with blocks.
        scheme: what to quantize to.
        clip_search: choose each group's range by squared error (`affine.search_clip`).
        minimum_share: of the model's matrix weights, as for `check_coverage`.

    Raises:
        TypeError: when a weight is no float; names the layer.
        ValueError: when a weight cannot be quantized so; names the layer. As `check_coverage`.
    """
    check_coverage(model, minimum_share)
    check_weights(model, scheme)
    for name, linear in block_linears(model).items():
        try:
            linear.weight.data.copy_(affine.fake_quantize(linear.weight, scheme, clip_search))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def check_weights(model: nn.Module, scheme: affine.Scheme) -> None:
    """Refuse a model whose linear layers a scheme does not fit, before the first is changed.

    Args:
        model: any model with blocks.
        scheme: what their weights are to be quantized to.

    Raises:
        TypeError: as `affine.check_weight`, with the layer's name.
        ValueError: as `affine.check_weight`, `affine.to_groups`, `affine.parameters`, with the layer's name.
    """
    for name, linear in block_linears(model).items():
        try:
            affine.check_weight(linear.weight)
            affine.parameters(affine.to_groups(linear.weight.detach(), scheme), scheme)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
