"""Gates: what a model computes without some heads or neurons, before anything is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def gated(layers: Sequence[nn.Linear], gates: Sequence[Tensor]) -> Iterator[None]:
    """Multiply the inputs of each layer by gates inside the `with` block. Nothing gets smaller or faster.

    Args:
        layers: linear layers, such as the output layers of the attentions, or mlp_outputs(model).
        gates: a tensor [n] for each layer: its input channels are cut into n equal parts, and part i is
            multiplied by gate i. One gate a head silences heads; one gate a channel silences neurons.

    Raises:
        ValueError: when the gates do not fit the layers.
    """
    if len(layers) != len(gates):
        raise ValueError(f"{len(gates)} rows of gates do not fit {len(layers)} layers")
    for layer, gate in zip(layers, gates, strict=True):
        if gate.ndim != 1 or len(gate) == 0 or layer.in_features % len(gate):
            raise ValueError(f"gates of shape {list(gate.shape)} do not cut {layer.in_features} input "
                             "channels into equal parts")

    def multiply(gate: Tensor) -> Callable:
        def hook(_: nn.Module, args: tuple) -> tuple[Tensor]:
            x = args[0]
            parts = x.unflatten(-1, (len(gate), -1)) * gate.to(x)[:, None]
            return (parts.flatten(-2),)

        return hook

    hooks = [layer.register_forward_pre_hook(multiply(gate))
             for layer, gate in zip(layers, gates, strict=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def gates_of(kept: Sequence[Sequence[int]], total: Sequence[int]) -> list[Tensor]:
    """Gates that silence all but some indices, in each block.

    Args:
        kept: for each block, the indices that are kept.
        total: for each block, how many there are.

    Returns:
        For each block a float tensor [total]: 1 for the indices that are kept, 0 for the others.
    """
    gates = []
    for indices, n in zip(kept, total, strict=True):
        gate = torch.zeros(n)
        gate[list(indices)] = 1
        gates.append(gate)
    return gates
