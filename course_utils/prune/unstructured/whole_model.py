"""Pruning the linear layers of all blocks of a model, and holding their zeros while it is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from course_utils.prune.unstructured.masks import (
    Sparsity,
    check_score,
    check_share,
    describe,
    lowest,
    mask_of,
)
from course_utils.prune.unstructured.scores import InputNorm, wanda_score
from course_utils.quantize import layerwise

COMPETE = ("row", "layer", "model")


def prune_model(
    model: nn.Module,
    score: Callable[[str, Tensor], Tensor],
    sparsity: Sparsity = 0.5,
    *,
    per: str = "layer",
    minimum_share: float = layerwise.MINIMUM_SHARE,
) -> None:
    """Set the lowest-scored weights of the linear layers of all blocks to zero, in place.

    Embedding, output layer and norms stay as they are.

    Args:
        model: any model with blocks.
        score: score(full name of the layer, weight [out, in]) -> scores [out, in].
        sparsity: share of weights that go, or (n, m): n of each m neighbours stay.
        per: which weights compete: those of a "row", a "layer", or all of the "model" (then the scores must
            be 0 or more, and are computed three times instead of being kept).
        minimum_share: as for `layerwise.check_coverage`.

    Raises:
        ValueError: for arguments that do not fit, before anything is changed; as `layerwise.check_coverage`.
    """
    layerwise.check_coverage(model, minimum_share)
    layerwise.check_untied(model)
    linears = layerwise.block_linears(model)
    if per not in COMPETE:
        raise ValueError(f"per must be one of {', '.join(COMPETE)}, got {per!r}")
    if per == "model" and isinstance(sparsity, tuple):
        raise ValueError('a pattern of n of m neighbours leaves no choice between layers: use per="layer"')
    with torch.no_grad():
        if per == "model":
            _prune_together(linears, score, sparsity)
            return
        masks = [_named(name, mask_of, score(name, linear.weight), sparsity, per)
                 for name, linear in linears.items()]
        for linear, mask in zip(linears.values(), masks, strict=True):
            linear.weight.mul_(mask)


def wanda_model(
    model: nn.Module,
    tokens: Tensor | list[dict],
    sparsity: Sparsity = 0.5,
    *,
    per: str = "row",
    batch_size: int = 4,
    progress: bool = True,
    minimum_share: float = layerwise.MINIMUM_SHARE,
) -> None:
    """Prune a model with Wanda in place, block by block: later blocks see what the pruned ones put out.

    Args:
        model: as for `layerwise.walk`.
        tokens: calibration text, LongTensor [n, length] or dicts of tensors (`layerwise.walk`).
        sparsity: as for `prune_model`.
        per: as for `prune_model`, without "model"; the paper compares within a row.
        batch_size: rows of `tokens` that run together.
        progress: show a progress bar.
        minimum_share: as for `layerwise.check_coverage`.

    Raises:
        TypeError: as `layerwise.walk`.
        ValueError: as `layerwise.check_coverage`, `layerwise.walk` and, with the layer's name, as `mask_of`.
    """
    layerwise.check_coverage(model, minimum_share)

    def prune(name: str, linear: nn.Linear, inputs: InputNorm) -> Tensor:
        weight = linear.weight.detach()
        mask = _named(name, mask_of, wanda_score(weight, inputs.norm[None]), sparsity, per)
        return weight * mask

    layerwise.walk(model, tokens, layerwise.each_linear(prune), InputNorm, batch_size=batch_size,
                   progress=progress, description=f"Wanda {describe(sparsity)}")


def share_of_zeros(model: nn.Module) -> float:
    """Share of zeros among the weights of the linear layers of all blocks.

    Args:
        model: any model with blocks.

    Returns:
        From 0 to 1.
    """
    weights = [linear.weight for linear in layerwise.block_linears(model).values()]
    return sum((w == 0).sum().item() for w in weights) / sum(w.numel() for w in weights)


class HoldZeros(TrainerCallback):
    """For transformers' Trainer: weights of the blocks that are zero before training are zero after it.

    The optimizer moves every weight, zeros too. So they are set back after each of its steps.
    """

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Remember where the zeros are.

        Args:
            args: not used.
            state: not used.
            control: not used.
            model: the model that is trained.
            **kwargs: not used.
        """
        self.weights = [linear.weight for linear in layerwise.block_linears(model).values()]
        self.masks = [weight != 0 for weight in self.weights]

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set them to zero again.

        Args:
            args: not used.
            state: not used.
            control: not used.
            **kwargs: not used.
        """
        with torch.no_grad():
            for weight, mask in zip(self.weights, self.masks, strict=True):
                weight.mul_(mask)


# ---- parts -----------------------------------------------------------------------------------------------


def _prune_together(
    linears: dict[str, nn.Linear], score: Callable[[str, Tensor], Tensor], sparsity: float
) -> None:
    """One threshold for all layers. Ties on it go layer by layer until the count is reached."""
    check_share(sparsity)
    left = round(sparsity * sum(linear.weight.numel() for linear in linears.values()))
    if left == 0:
        return

    def scores() -> Iterable[tuple[nn.Linear, Tensor]]:
        for name, linear in linears.items():
            found = score(name, linear.weight)
            _named(name, check_score, found)
            if found.min() < 0:
                raise ValueError(f'{name}: scores below 0 cannot be compared per="model"')
            yield linear, found.float()

    threshold = _kth_smallest(lambda: (found for _, found in scores()), left)
    ties = left - sum((found < threshold).sum().item() for _, found in scores())
    for linear, found in scores():
        count = (found < threshold).sum().item() + min(ties, (found == threshold).sum().item())
        ties -= count - (found < threshold).sum().item()
        linear.weight.mul_(~lowest(found.reshape(1, -1), threshold, count).view_as(found))


def _kth_smallest(tensors: Callable[[], Iterable[Tensor]], k: int) -> float:
    """The k-th smallest of all numbers (0 or more) of many tensors, without putting them side by side.

    The bits of such floats, read as integers, have the same order. So the upper half of the bits is counted
    first, and only the numbers that share the right upper half are sorted.
    """
    counts = sum(torch.bincount(_upper_half(t), minlength=1 << 15).cpu() for t in tensors())
    below = counts.cumsum(0)
    upper = int(torch.searchsorted(below, k))
    k -= int(below[upper - 1]) if upper else 0
    return torch.cat([t.flatten()[_upper_half(t) == upper] for t in tensors()]).kthvalue(k).values.item()


def _upper_half(t: Tensor) -> Tensor:
    """The upper 16 bits of each number's size, flat: integers in the order of the numbers."""
    return t.float().abs().flatten().view(torch.int32) >> 16


def _named(name: str, function: Callable, *args: Any) -> Any:
    """Call function(*args), with the layer's name in front of its error."""
    try:
        return function(*args)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
