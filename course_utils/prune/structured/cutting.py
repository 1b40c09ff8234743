"""Cutting heads and neurons out of a model, in place, and putting them back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from transformers import PretrainedConfig

from course_utils.prune.structured.layout import MLP, Attention, attentions, family_of
from course_utils.prune.structured.slicing import keep_columns, keep_rows, slice_heads
from course_utils.quantize.layerwise import find_blocks


def keep_heads(model: nn.Module, kept: Sequence[Sequence[int]]) -> None:
    """Cut heads out of each block, in place.

    Without GQA these are simply the heads. With GQA the query heads that read a key-value head go with it.
    The config follows: a Llama model stays one that plain transformers loads, so each block must keep the
    same number. In BERT the numbers may differ; `save` says how such a folder is loaded.

    Args:
        model: a BERT or a decoder of the Llama architecture.
        kept: kept[i] lists the key-value heads that block i keeps.

    Raises:
        ValueError: before anything is changed, for an index out of range or twice, a block without heads, or
            numbers that the config cannot express.
    """
    layout = attentions(model)
    kept = _checked(kept, [attention.kv_heads for attention in layout], "key-value head")
    if family_of(model) == "llama":
        _check_llama(model.config, [len(heads) * a.group for heads, a in zip(kept, layout, strict=True)])
    group = layout[0].group
    for attention, heads in zip(layout, kept, strict=True):
        _replace(attention, slice_heads(*attention.layers, heads, attention.head_dim))
    _tell_config(model, [len(heads) * group for heads in kept], [len(heads) for heads in kept])


def keep_query_heads(model: nn.Module, kept: Sequence[Sequence[int]]) -> None:
    """Cut query heads out of a GQA model, in place, and leave the keys and values whole.

    Each key-value head must keep the same number of its query heads, one at least: after the cut, head h
    reads key-value head h // (heads left per group) again.

    Args:
        model: a decoder of the Llama architecture.
        kept: kept[i] lists the query heads that block i keeps.

    Raises:
        ValueError: before anything is changed, for a broken pattern, and as `keep_heads` does.
    """
    layout = attentions(model)
    kept = _checked(kept, [attention.heads for attention in layout], "query head")
    for i, (attention, heads) in enumerate(zip(layout, kept, strict=True)):
        left = [sum(head // attention.group == g for head in heads) for g in range(attention.kv_heads)]
        if len(set(left)) > 1 or not left[0]:
            raise ValueError(f"block {i} would keep {left} query heads for its {attention.kv_heads} "
                             "key-value heads; the model needs equally many for each, and one at least")
    if family_of(model) == "bert":
        raise ValueError("BERT has one key for each query head; use keep_heads")
    _check_llama(model.config, [len(heads) for heads in kept])
    for attention, heads in zip(layout, kept, strict=True):
        query, key, value, output = attention.layers
        channels = [head * attention.head_dim + i for head in heads for i in range(attention.head_dim)]
        _replace(attention, (keep_rows(query, channels), key, value, keep_columns(output, channels)))
    _tell_config(model, [len(heads) for heads in kept], [attention.kv_heads for attention in layout])


def keep_neurons(model: nn.Module, kept: Sequence[Sequence[int]]) -> None:
    """Cut neurons out of each block's MLP, in place.

    Args:
        model: a BERT or a decoder of the Llama architecture.
        kept: kept[i] lists the neurons that block i keeps, in each block the same number
            (config.intermediate_size).

    Raises:
        ValueError: as `keep_heads`.
    """
    rows, columns = MLP[family_of(model)]
    blocks = [block for _, block in find_blocks(model)]
    kept = _checked(kept, [block.get_submodule(columns).in_features for block in blocks], "neuron")
    width = _same_number([len(neurons) for neurons in kept], "neurons (config.intermediate_size)")
    for block, neurons in zip(blocks, kept, strict=True):
        for name in rows:
            block.set_submodule(name, keep_rows(block.get_submodule(name), neurons))
        block.set_submodule(columns, keep_columns(block.get_submodule(columns), neurons))
        if hasattr(block, "mlp") and hasattr(block.mlp, "intermediate_size"):
            block.mlp.intermediate_size = width
    model.config.intermediate_size = width


@contextmanager
def putting_back(model: nn.Module) -> Iterator[nn.Module]:
    """Whatever the `with` block cuts out of the model is there again afterwards. Nothing is copied.

    Cutting makes new, smaller layers, so it is enough to remember which layers stood where. While it is in
    use, the old layers stay in memory. Changes of weights in place are not undone.

    Args:
        model: the model that will be cut.

    Yields:
        The same model.
    """
    children = [(module, dict(module._modules)) for module in model.modules()]
    attributes = [(module, {name: value for name, value in vars(module).items() if isinstance(value, int)})
                  for module in model.modules()]
    config = dict(vars(model.config))
    try:
        yield model
    finally:
        for module, modules in children:
            module._modules.clear()
            module._modules.update(modules)
        for module, values in attributes:
            module.__dict__.update(values)
        vars(model.config).clear()
        vars(model.config).update(config)


# ---- checks and parts ------------------------------------------------------------------------------------


def _checked(kept: Sequence[Sequence[int]], totals: list[int], what: str) -> list[list[int]]:
    """The indices as sorted lists, after all checks that every kind of cut shares."""
    if len(kept) != len(totals):
        raise ValueError(f"the model has {len(totals)} blocks, but indices were given for {len(kept)}")
    result = []
    for i, (indices, total) in enumerate(zip(kept, totals, strict=True)):
        indices = sorted(int(index) for index in indices)
        if not indices:
            raise ValueError(f"block {i} would keep no {what}; keep one at least, or remove the whole block "
                             "with depth.remove_blocks")
        if len(set(indices)) < len(indices):
            raise ValueError(f"block {i}: a {what} is listed twice in {indices}")
        outside = [index for index in indices if not 0 <= index < total]
        if outside:
            raise ValueError(f"block {i} has no {what} {outside[0]}: they are numbered 0 to {total - 1}")
        result.append(indices)
    return result


def _same_number(counts: list[int], what: str) -> int:
    """The one number that all counts are. ValueError when they differ."""
    if len(set(counts)) > 1:
        raise ValueError(f"the config has one number of {what} for all blocks, but the blocks would keep "
                         f"{sorted(set(counts))}")
    return counts[0]


def _check_llama(config: PretrainedConfig, heads: list[int]) -> None:
    """Refuse numbers of query heads, one a block, that the config cannot express: ValueError."""
    count = _same_number(heads, "query heads")
    if config.hidden_size % count:
        fitting = [n for n in range(1, config.num_attention_heads + 1) if config.hidden_size % n == 0]
        raise ValueError(f"transformers refuses {count} heads at hidden size {config.hidden_size}, which "
                         f"they do not divide; possible are {', '.join(map(str, fitting))}")


def _replace(attention: Attention, layers: Sequence[nn.Linear]) -> None:
    """Put new layers (query, key, value, output) in place of an attention's."""
    for name, layer in zip(attention.names, layers, strict=True):
        attention.block.set_submodule(name, layer)


def _tell_config(model: nn.Module, heads: list[int], kv_heads: list[int]) -> None:
    """Write the numbers of heads where the model's forward pass, and the next load, look for them."""
    config = model.config
    for attention, query_heads, keys in zip(attentions(model), heads, kv_heads, strict=True):
        if family_of(model) == "bert":
            attention.module.num_attention_heads = query_heads
            attention.module.all_head_size = query_heads * attention.head_dim
        else:
            attention.module.num_key_value_groups = query_heads // keys
    if family_of(model) == "bert":
        # BertConfig derives the head size as hidden_size / num_attention_heads: that number must stay.
        config.heads_per_layer = heads
    else:
        config.head_dim = attentions(model)[0].head_dim  # no longer hidden_size / heads
        config.num_attention_heads, config.num_key_value_heads = heads[0], kv_heads[0]
