"""AWQ, activation-aware weight quantization: scale the channels that matter before rounding.

A weight's error is multiplied by what flows through its input channel, and a few channels carry far larger
activations than the rest. Multiply the columns of those channels by s > 1 before rounding, and divide what
flows in by the same s: the product is unchanged, while the rounding error of these columns shrinks by s. The
division costs nothing at run time, for it is folded into the weights of the layer before. Every weight is
stored with the same few bits: no column is kept in higher precision.

    walk over the blocks:  for each group of layers that read the same input
        importance  a = mean |x| of each input channel
        scale       s = a^ratio, ratio from a grid of 20: the one with the smallest output error
        fold        layer before / s, columns * s
        clip        shrink each group's range while the output error falls (not for q and k)
        quantize    round to nearest

Sources: Lin et al., arXiv 2306.00978, and its reference code mit-han-lab/llm-awq (awq/quantize/auto_scale.py,
auto_clip.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from course_utils.quantize import affine, layerwise
from course_utils.quantize.affine import Quantized, Scheme
from course_utils.quantize.layerwise import Block

RATIOS = tuple(i / 20 for i in range(20))  # 0, 0.05 ... 0.95
SHRINKS = tuple(1 - i / 20 for i in range(11))  # 1, 0.95 ... 0.5


# ---- the formulas ----------------------------------------------------------------------------------------

def channel_importance(inputs: Tensor) -> Tensor:
    """How much each input channel carries: the mean of |x| over all tokens.

    inputs: float [..., channels], any number of leading dimensions. Returns float32 [channels].
    """
    return inputs.float().abs().reshape(-1, inputs.shape[-1]).mean(dim=0)


def awq_scale(importance: Tensor, ratio: float) -> Tensor:
    """The factor of each channel: s = importance^ratio, at least 1e-4, then divided by sqrt(max(s) * min(s)).

    The division centres the factors around 1: the largest is 1 / the smallest. ratio 0 gives ones (round to
    nearest), ratio 1 would make all channels equally large.
    importance: float [channels], none negative. Returns [channels].
    """
    scale = importance.pow(ratio).clamp(min=1e-4)
    return scale / (scale.max() * scale.min()).sqrt()


@torch.no_grad()
def fold_scale(previous: nn.Module, layers: list[nn.Linear], scale: Tensor) -> None:
    """Move a factor for each channel from the output of `previous` into the `layers` that read it, in place.

    What `previous` puts out becomes 1/scale of what it was, and the layers multiply it by scale again.
    previous: nn.Linear or a norm, with weight [channels, in] or [channels] and perhaps a bias [channels].
    layers: each with weight [out, channels]; their biases are added later and stay. scale: [channels].
    """
    rows = scale.reshape(-1, *[1] * (previous.weight.ndim - 1))
    previous.weight.div_(rows)
    if getattr(previous, "bias", None) is not None:
        previous.bias.div_(scale)
    for layer in layers:
        layer.weight.mul_(scale)


def scaled_fake_quantize(weight: Tensor, scale: Tensor, scheme: Scheme) -> Tensor:
    """What the weight [out, in] amounts to when its columns are scaled, rounded and scaled back.

    Stands for a layer whose input was divided by scale [in]: affine.fake_quantize(weight * scale) / scale.
    """
    values = affine.to_groups(weight * scale, scheme)
    return round_in_place(values, scheme).reshape(weight.shape).to(weight.dtype).div_(scale)


def round_in_place(values: Tensor, scheme: Scheme) -> Tensor:
    """values [..., group] rounded to the scheme's grid, the same numbers as from `affine.fake_quantize`.

    The searches round every weight some thirty times. Overwriting one buffer is several times faster there
    than a new one for each step of the formula.
    """
    step, zero = affine.parameters(values, scheme)
    values.div_(step).round_().add_(zero).clamp_(scheme.qmin, scheme.qmax)
    return values.sub_(zero).mul_(step)


# ---- the motivating experiment: 1 % of the channels in full precision ------------------------------------

def salient_channels(importance: Tensor, fraction: float = 0.01) -> Tensor:
    """Indices of the most important channels: `fraction` of all (at least one), LongTensor, ascending."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}")
    count = max(1, round(fraction * len(importance)))
    return importance.topk(count).indices.sort().values


def keep_channels(weight: Tensor, channels: Tensor, scheme: Scheme) -> Tensor:
    """Fake-quantize weight [out, in], then put the columns `channels` back as they were (mixed precision)."""
    quantized = affine.fake_quantize(weight, scheme)
    quantized[:, channels] = weight[:, channels]
    return quantized


