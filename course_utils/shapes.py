"""How a model is built, found out by trying: what a lesson needs of it, and which layers play which part.

Any causal language model can stand in for the embedded one, but not every lesson can use every model. A
lesson says what it needs right after loading, by `require`; the README's table takes it from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from course_utils import costs
from course_utils.errors import CourseError
from course_utils.prune.structured.layout import family_of
from course_utils.quantize import layerwise

LONGEST = 2048  # tokens: no lesson reads a longer text at once


@dataclass(frozen=True)
class Need:
    """Something that a lesson may need of a model.

    Attributes:
        check: raises ValueError, in one line, when a model does not have it.
        models: which models have it, as the error and the README say.
    """

    check: Callable[[PreTrainedModel], object]
    models: str


def require(model: PreTrainedModel, *needs: str) -> None:
    """Refuse a model that a lesson cannot use, before anything is done with it.

    Args:
        model: a causal language model.
        *needs: keys of NEEDS.

    Raises:
        CourseError: the model lacks one of them; says which, and which models have it.
    """
    for need in needs:
        try:
            NEEDS[need].check(model)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise CourseError(
                f"This lesson needs {need}, which {type(model).__name__} does not have ({reason}). Take "
                f"{NEEDS[need].models}, or leave LM and COURSE_LM empty for the embedded model.") from None


def place(model: nn.Module, share: float) -> int:
    """The block that lies at a share of a model's depth.

    Args:
        model: any model with a list of blocks.
        share: from 0, the first block, up to 1, which is behind the last.

    Returns:
        Its number: share x blocks, rounded down.
    """
    blocks = len(block_list(model))
    return min(int(share * blocks + 1e-9), blocks - 1)


def block_list(model: nn.Module) -> nn.ModuleList:
    """The list of a model's blocks: its longest nn.ModuleList. They need not hold linear layers.

    Args:
        model: any model.

    Returns:
        The list itself: who changes it changes the model.

    Raises:
        ValueError: when there is no list of modules.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of blocks")
    return max(lists, key=len)


@torch.no_grad()
def input_groups(model: nn.Module, block: int = 0) -> list[list[str]]:
    """The linear layers of a block in calling order, those that read one and the same input together.

    In a Llama block: query, key, value; output; gate, up; down.

    Args:
        model: any model whose blocks hold linear layers.
        block: number of the block.

    Returns:
        Full names.

    Raises:
        ValueError: when there are no such blocks, or they cannot be run one by one.
    """
    built = _block(model, block)
    return [[f"{built.name}.{name}" for name in names] for names in built.find_shared()]


@torch.no_grad()
def norm_readers(model: nn.Module, block: int = 0) -> list[list[str]]:
    """The linear layers that read the norms of a block.

    Args:
        model: any model whose blocks hold linear layers.
        block: number of the block.

    Returns:
        A list for each norm, of names inside a block.

    Raises:
        ValueError: when a factor of such a norm does not fold away, or as `input_groups`.
    """
    return [list(linears) for _, linears in layerwise.norm_readers(_block(model, block))]


@torch.no_grad()
def _block(model: nn.Module, number: int) -> layerwise.Block:
    """A block as it is called while a short made-up text runs, with what reaches the first block."""
    blocks = layerwise.find_blocks(model)
    text = layerwise.short_text(model)
    inputs, calls = layerwise.capture(model, [module for _, module in blocks], [{"input_ids": text}])
    return layerwise.Block(*blocks[number], inputs, calls[number])


# ---- what lessons need -----------------------------------------------------------------------------------


def _linear_layers(model: PreTrainedModel) -> None:
    share = layerwise.coverage(model)
    if share < layerwise.MINIMUM_SHARE:
        raise ValueError(f"the linear layers of its blocks hold only {share:.0%} of its matrix weights")
    layerwise.check_untied(model)
    input_groups(model)


def _foldable_norms(model: PreTrainedModel) -> None:
    kinds: dict[tuple[str, ...], int] = {}  # a block of each kind, by the names of its linear layers
    for number, (_, block) in enumerate(layerwise.find_blocks(model)):
        kinds.setdefault(tuple(layerwise.linears_of(block)), number)
    for number in kinds.values():
        if not norm_readers(model, number):
            raise ValueError("no linear layer reads a norm, so none can take over a factor")


def _llama_blocks(model: PreTrainedModel) -> None:
    if family_of(model) != "llama":
        raise ValueError(f"{type(model).__name__} is no decoder")


def _llama_count(model: PreTrainedModel) -> None:
    try:
        formula = costs.parameter_count(model.config)
    except (AttributeError, TypeError) as error:  # a number is not there, or is None
        raise ValueError(f"its config does not say {getattr(error, 'name', None) or 'all sizes'}") from None
    stored = model.num_parameters()
    if abs(formula / stored - 1) > 0.01:
        raise ValueError(f"the formula gives {formula:,} parameters, it stores {stored:,}")


def _full_attention(model: PreTrainedModel) -> None:
    if not hasattr(model.config, "num_attention_heads"):
        raise ValueError("it has no attention heads")
    for i, layer in enumerate(DynamicCache(config=model.config).layers):
        window = getattr(layer, "sliding_window", None)
        if isinstance(layer, DynamicSlidingWindowLayer) and window < LONGEST:
            raise ValueError(f"its layer {i} attends to the last {window} tokens only")
        if not isinstance(layer, DynamicLayer):
            raise ValueError(f"its layer {i} keeps no keys and values of all tokens")


NEEDS = {
    "linear layers": Need(_linear_layers, "one whose blocks keep their weights in linear layers (Llama, "
                          "Mistral, Qwen, Gemma, Phi, OPT; not GPT-2, not a mixture of experts)"),
    "foldable norms": Need(_foldable_norms, "one whose norms multiply by their weight before q, k, v (Llama, "
                           "Mistral, Qwen, Phi-3, OPT; not Gemma, OLMo 2)"),
    "Llama's blocks": Need(_llama_blocks, "one with separate q, k, v, o and gate, up, down (Llama, Mistral, "
                           "Qwen)"),
    "Llama's count": Need(_llama_count, "one whose parameters are counted as Llama's, within 1 % (Llama, "
                          "Mistral, Qwen, Gemma, Phi-3)"),
    "full attention": Need(_full_attention, "one whose layers all attend to all tokens (Llama, Qwen, Phi-3)"),
}
