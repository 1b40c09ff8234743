"""New weights for linear layers: by a method that looks at statistics, or by rounding to nearest."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from course_utils import measure
from course_utils.quantize import affine
from course_utils.quantize.layerwise.block import Block
from course_utils.quantize.layerwise.finding import (
    MINIMUM_SHARE,
    block_linears,
    check_coverage,
    check_untied,
    short_text,
)


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
        ValueError: as `affine.check_weight`, `affine.to_groups`, `affine.parameters`, with the layer's name;
            as `check_untied`.
    """
    check_untied(model)
    for name, linear in block_linears(model).items():
        try:
            affine.check_weight(linear.weight)
            affine.parameters(affine.to_groups(linear.weight.detach(), scheme), scheme)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None


class _StandIn(nn.Module):
    """Computes what a linear layer computes, has no weight to read, and notes that it was called."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.inside, self.called = [linear], False  # in a list, the layer is no part of the module

    def forward(self, x: Tensor) -> Tensor:
        self.called = True
        return self.inside[0](x)


def check_replaceable(model: nn.Module) -> None:
    """Refuse a model whose linear layers cannot be replaced by others, for it does more than call them.

    Mamba and RWKV read the weights of some. It is tried: stand-ins without a weight take the layers' places
    while a short made-up text runs. A plain torch module, whose inputs are not known, is not tried.

    Args:
        model: any model with blocks.

    Raises:
        ValueError: when it fails with them, or does not call one.
    """
    if not isinstance(model, PreTrainedModel):
        return
    linears = block_linears(model)
    stand_ins = {name: _StandIn(linear) for name, linear in linears.items()}
    try:
        for name, stand_in in stand_ins.items():
            model.set_submodule(name, stand_in)
        with measure.evaluating(model):
            model(input_ids=short_text(model).to(model.device))
    except AttributeError as error:
        raise ValueError(f"{type(model).__name__} does more with its linear layers than call them, so they "
                         f"cannot be replaced: {error}") from None
    finally:
        for name, linear in linears.items():
            model.set_submodule(name, linear)
    idle = [name for name, stand_in in stand_ins.items() if not stand_in.called]
    if idle:
        raise ValueError(f"{type(model).__name__} does not call its linear layer {idle[0]}: another one in "
                         "its place would change nothing")
