"""The motivating experiment: 1 % of the channels in full precision, chosen by what flows through them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from course_utils.quantize import affine, layerwise
from course_utils.quantize.affine import Scheme


def salient_channels(importance: Tensor, fraction: float = 0.01) -> Tensor:
    """The most important channels.

    Args:
        importance: float [channels].
        fraction: share of all channels to take; one is taken at least.

    Returns:
        Their indices, LongTensor, ascending.

    Raises:
        ValueError: when fraction is not above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, got {fraction}")
    count = max(1, round(fraction * len(importance)))
    return importance.topk(count).indices.sort().values


def keep_channels(weight: Tensor, channels: Tensor, scheme: Scheme) -> Tensor:
    """Fake-quantize a weight, then put some columns back as they were (mixed precision).

    Args:
        weight: float [out, in].
        channels: indices of the columns to put back.
        scheme: what the others are quantized to.

    Returns:
        float [out, in].
    """
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
    minimum_share: float = layerwise.MINIMUM_SHARE,
) -> None:
    """Round every block linear in place, with `fraction` of its input channels kept in full precision.

    Args:
        model: any model with blocks.
        importance: mean |x| of each linear's input by full name, see `model_importance`; read only by
            "activation".
        scheme: what the other channels are quantized to.
        by: how the kept channels are chosen: "activation" (largest mean |x|), "weight" (columns with the
            largest norm) or "random" (seeded).
        fraction: share of the channels that is kept.
        seed: of the random choice.
        minimum_share: of the model's matrix weights, as for `layerwise.check_coverage`.

    Raises:
        TypeError: as `layerwise.check_weights`.
        ValueError: for another `by`, a fraction that is not above 0 and at most 1, a layer without
            importance; as `layerwise.check_weights` and `layerwise.check_coverage`.
    """
    layerwise.check_coverage(model, minimum_share)
    layerwise.check_weights(model, scheme)
    absent = [name for name in layerwise.block_linears(model) if name not in importance]
    if by == "activation" and absent:
        raise ValueError(f"there is no importance of {absent[0]}: take it from awq.model_importance")
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


def model_importance(model: nn.Module, tokens: Tensor, **options: Any) -> dict[str, Tensor]:
    """Mean |x| of the inputs of every block linear.

    Args:
        model: the model as it is.
        tokens: LongTensor [n, length].
        **options: for `layerwise.collect_statistics`.

    Returns:
        float32 [in] for each layer, by full name.
    """
    found = layerwise.collect_statistics(model, tokens, layerwise.MeanAbs, **options)
    return {name: statistic.mean for name, statistic in found.items()}
