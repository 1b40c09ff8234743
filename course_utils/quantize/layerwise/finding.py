"""Where things are in a model: its blocks, their linear layers, and what share of the weights these hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

MINIMUM_SHARE = 0.9  # of a model's matrix weights, that a method for linear layers has to reach


def find_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The model's blocks in order: those of its longest nn.ModuleList that holds linear layers.

    A list inside another one (the experts of a block) does not count.

    Args:
        model: any model.

    Returns:
        (full name, block) of each block.

    Raises:
        ValueError: when there is no such list.
    """
    lists: dict[str, nn.ModuleList] = {}
    for name, modules in model.named_modules():  # outer modules come before the inner ones
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(modules, nn.ModuleList) and not inside and linears_of(modules):
            lists[name] = modules
    if not lists:
        transposed = any(isinstance(module, Conv1D) for module in model.modules())
        reason = ": its weights are in Conv1D layers, as [in, out]" if transposed else ""
        raise ValueError(f"{type(model).__name__} has no list of blocks with linear layers to walk through"
                         f"{reason}")
    name, blocks = max(lists.items(), key=lambda item: len(item[1]))
    return [(f"{name}.{i}", block) for i, block in enumerate(blocks)]


def linears_of(module: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers inside a module.

    Args:
        module: a block, or any module.

    Returns:
        Each nn.Linear by its name inside the module.
    """
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}


def block_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of all blocks. Embedding and output layer are not among them.

    Args:
        model: any model with blocks.

    Returns:
        Each nn.Linear by full name.

    Raises:
        ValueError: when the model has no list of blocks.
    """
    return {f"{name}.{inner}": layer for name, block in find_blocks(model)
            for inner, layer in linears_of(block).items()}


def check_untied(model: nn.Module) -> None:
    """Refuse a model whose blocks share weights: a change in one block would be one in the other too.

    Args:
        model: any model with blocks.

    Raises:
        ValueError: when a parameter of a block also stands somewhere else.
    """
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    for name, block in find_blocks(model):
        for inner, parameter in block.named_parameters():
            others = [place for place in places[id(parameter)] if place != f"{name}.{inner}"]
            if others:
                raise ValueError(f"{name}.{inner} is the same tensor as {others[0]}: a change of one would "
                                 "change both")


def short_text(model: nn.Module) -> Tensor:
    """A made-up text, enough to see how a model is wired.

    Args:
        model: has an embedding, the first of which is that of the tokens.

    Returns:
        LongTensor [1, 16] of token ids.
    """
    vocabulary = next(m for m in model.modules() if isinstance(m, nn.Embedding)).num_embeddings
    return torch.arange(3, 19)[None] % vocabulary


def coverage(model: nn.Module) -> float:
    """Share of a model's matrix weights that stand in linear layers of its blocks.

    These are what this library's methods change. Embeddings and the output layer, which the methods leave
    alone on purpose, are not counted. In most models the share is 1. A mixture of experts keeps its experts
    in parameters of three dimensions that belong to no linear layer: its share is small.

    Args:
        model: any model with blocks.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: when the model has no list of blocks.
    """
    reached = sum(linear.weight.numel() for linear in block_linears(model).values())
    return reached / (reached + sum(size for _, size in _out_of_reach(model)))


def check_coverage(model: nn.Module, minimum_share: float = MINIMUM_SHARE) -> float:
    """Refuse a model when a method for linear layers would leave much of it as it is.

    Below MINIMUM_SHARE a caller who asked for less gets a line printed that says the share.

    Args:
        model: any model with blocks.
        minimum_share: the smallest `coverage` to accept, from 0 to 1.

    Returns:
        The share.

    Raises:
        ValueError: when the share is smaller, or the model has no list of blocks.
    """
    share = coverage(model)
    if share >= max(minimum_share, MINIMUM_SHARE):
        return share
    largest, _ = max(_out_of_reach(model), key=lambda item: item[1], default=("", 0))
    covered = (f"the linear layers of {type(model).__name__}'s blocks hold {share:.0%} of its matrix "
               f"weights; the others, such as {largest}, are out of reach")
    if share < minimum_share:
        least = int(100 * share) / 100
        raise ValueError(f"{covered}: pass minimum_share={least:g} to change that part alone")
    print(covered)
    return share


def _out_of_reach(model: nn.Module) -> list[tuple[str, int]]:
    """Name and size of each matrix outside the blocks' linear layers, without embeddings and output layer."""
    reached = {id(linear.weight) for linear in block_linears(model).values()}
    output = getattr(model, "get_output_embeddings", lambda: None)()
    return [(f"{name}.{inner}".lstrip("."), parameter.numel()) for name, module in model.named_modules()
            if not isinstance(module, nn.Embedding) and module is not output
            for inner, parameter in module.named_parameters(recurse=False)
            if parameter.ndim > 1 and id(parameter) not in reached]


# What a Llama block's norms feed, by their names.
NORM_READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