def keep_salient(
    model: nn.Module,
    importance: dict[str, Tensor],
    scheme: Scheme,
    by: str = "activation",
    fraction: float = 0.01,
    seed: int = 0,
) -> None:
    """Round every block linear in place, with `fraction` of its input channels kept in full precision.

    by: how the kept channels are chosen: "activation" (largest mean |x|), "weight" (columns with the largest
    norm) or "random" (seeded). importance: mean |x| of each linear's input by full name, see
    `model_importance`; read only by "activation".
    """
    generator = torch.Generator().manual_seed(seed)
    for name, linear in layerwise.block_linears(model).items():
        weight = linear.weight.detach()
        if by == "activation":
            score = importance[name]
        elif by == "weight":
            score = weight.float().norm(dim=0)
        elif by == "random":
            score = torch.rand(weight.shape[1], generator=generator).to(weight.device)
        else:
            raise ValueError(f'by must be "activation", "weight" or "random", got {by!r}')
        linear.weight.data.copy_(keep_channels(weight, salient_channels(score, fraction), scheme))


def model_importance(model: nn.Module, tokens: Tensor, **options) -> dict[str, Tensor]:
    """Mean |x| of the inputs of every block linear, by full name: float32 [in] each.

    tokens: LongTensor [n, length]. `options` go to `layerwise.collect_statistics`.
    """
    found = layerwise.collect_statistics(model, tokens, layerwise.MeanAbs, **options)
    return {name: statistic.mean for name, statistic in found.items()}


# ---- the two searches ------------------------------------------------------------------------------------

@dataclass(frozen=True)
class ScaleSearch:
    """What a search over ratios found. errors: mean squared output error of each ratio, in order."""

    ratios: tuple[float, ...]
    errors: tuple[float, ...]
    importance: Tensor

    @property
    def ratio(self) -> float:
        """The ratio with the smallest error; of equals, the smallest ratio."""
        return self.ratios[self.errors.index(min(self.errors))]

    @property
    def gain(self) -> float:
        """Error of plain rounding over the error found: 1 means that scaling did not help."""
        return self.errors[self.ratios.index(0)] / min(self.errors) if min(self.errors) else 1.0

    @property
    def scale(self) -> Tensor:
        """The factors [in] of the best ratio."""
        return awq_scale(self.importance, self.ratio)


@torch.no_grad()
def search_scale(
    layers: list[nn.Linear],
    importance: Tensor,
    scheme: Scheme,
    output: Callable[[], Tensor],
    ratios: Iterable[float] = RATIOS,
) -> ScaleSearch:
    """Try each ratio on layers that read the same input; measure how far `output()` moves from what it was.

    importance: [in]. output: runs the module to inspect (the attention for q, k, v; the MLP for gate and up;
    the layer itself for o and down) on fixed inputs and returns its output. The weights are put back.
    Ratio 0 is always tried, so the result is never worse than round to nearest on these inputs.
    """
    ratios = tuple(dict.fromkeys((0.0, *ratios)))
    weights = [layer.weight.data for layer in layers]
    wanted = output()
    errors = []
    try:
        for ratio in ratios:
            scale = awq_scale(importance, ratio).to(weights[0].dtype)
            for layer, weight in zip(layers, weights, strict=True):
                layer.weight.data = scaled_fake_quantize(weight, scale, scheme)
            errors.append((output() - wanted).float().square().mean().item())
    finally:
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight.data = weight
    if not all(error < float("inf") for error in errors):
        raise ValueError("a scaled layer's output is not finite: does the calibration text give NaN or inf?")
    return ScaleSearch(ratios, tuple(errors), importance)


