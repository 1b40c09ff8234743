"""Cutting heads and neurons out of a model, in place, and putting them back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from course_utils import measure
from course_utils.prune.depth import without_weights
from course_utils.prune.structured.gates import gated, gates_of
from course_utils.prune.structured.layout import MLP, Attention, attentions, family_of, mlp_outputs
from course_utils.prune.structured.slicing import keep_columns, keep_rows, slice_heads
from course_utils.quantize.layerwise import find_blocks, short_text


def keep_heads(model: nn.Module, kept: Sequence[Sequence[int]]) -> None:
    """Cut heads out of each block, in place.

    Without GQA these are simply the heads. With GQA the query heads that read a key-value head go with it.
    The config follows: a Llama model stays one that plain transformers loads, so each block must keep the
    same number. In BERT the numbers may differ; `save` says how such a folder is loaded.

    Args:
        model: a BERT or a decoder of the Llama architecture.
        kept: kept[i] lists the key-value heads that block i keeps.

    Raises:
        ValueError: for an index out of range or twice, a block without heads, numbers that the config cannot
            express, or a family whose blocks work in another way. The model is then as it was.
    """
    layout = attentions(model)
    kept = _checked(kept, [attention.kv_heads for attention in layout], "key-value head")
    if family_of(model) == "llama":
        _check_llama(model.config, [len(heads) * a.group for heads, a in zip(kept, layout, strict=True)])
    group = layout[0].group

    def cut() -> None:
        for attention, heads in zip(layout, kept, strict=True):
            _replace(attention, slice_heads(*attention.layers, heads, attention.head_dim))
        _tell_config(model, [len(heads) * group for heads in kept], [len(heads) for heads in kept])

    _proved(model, cut, [a.output for a in layout], gates_of(kept, [a.kv_heads for a in layout]))


def keep_query_heads(model: nn.Module, kept: Sequence[Sequence[int]]) -> None:
    """Cut query heads out of a GQA model, in place, and leave the keys and values whole.

    Each key-value head must keep the same number of its query heads, one at least: after the cut, head h
    reads key-value head h // (heads left per group) again.

    Args:
        model: a decoder of the Llama architecture.
        kept: kept[i] lists the query heads that block i keeps.

    Raises:
        ValueError: for a broken pattern, and as `keep_heads` does.
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

    def cut() -> None:
        kv_heads = [attention.kv_heads for attention in layout]
        for attention, heads in zip(layout, kept, strict=True):
            query, key, value, output = attention.layers
            channels = [head * attention.head_dim + i for head in heads for i in range(attention.head_dim)]
            _replace(attention, (keep_rows(query, channels), key, value, keep_columns(output, channels)))
        _tell_config(model, [len(heads) for heads in kept], kv_heads)

    _proved(model, cut, [a.output for a in layout], gates_of(kept, [a.heads for a in layout]))


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
    blocks, outputs = [block for _, block in find_blocks(model)], mlp_outputs(model)
    totals = [output.in_features for output in outputs]
    kept = _checked(kept, totals, "neuron")
    width = _same_number([len(neurons) for neurons in kept], "neurons (config.intermediate_size)")

    def cut() -> None:
        for block, neurons in zip(blocks, kept, strict=True):
            for name in rows:
                block.set_submodule(name, keep_rows(block.get_submodule(name), neurons))
            block.set_submodule(columns, keep_columns(block.get_submodule(columns), neurons))
            if hasattr(block, "mlp") and hasattr(block.mlp, "intermediate_size"):
                block.mlp.intermediate_size = width
        model.config.intermediate_size = width

    _proved(model, cut, outputs, gates_of(kept, totals))


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
    put_back = _memory(model)
    try:
        yield model
    finally:
        put_back()


# ---- checks and parts ------------------------------------------------------------------------------------


def _memory(model: nn.Module) -> Callable[[], None]:
    """Remember which layers stand where; the function that is returned puts them there again."""
    children = [(module, dict(module._modules)) for module in model.modules()]
    attributes = [(module, {name: value for name, value in vars(module).items() if isinstance(value, int)})
                  for module in model.modules()]
    config = dict(vars(model.config))

    def put_back() -> None:
        for module, modules in children:
            module._modules.clear()
            module._modules.update(modules)
        for module, values in attributes:
            module.__dict__.update(values)
        vars(model.config).clear()
        vars(model.config).update(config)

    return put_back


def _proved(model: nn.Module, cut: Callable[[], None], outputs: Sequence[nn.Linear],
            gates: Sequence[Tensor]) -> None:
    """Cut; put everything back and raise a ValueError unless the smaller model is what it should be.

    Families name their layers alike and still use them in other ways: a norm over all heads, a gate for each
    one, a head size that the config cannot say. So the cut model must give, on a short text, what the whole
    one gives when the same heads or neurons are silenced; and its config must build a model of its shapes.
    """
    kind, put_back = type(model).__name__, _memory(model)
    try:
        with gated(outputs, gates):
            wanted = _answer(model)
        cut()
        found = _answer(model)
        built = {}
        if getattr(model.config, "heads_per_layer", None) is None:  # a BERT with that is saved by saving.py
            built = without_weights(type(model), model.config).state_dict()
    except KeyboardInterrupt:
        put_back()
        raise
    except Exception as error:
        put_back()
        raise ValueError(f"{kind} does not run when it is cut like a Llama: "
                         f"{str(error).strip().partition(chr(10))[0]}") from None
    tolerance = 1e-3 if torch.finfo(found.dtype).bits >= 32 else 0.1
    close = (found - wanted).float().square().mean().sqrt() <= tolerance * wanted.float().std()
    reason = "" if close else "the cut changes more than the heads or neurons that go"
    if close:
        reason = next((f"its config would build {name} as {list(built[name].shape)}, not {list(tensor.shape)}"
                       for name, tensor in model.state_dict().items()
                       if name in built and built[name].shape != tensor.shape), "")
    if reason:
        put_back()
        raise ValueError(f"{kind} cannot be cut like a Llama: {reason}")


def _answer(model: nn.Module) -> Tensor:
    """What the model puts out for a short text: logits, or hidden states."""
    ids = short_text(model).to(next(model.parameters()).device)
    with measure.evaluating(model):
        return model(input_ids=ids, **({} if family_of(model) == "bert" else {"use_cache": False}))[0]


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
            for name, count in (("num_heads", query_heads), ("num_key_value_heads", keys)):
                if hasattr(attention.module, name):
                    setattr(attention.module, name, count)
    if family_of(model) == "bert":
        # BertConfig derives the head size as hidden_size / num_attention_heads: that number must stay.
        config.heads_per_layer = heads
    else:
        config.head_dim = attentions(model)[0].head_dim  # no longer hidden_size / heads
        config.num_attention_heads, config.num_key_value_heads = heads[0], kv_heads[0]
