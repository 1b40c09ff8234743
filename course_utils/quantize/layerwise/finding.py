"""Where things are in a model: its blocks, their linear layers, and the norms that only these read."""

from __future__ import annotations

from torch import nn


def find_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The model's blocks in order: those of its longest nn.ModuleList that holds linear layers.

    Args:
        model: any model.

    Returns:
        (full name, block) of each block.

    Raises:
        ValueError: when there is no such list.
    """
    lists = [(name, modules) for name, modules in model.named_modules()
             if isinstance(modules, nn.ModuleList) and any(linears_of(block) for block in modules)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of blocks with linear layers to walk through")
    name, blocks = max(lists, key=lambda item: len(item[1]))
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


# The norms of a Llama block whose output only linear layers read. There a factor can move from the norm into
# those layers without changing what the block computes. BERT's norms feed the residual stream too.
NORM_READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def norm_readers(block: nn.Module) -> list[tuple[nn.Module, dict[str, nn.Linear]]]:
    """The norms of a Llama block with the linear layers that read them, and that nothing else reads.

    Args:
        block: a block of a model.

    Returns:
        Pairs (norm, {name inside the block: linear layer that reads only this norm}).

    Raises:
        ValueError: for other blocks, BERT's among them.
    """
    linears = linears_of(block)
    if not all(hasattr(block, norm) and set(names) <= set(linears) for norm, names in NORM_READERS.items()):
        raise ValueError(f"{type(block).__name__} is no Llama-style block: its norms do not feed linear "
                         "layers alone, so no factor can be folded into them")
    return [(getattr(block, norm), {name: linears[name] for name in names})
            for norm, names in NORM_READERS.items()]
