"""A factor for each channel that moves from one layer into those that read it, and a trial whether it can.

SmoothQuant and AWQ divide what a norm puts out by a factor and multiply the weights that read it by the same.
That changes nothing as long as the norm multiplies by its weight and these layers are its only readers. Names
do not tell: Gemma's norms multiply by 1 + weight, and BERT's feed the residual stream too. So it is tried.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from course_utils.quantize.layerwise.block import Block, watch


@torch.no_grad()
def fold_scale(previous: nn.Module, layers: list[nn.Linear], scale: Tensor) -> None:
    """Move a factor for each channel from the output of `previous` into the `layers` that read it, in place.

    What `previous` puts out becomes 1/scale of what it was, and the layers multiply it by scale again.

    Args:
        previous: nn.Linear or a norm, with weight [channels, in] or [channels] and perhaps a bias [channels].
        layers: each with weight [out, channels]; their biases are added later and stay.
        scale: float [channels].
    """
    rows = scale.reshape(-1, *[1] * (previous.weight.ndim - 1))
    previous.weight.div_(rows)
    if getattr(previous, "bias", None) is not None:
        previous.bias.div_(scale)
    for layer in layers:
        layer.weight.mul_(scale)


@torch.no_grad()
def folds(block: Block, pairs: list[tuple[nn.Module, list[nn.Linear]]]) -> bool:
    """Try whether a factor folds away at some places of a block: it computes what it did before.

    The factors are 2 and 1/2: such products are exact in floating point, so no bit may change. Weights are
    put back.

    Args:
        block: runs on its batch 0.
        pairs: places, each a norm or linear layer and the linear layers that read it.

    Returns:
        Whether the block's output stayed as it was.
    """
    modules = [module for previous, layers in pairs for module in (previous, *layers)]
    saved = {parameter: parameter.clone() for module in modules for parameter in module.parameters()}
    wanted, generator = block.run(0), torch.Generator().manual_seed(0)
    try:
        for previous, layers in pairs:
            up = torch.rand(layers[0].in_features, generator=generator) < 0.5
            fold_scale(previous, layers, torch.where(up, 2.0, 0.5).to(layers[0].weight))
        moved = (block.run(0) - wanted).float().norm()
    finally:
        for parameter, value in saved.items():
            parameter.copy_(value)
    return bool(moved <= 1e-4 * wanted.float().norm())  # not 0: FP16 loses a bit of its smallest numbers


@torch.no_grad()
def norm_readers(block: Block) -> list[tuple[nn.Module, dict[str, nn.Linear]]]:
    """The norms of a block that linear layers read. Each can take a factor.

    Args:
        block: runs on its batch 0, where it is seen who reads what.

    Returns:
        Pairs (norm, {name inside the block: linear layer that reads this norm}).

    Raises:
        ValueError: when a factor of such a norm does not fold away.
    """
    outputs: list[tuple[str, nn.Module, Tensor]] = []
    inputs: dict[str, Tensor] = {}
    hooks = [module.register_forward_hook(lambda module, _, output, name=name: outputs.append(
                 (name, module, output)))
             for name, module in block.module.named_modules()
             if getattr(getattr(module, "weight", None), "ndim", 0) == 1]
    try:
        with watch(block.linears, inputs.__setitem__):
            block.run(0)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = []
    for name, norm, output in outputs:
        readers = {reader: block.linears[reader] for reader, x in inputs.items()
                   if x.data_ptr() == output.data_ptr() and x.numel() == output.numel()}
        if readers and not folds(block, [(norm, list(readers.values()))]):
            raise ValueError(f"{block.name}.{name}: no factor can move from this {type(norm).__name__} into "
                             f"{', '.join(readers)}; something else reads it too, or it does not multiply by "
                             "its weight")
        if readers:
            pairs.append((norm, readers))
    return pairs
