"""AWQ on a model: the places of a block that can be scaled, one block, and all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from course_utils.quantize import affine, layerwise
from course_utils.quantize.affine import Quantized, Scheme
from course_utils.quantize.awq.clipping import clip, search_clip
from course_utils.quantize.awq.scaling import RATIOS, ScaleSearch, search_scale
from course_utils.quantize.layerwise import Block, fold_scale

# ---- one block -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Layers that read the same input.

    Attributes:
        previous: the module before them, whose output they read.
        layers: the linear layers, by name inside the block.
        inspected: the module whose output is inspected.
    """

    previous: nn.Module
    layers: dict[str, nn.Linear]
    inspected: nn.Module


def scaling_groups(block: nn.Module) -> list[Group]:
    """The places of a Llama block where a scale folds away exactly.

    norm -> q, k, v and norm -> gate, up; up -> down, because down reads silu(gate) * up, in which a factor of
    up stays a factor. v -> o only where each channel of o's input is one channel of v. With grouped-query
    attention three query heads (SmolLM2) read the same value head: one v channel feeds three channels of o,
    which would want three different scales, so that group is left out.

    Args:
        block: a block of a Llama-style model.

    Returns:
        The groups, in the order in which the block computes them.

    Raises:
        ValueError: when the block's parts are called otherwise.
    """
    linears, readers = layerwise.linears_of(block), layerwise.NORM_READERS
    needed = {*itertools.chain(*readers.values()), "self_attn.o_proj", "mlp.down_proj"}
    norms = [getattr(getattr(block, name, None), "weight", None) for name in readers]
    if set(linears) != needed or any(weight is None for weight in norms):
        raise ValueError(f"{type(block).__name__} is no Llama-style block: AWQ needs a norm before q, k, v, "
                         "one before gate, up; then o, down; and no other linear layer")
    attention, mlp = block.self_attn, block.mlp
    groups = [Group(getattr(block, norm), {name: linears[name] for name in names}, inspected)
              for (norm, names), inspected in zip(readers.items(), (attention, mlp), strict=True)]
    groups.append(Group(mlp.up_proj, {"mlp.down_proj": mlp.down_proj}, mlp.down_proj))
    if attention.v_proj.out_features == attention.o_proj.in_features:
        groups.insert(1, Group(attention.v_proj, {"self_attn.o_proj": attention.o_proj}, attention.o_proj))
    return groups


@dataclass(frozen=True)
class Choice:
    """What AWQ decided for one group of layers.

    Attributes:
        name: the first layer's full name.
        search: the ratios and their errors.
        clipped: share of the weights' groups whose range was shrunk, over all layers of the group (0 when
            clipping is off).
    """

    name: str
    search: ScaleSearch
    clipped: float


class _Features(layerwise.Together):
    """What AWQ wants to know of a layer's input: mean |x| over all tokens, and some of the tokens."""

    def __init__(self, limit: int) -> None:
        super().__init__(importance=layerwise.MeanAbs(), sample=layerwise.Sample(limit))


def awq_block(block: Block, scheme: Scheme, use_clip: bool = True, ratios: Iterable[float] = RATIOS,
              keep: dict[str, Quantized] | None = None) -> list[Choice]:
    """Scale, clip and quantize one block in place, as `awq` does.

    Args:
        block: its statistics must be `_Features`.
        scheme: what to quantize to.
        use_clip: clip too.
        ratios: to try.
        keep: a dict that receives the integers and scales of each layer by full name.

    Returns:
        What was chosen for each group of layers.

    Raises:
        ValueError: when the block is no Llama-style block, a scale does not fold away, or an output is not
            finite.
    """
    groups = scaling_groups(block.module)
    if not layerwise.folds(block, [(group.previous, list(group.layers.values())) for group in groups]):
        raise ValueError(f"{block.name}: no scale folds away in a {type(block.module).__name__}; its norms "
                         "do not multiply by their weights, or are read by more than q, k, v, gate and up")
    features = block.statistics
    samples = {name: feature.sample.inputs for name, feature in features.items()}
    attention_output = _attention_runner(block)
    choices = []
    for group in groups:
        name = next(iter(group.layers))
        inputs, layers = samples[name], list(group.layers.values())
        if group.inspected is block.module.self_attn:
            output = attention_output
        else:
            output = _runner(group.inspected, inputs.to(layers[0].weight.dtype))
        search = search_scale(layers, features[name].importance.mean, scheme, output, ratios)
        scale = search.scale.to(layers[0].weight.dtype)
        fold_scale(group.previous, layers, scale)
        samples.update(dict.fromkeys(group.layers, inputs / scale.float()))
        choices.append((name, search, list(group.layers)))
    clipped = {}
    for name, linear in block.linears.items():
        weight = linear.weight.detach()
        # The product of q and k decides who attends to whom; each alone says little, so both are left alone.
        if use_clip and not name.endswith(("q_proj", "k_proj")):
            bounds = search_clip(weight, samples[name], scheme)
            largest = affine.to_groups(weight, scheme).abs().amax(dim=-1)
            clipped[name] = (bounds < largest).float().mean().item()
            weight = clip(weight, bounds)
        quantized = affine.quantize(weight, scheme)
        linear.weight.data.copy_(affine.dequantize(quantized))
        if keep is not None:
            keep[f"{block.name}.{name}"] = quantized
    return [Choice(f"{block.name}.{name}", search, sum(clipped.get(n, 0.0) for n in names) / len(names))
            for name, search, names in choices]


