"""Removing whole blocks (layers) of a model, those that change the stream least first.

    scores = influences(model, tokens)               block influence of each block
    remove_blocks(model, scores.argsort()[:3])       the three with the lowest go, in place

Source: X. Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
arXiv 2403.03853, section 3.1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from course_utils import measure
from course_utils.costs import ATTENTION_LAYERS
from course_utils.quantize.layerwise import find_blocks

# What configs call other things than a list with an entry for each block:
LAYER_NUMBERS = ("mlp_only_layers",)  # numbers of some blocks
LEADING_LAYERS = ("max_window_layers", "first_k_dense_replace")  # how many blocks at the start are special
NO_LAYERS = ("token_id", "architectures")  # a list that has to do with blocks at no length
NUMBERS = ("layer_idx", "layer_number", "layer_id")  # what modules call the number of their block


def block_influence(before: Tensor, after: Tensor) -> float:
    """Block influence: 1 minus the mean cosine between a block's input and its output.

    The cosine is taken for each token, in float32, and then its mean over all tokens.

    Args:
        before: float [..., hidden], the stream before a block, one vector a token.
        after: float [..., hidden], the stream after it.

    Returns:
        0 when the block changes no direction, 1 when input and output are at right angles, 2 at most.
    """
    before, after = before.float(), after.float()
    products = (before * after).sum(dim=-1)
    lengths = before.norm(dim=-1) * after.norm(dim=-1)
    return 1 - (products / lengths.clamp(min=1e-8)).mean().item()


def influences(model: nn.Module, tokens: Tensor, batch_size: int = 1) -> Tensor:
    """Block influence of every block on a text.

    Args:
        model: a BERT or a decoder of the Llama architecture.
        tokens: integer tensor [n, length] of token ids.
        batch_size: rows of `tokens` that run together.

    Returns:
        float [blocks].

    Raises:
        ValueError: when there are no tokens.
    """
    if tokens.ndim != 2 or not tokens.numel():
        raise ValueError(f"tokens must be [n, length] with at least one token, not {list(tokens.shape)}")
    blocks = [block for _, block in find_blocks(model)]
    totals = torch.zeros(len(blocks))

    def watch(i: int) -> Callable:
        def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor | tuple) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            totals[i] += block_influence(before, after) * len(before)

        return hook

    hooks = [block.register_forward_hook(watch(i), with_kwargs=True) for i, block in enumerate(blocks)]
    body = getattr(model, model.base_model_prefix, model)  # without the output layer: its logits are not used
    device = next(model.parameters()).device
    try:
        with measure.evaluating(model):
            for batch in tokens.split(batch_size):
                body(input_ids=batch.to(device), **({} if _is_bert(model) else {"use_cache": False}))
    finally:
        for hook in hooks:
            hook.remove()
    return totals / len(tokens)


def remove_blocks(model: nn.Module, indices: Iterable[int]) -> None:
    """Take blocks out of a model, in place. The others keep their order; the config follows.

    Blocks number themselves for the KV cache, so the ones left are numbered anew. The model that is left is
    an ordinary, shorter one: save_pretrained and from_pretrained work as ever.

    Args:
        model: any model with blocks.
        indices: block numbers before the removal, 0 is the first.

    Raises:
        ValueError: before anything is changed, for an index out of range or twice, when none is left, or when
            a config cannot say which blocks those are that are left.
    """
    name, _, _ = find_blocks(model)[0][0].rpartition(".")
    parent, _, attribute = name.rpartition(".")
    blocks = model.get_submodule(name)
    indices = [int(index) for index in indices]
    outside = [index for index in indices if not 0 <= index < len(blocks)]
    if outside:
        raise ValueError(f"there is no block {outside[0]}: they are numbered 0 to {len(blocks) - 1}")
    if len(set(indices)) < len(indices):
        raise ValueError(f"a block is listed twice in {indices}")
    if len(indices) == len(blocks):
        raise ValueError(f"all {len(blocks)} blocks would go; leave one at least")
    left = [i for i in range(len(blocks)) if i not in indices]
    configs = _configs(model)
    shorter = [_shorter(config, left) for config in configs]
    if configs:
        swapped = {id(config): new for config, new in zip(configs, shorter, strict=True)}
        _check_config(model, left, copy.deepcopy(model.config, swapped))
    _check_attention(configs, shorter)
    setattr(model.get_submodule(parent), attribute, nn.ModuleList(blocks[i] for i in left))
    for new, i in enumerate(left):
        for module in blocks[i].modules():
            for name in NUMBERS:
                if hasattr(module, name):
                    setattr(module, name, new)
    for config, new in zip(configs, shorter, strict=True):
        vars(config).update(vars(new))


def without_weights(kind: type[nn.Module], config: PretrainedConfig) -> nn.Module:
    """Build a model as from_pretrained would, from what a config's file says, but without memory for weights.

    Args:
        kind: the model's class.
        config: it is not changed.

    Returns:
        The model, all its tensors on torch's "meta" device: they have shapes and no numbers.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return kind(type(config).from_dict(config.to_dict()))


