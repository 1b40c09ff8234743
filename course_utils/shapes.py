"""How a model is built, found out by trying: what a lesson needs of it, and which layers play which part.

Any causal language model can stand in for the embedded one, but not every lesson can use every model. A
lesson asks for what it needs (`lesson_needs`) right after loading, by `require`.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from course_utils import costs, models
from course_utils.errors import CourseError
from course_utils.lesson_needs import LESSONS, NEEDS
from course_utils.prune.structured.layout import family_of
from course_utils.quantize import layerwise

LONGEST = 2048  # tokens: no lesson reads a longer text at once


def require(model: PreTrainedModel, lesson: str) -> None:
    """Refuse a model that a lesson cannot use, before anything is done with it.

    Of another model than the embedded one that the lesson can use, a line says what it does not change.

    Args:
        model: a causal language model.
        lesson: a key of LESSONS.

    Raises:
        CourseError: the model lacks something; says what, which models have it, and which lessons do run.
    """
    for need in LESSONS[lesson]:
        if reason := missing(model, need):
            others = [key for key in LESSONS if not any(missing(model, other) for other in LESSONS[key])]
            raise CourseError(
                f"This lesson needs {need}, which {type(model).__name__} does not have ({reason}). It takes "
                f"{NEEDS[need]}. Name such a model, or leave LM and COURSE_LM empty for the embedded one. "
                f"Lessons that run on this model: {', '.join(others)}.")
    if not models.is_embedded(model):
        print("This is not the course's model. What the text says of its numbers, and what predictions ask "
              "for, is about SmolLM2-135M-Instruct.")


def missing(model: PreTrainedModel, need: str) -> str:
    """What a model lacks of a need.

    Args:
        model: a causal language model.
        need: a key of NEEDS.

    Returns:
        The reason in one line; "" when it has what is needed.
    """
    try:
        CHECKS[need](model)
    except ValueError as error:
        return " ".join(str(error).split())
    return ""


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
    config = model.config
    try:
        formula = costs.parameter_count(config)
        copies = 1 if config.tie_word_embeddings else 2
    except (AttributeError, TypeError) as error:  # a number is not there, or is None
        raise ValueError(f"its config does not say {getattr(error, 'name', None) or 'all sizes'}") from None
    # Of the blocks alone: beside the embedding of a small model a wrong block would not be seen.
    formula -= copies * config.vocab_size * config.hidden_size + config.hidden_size
    stored = sum(parameter.numel() for parameter in block_list(model).parameters())
    if abs(formula / stored - 1) > 0.01:
        raise ValueError(f"the formula gives its blocks {formula:,} parameters, they store {stored:,}")


def _full_attention(model: PreTrainedModel) -> None:
    if not hasattr(model.config, "num_attention_heads"):
        raise ValueError("it has no attention heads")
    for i, layer in enumerate(DynamicCache(config=model.config).layers):
        window = getattr(layer, "sliding_window", None)
        if isinstance(layer, DynamicSlidingWindowLayer) and window < LONGEST:
            raise ValueError(f"its layer {i} attends to the last {window} tokens only")
        if not isinstance(layer, DynamicLayer):
            raise ValueError(f"its layer {i} keeps no keys and values of all tokens")


CHECKS = {  # each raises ValueError, in one line, when a model does not have it
    "linear layers": _linear_layers,
    "foldable norms": _foldable_norms,
    "Llama's blocks": _llama_blocks,
    "Llama's count": _llama_count,
    "full attention": _full_attention,
}