def search_clip(
    weight: Tensor, inputs: Tensor, scheme: Scheme, shrinks: Iterable[float] = SHRINKS
) -> Tensor:
    """Largest |weight| to allow in each group: the bound with the least output error on `inputs`.

    Tries shrink * max |weight| for each shrink, 1 (no clipping) first. weight: [out, in], inputs: [n, in].
    Returns bounds [out, groups], for `clip`. Unlike `affine.search_clip`, which counts weight error, this
    counts the error in what the group adds to the output.

    With d a group's weight error and X its n inputs, that error is |X d|^2. Only X^T X matters, so X may be
    replaced by the triangular factor R of X = QR: at most as many rows as the group is wide.
    """
    groups = affine.to_groups(weight, scheme)  # [out, groups, group]
    x = affine.to_groups(inputs, scheme).transpose(0, 1)  # [groups, n, group]
    if x.shape[1] > x.shape[2]:
        x = torch.linalg.qr(x, mode="r").R
    largest = groups.abs().amax(dim=-1)
    bounds, least = largest.clone(), torch.full_like(largest, torch.inf)
    for shrink in shrinks:
        bound = largest * shrink
        limit = bound.unsqueeze(-1)
        moved = round_in_place(groups.clamp(-limit, limit), scheme).sub_(groups)
        error = (moved.transpose(0, 1) @ x.transpose(1, 2)).square_().sum(dim=-1).T  # over [groups, out, n]
        better = error < least
        bounds, least = torch.where(better, bound, bounds), torch.where(better, error, least)
    return bounds


def clip(weight: Tensor, bounds: Tensor) -> Tensor:
    """weight [out, in] with each group cut off at +- its bound. bounds: [out, groups]."""
    groups = weight.reshape(*bounds.shape, -1)
    limit = bounds.unsqueeze(-1).to(weight.dtype)
    return groups.clamp(-limit, limit).reshape(weight.shape)


# ---- one block -------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Group:
    """Layers that read the same input, the module before them, and the module whose output is inspected."""

    previous: nn.Module
    layers: dict[str, nn.Linear]
    inspected: nn.Module


def scaling_groups(block: nn.Module) -> list[Group]:
    """The places of a Llama block where a scale folds away exactly.

    norm -> q, k, v and norm -> gate, up; up -> down, because down reads silu(gate) * up, in which a factor of
    up stays a factor. v -> o only where each channel of o's input is one channel of v. With grouped-query
    attention three query heads (SmolLM2) read the same value head: one v channel feeds three channels of o,
    which would want three different scales, so that group is left out.
    Raises ValueError when the block is not of this kind.
    """
    (first, attention_in), (second, mlp_in) = layerwise.norm_readers(block)
    attention, mlp = block.self_attn, block.mlp
    groups = [Group(first, attention_in, attention), Group(second, mlp_in, mlp),
              Group(mlp.up_proj, {"mlp.down_proj": mlp.down_proj}, mlp.down_proj)]
    if attention.v_proj.out_features == attention.o_proj.in_features:
        groups.insert(1, Group(attention.v_proj, {"self_attn.o_proj": attention.o_proj}, attention.o_proj))
    return groups


@dataclass(frozen=True)
class Choice:
    """What AWQ decided for one group of layers. name: the first layer's full name; clipped: share of the
    weights' groups whose range was shrunk, over all layers of the group (0 when clipping is off)."""

    name: str
    search: ScaleSearch
    clipped: float


class _Features(layerwise.Together):
    """What AWQ wants to know of a layer's input: mean |x| over all tokens, and some of the tokens."""

    def __init__(self, limit: int) -> None:
        super().__init__(importance=layerwise.MeanAbs(), sample=layerwise.Sample(limit))


def awq_block(block: Block, scheme: Scheme, use_clip: bool = True, ratios: Iterable[float] = RATIOS,
              keep: dict[str, Quantized] | None = None) -> list[Choice]:
    """Scale, clip and quantize one block in place, as `awq` does. Its statistics must be `_Features`."""
    groups = scaling_groups(block.module)
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
) -> list[Choice]:
    """Quantize the linear layers of all blocks of a Llama-style model in place. Returns what was chosen.

    tokens: calibration text, LongTensor [n, length]. The importance of a channel is taken over all of it; the
    searches look at about `search_tokens` tokens of it (at least one window for the attention), which bounds
    their time and memory. ratios=(0,), use_clip=False is round to nearest.
    keep: a dict that receives the integers and scales of each layer by full name, for `awq_format.save`.
    Raises ValueError for models whose norms cannot take the scale; the model is restored on any error.
    """
    if search_tokens < 1:
        raise ValueError(f"search_tokens must be positive, got {search_tokens}")
    if scheme.group == "tensor":
        raise ValueError(f"AWQ weighs channels against others of their group, {scheme} has no groups: use "
                         "Scheme(bits, group) or group=None")
    ratios, choices = tuple(ratios), []
    if not all(0 <= ratio <= 1 for ratio in ratios):
        raise ValueError(f"ratios must lie between 0 and 1, got {ratios}")
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