def _configs(model: nn.Module) -> list[PretrainedConfig]:
    """The configs that the model's parts hold: usually one object, held by all."""
    held = [getattr(module, "config", None) for module in model.modules()]
    return list({id(config): config for config in held if hasattr(config, "num_hidden_layers")}.values())


def _shorter(config: PretrainedConfig, left: list[int]) -> PretrainedConfig:
    """A copy of a config for the blocks that are left. Whatever lists something for each block is cut."""
    if getattr(config, "is_heterogeneous", False):
        raise ValueError(f"{config.model_type} has settings of its own for some blocks (per_layer_config), "
                         "which go by the blocks' numbers: none can be taken out")
    new, blocks = copy.deepcopy(config), config.num_hidden_layers
    for name, value in vars(config).items():
        if name in LAYER_NUMBERS and value:
            setattr(new, name, [left.index(i) for i in value if i in left])
        elif name in LEADING_LAYERS and value:
            setattr(new, name, sum(i < value for i in left))
        elif isinstance(value, list | tuple) and len(value) == blocks and not name.endswith(NO_LAYERS):
            setattr(new, name, type(value)(value[i] for i in left))
    new.num_hidden_layers = len(left)
    return new


def _check_config(model: nn.Module, left: list[int], config: PretrainedConfig) -> None:
    """Refuse when a model made from the shorter config has other blocks than those that are left.

    Some configs have a rule instead of a list, such as "each fourth block is another one": then blocks cannot
    be taken out of the middle. Both models are built without weights.
    """
    name = type(model).__name__
    try:
        whole, short = (find_blocks(without_weights(type(model), each)) for each in (model.config, config))
    except (ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        raise ValueError(f"no {name} can be built without these blocks: "
                         f"{str(error).strip().partition(chr(10))[0]}") from None
    for new, old in enumerate(left):
        was, now = _settings(whole[old][1]), _settings(short[new][1])
        if was != now:
            other = min(key for key in was.keys() | now.keys() if was.get(key) != now.get(key))
            raise ValueError(f"{name} makes its blocks by a rule, which would give block {old} another "
                             f"{other} once it is block {new}: take blocks off the end only")


def _check_attention(configs: list[PretrainedConfig], shorter: list[PretrainedConfig]) -> None:
    """Refuse to take out all blocks with attention where there are others: a cache counts tokens by them."""
    for before, after in zip(configs, shorter, strict=True):
        was, now = (set(getattr(config, "layer_types", None) or ()) for config in (before, after))
        if was & ATTENTION_LAYERS and not now & ATTENTION_LAYERS:
            raise ValueError(f"only blocks of {', '.join(sorted(now))} would be left: a cache counts its "
                             "tokens by blocks with full or sliding attention, so leave one")


def _settings(block: nn.Module) -> dict[str, Any]:
    """How a block is made: the plain attributes of its modules, without its number, and all shapes."""
    found = {f"{name}.{key}".lstrip("."): value for name, module in block.named_modules()
             for key, value in vars(module).items()
             if isinstance(value, int | float | str | None) and key not in (*NUMBERS, "training")}
    return found | {name: parameter.shape for name, parameter in block.named_parameters()}


def _is_bert(model: nn.Module) -> bool:
    """Whether the model's blocks are BERT's, which take no `use_cache`."""
    return hasattr(find_blocks(model)[0][1], "attention")