def _runner(module: nn.Module, inputs: Tensor) -> Callable[[], Tensor]:
    """Run a module that looks at each token by itself (a linear layer, an MLP) on fixed inputs [n, in]."""
    return lambda: module(inputs)


def _attention_runner(block: Block) -> Callable[[], Tensor]:
    """Run the block's attention on its first batch, called exactly as the block calls it."""
    attention, seen = block.module.self_attn, {}
    hook = attention.register_forward_pre_hook(lambda _, args, kwargs: seen.update(args=args, kwargs=kwargs),
                                               with_kwargs=True)
    try:
        block.run(0)
    finally:
        hook.remove()
    mask = block.calls[0].mask

    def output() -> Tensor:
        found = attention(*seen["args"], **seen["kwargs"])[0]
        return found if mask is None else found[mask]

    return output


# ---- the whole model -------------------------------------------------------------------------------------


def awq(
    model: nn.Module,
    tokens: Tensor,
    scheme: Scheme,
    *,
    use_clip: bool = True,
    ratios: Iterable[float] = RATIOS,
    search_tokens: int = 256,
    progress: bool = True,
    keep: dict[str, Quantized] | None = None,
    minimum_share: float = layerwise.MINIMUM_SHARE,
) -> list[Choice]:
    """Quantize the linear layers of all blocks of a Llama-style model in place, by AWQ.

    The model is restored on any error.

    Args:
        model: its norms must be able to take the scale.
        tokens: calibration text, LongTensor [n, length]. The importance of a channel is taken over all of it.
        scheme: what to quantize to.
        use_clip: shrink ranges too. use_clip=False with ratios=(0,) is round to nearest.
        ratios: to try, each from 0 to 1.
        search_tokens: the searches look at about so many tokens of the text (at least one window for the
            attention), which bounds their time and memory.
        progress: show a progress bar.
        keep: a dict that receives the integers and scales of each layer by full name, for `awq_format.save`.
        minimum_share: of the model's matrix weights, as for `layerwise.check_coverage`.

    Returns:
        What was chosen for each group of layers.

    Raises:
        ValueError: for models whose norms cannot take the scale, and for arguments that do not fit; as
            `layerwise.check_coverage`.
        TypeError: when `tokens` is of another kind.
    """
    if search_tokens < 1:
        raise ValueError(f"search_tokens must be positive, got {search_tokens}")
    if scheme.group == "tensor":
        raise ValueError(f"AWQ weighs channels against others of their group, {scheme} has no groups: use "
                         "Scheme(bits, group) or group=None")
    ratios, choices = tuple(ratios), []
    if not all(0 <= ratio <= 1 for ratio in ratios):
        raise ValueError(f"ratios must lie between 0 and 1, got {ratios}")
    layerwise.check_coverage(model, minimum_share)
    for _, block in layerwise.find_blocks(model):
        scaling_groups(block)
    length = tokens.shape[-1] if isinstance(tokens, Tensor) and tokens.ndim == 2 else 1
    layerwise.walk(
        model,
        tokens,
        lambda block: choices.extend(awq_block(block, scheme, use_clip, ratios, keep)),
        lambda: _Features(search_tokens),
        batch_size=max(1, search_tokens // max(1, length)),
        progress=progress,
        description=f"AWQ, {scheme}",
    )
    return choices
