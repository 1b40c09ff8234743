"""Unstructured pruning: which single weights can become zero?

Every method here is a *score*: the higher, the more a weight is needed. The lowest go.

random      no reason at all: the baseline
magnitude   |W|: small weights matter least (Han et al., arXiv 1506.02626)
Wanda       |W| * ||x||: a small weight on a large input may matter (Sun et al., arXiv 2306.11695)

Weights compete within a row, a layer, the whole model, or a group of neighbours (2 of each 4 stay). Shapes:
weight and score [out, in] as in nn.Linear; a mask is bool, True where a weight stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from course_utils.quantize import layerwise

Sparsity = float | tuple[int, int]  # the share of weights that go, or (n, m): n of each m neighbours stay
COMPETE = ("row", "layer", "model")

# ---- scores ----------------------------------------------------------------------------------------------


def random_score(weight: Tensor, generator: torch.Generator) -> Tensor:
    """A random number from 0 to 1 for each weight, float32 [out, in]. generator: on the CPU, seeded."""
    return torch.rand(weight.shape, generator=generator).to(weight.device)


def magnitude_score(weight: Tensor) -> Tensor:
    """The size of each weight, [out, in]."""
    return weight.detach().abs()


def wanda_score(weight: Tensor, inputs: Tensor) -> Tensor:
    """Wanda's score of each weight: its size times the length of the inputs that it multiplies.

    weight: float [out, in], as in nn.Linear.
    inputs: float [tokens, in], what reached the layer. The length of input j is the root of the sum of its
    squares over all tokens: one number for each column of the weight.
    Returns the scores, [out, in].
    """
    length = inputs.square().sum(dim=0).sqrt()
    return weight.abs() * length


class InputNorm:
    """norm = root of the sum of squares of each input channel, float32 [in], for `layerwise.walk`."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0

    def add(self, x: Tensor) -> None:
        """x: float32 [tokens, in]."""
        self.total = self.total + x.square().sum(dim=0)

    @property
    def norm(self) -> Tensor:
        return self.total.sqrt()


# ---- masks -----------------------------------------------------------------------------------------------


def keep_highest(score: Tensor, sparsity: float, per: str = "layer") -> Tensor:
    """Mask that takes the lowest scores away: bool [out, in].

    sparsity: share of weights that go, from 0 to 1. Exactly round(sparsity * n) of the n that compete go; of
    equal scores those further left and further up go first.
    per: "layer" (all weights compete) or "row" (the weights of one output compete).
    Raises ValueError for a sparsity outside 0 to 1, an unknown `per`, scores that are no finite matrix.
    """
    _check_score(score)
    _check_share(sparsity)
    if per not in ("layer", "row"):
        raise ValueError(f'per must be "layer" or "row", got {per!r}')
    groups = score.reshape(1, -1) if per == "layer" else score
    gone = round(sparsity * groups.shape[1])
    if gone == 0:
        return torch.ones_like(score, dtype=torch.bool)
    threshold = groups.kthvalue(gone, dim=1, keepdim=True).values
    return ~_lowest(groups, threshold, gone).view_as(score)


def n_m_mask(score: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """Mask that keeps the n highest scores of each m neighbours in a row: bool [out, in].

    score: float [out, in]; groups begin at column 0. Exactly n stay in each group: of equal scores those
    further left.
    Raises ValueError when m does not divide the number of columns.
    """
    if score.shape[1] % m:
        raise ValueError(f"{score.shape[1]} columns cannot be cut into groups of {m}")
    groups = score.reshape(-1, m)
    best = groups.argsort(dim=1, descending=True, stable=True)[:, :n]
    mask = torch.zeros_like(groups, dtype=torch.bool)
    return mask.scatter(1, best, True).reshape(score.shape)


def mask_of(score: Tensor, sparsity: Sparsity, per: str = "layer") -> Tensor:
    """`keep_highest` for a share, `n_m_mask` for a pair (n, m). Errors as there."""
    if not isinstance(sparsity, tuple):
        return keep_highest(score, sparsity, per)
    _check_score(score)
    check_pattern(sparsity)
    return n_m_mask(score, *sparsity)


# ---- a whole model ---------------------------------------------------------------------------------------


def prune_model(
    model: nn.Module,
    score: Callable[[str, Tensor], Tensor],
    sparsity: Sparsity = 0.5,
    *,
    per: str = "layer",
) -> None:
    """Set the lowest-scored weights of the linear layers of all blocks to zero, in place.

    score: function (full name of the layer, weight [out, in]) -> scores [out, in].
    sparsity: share of weights that go, or (n, m): n of each m neighbours stay.
    per: which weights compete: those of a "row", a "layer", or all of the "model" (then the scores must be
    0 or more, and are computed three times instead of being kept).
    Embedding, output layer and norms stay as they are. Raises ValueError for arguments that do not fit.
    """
    linears = layerwise.block_linears(model)
    if per not in COMPETE:
        raise ValueError(f"per must be one of {', '.join(COMPETE)}, got {per!r}")
    if per == "model" and isinstance(sparsity, tuple):
        raise ValueError('a pattern of n of m neighbours leaves no choice between layers: use per="layer"')
    with torch.no_grad():
        if per == "model":
            _prune_together(linears, score, sparsity)
            return
        for name, linear in linears.items():
            linear.weight.mul_(_named(name, mask_of, score(name, linear.weight), sparsity, per))


def wanda_model(
    model: nn.Module,
    tokens: Tensor | list[dict],
    sparsity: Sparsity = 0.5,
    *,
    per: str = "row",
    batch_size: int = 4,
    progress: bool = True,
) -> None:
    """Prune a model with Wanda in place, block by block: later blocks see what the pruned ones put out.

    tokens: calibration text, LongTensor [n, length] or dicts of tensors (`layerwise.walk`).
    sparsity, per: as for `prune_model`; the paper compares within a row.
    """

    def prune(name: str, linear: nn.Linear, inputs: InputNorm) -> Tensor:
        weight = linear.weight.detach()
        mask = _named(name, mask_of, wanda_score(weight, inputs.norm[None]), sparsity, per)
        return weight * mask

    layerwise.walk(model, tokens, layerwise.each_linear(prune), InputNorm, batch_size=batch_size,
                   progress=progress, description=f"Wanda {describe(sparsity)}")


def share_of_zeros(model: nn.Module) -> float:
    """Share of zeros among the weights of the linear layers of all blocks, from 0 to 1."""
    weights = [linear.weight for linear in layerwise.block_linears(model).values()]
    return sum((w == 0).sum().item() for w in weights) / sum(w.numel() for w in weights)


def describe(sparsity: Sparsity) -> str:
    """"50 %" or "2:4"."""
    return f"{sparsity[0]}:{sparsity[1]}" if isinstance(sparsity, tuple) else f"{sparsity:.0%}".replace(
        "%", " %")


class HoldZeros(TrainerCallback):
    """For transformers' Trainer: weights of the blocks that are zero before training are zero after it.

    The optimizer moves every weight, zeros too. So they are set back after each of its steps.
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.weights = [linear.weight for linear in layerwise.block_linears(model).values()]
        self.masks = [weight != 0 for weight in self.weights]

    def on_optimizer_step(self, args, state, control, **kwargs):
        with torch.no_grad():
            for weight, mask in zip(self.weights, self.masks, strict=True):
                weight.mul_(mask)


# ---- parts -----------------------------------------------------------------------------------------------


def _lowest(groups: Tensor, threshold: Tensor | float, count: Tensor | int) -> Tensor:
    """True for what lies below the threshold, and for as many of those on it as `count` in a row allows."""
    below = groups < threshold
    tied = groups == threshold
    missing = count - below.sum(dim=1, keepdim=True)
    return below | (tied & (tied.cumsum(dim=1) <= missing))


def _prune_together(linears: dict[str, nn.Linear], score, sparsity: float) -> None:
    """One threshold for all layers. Ties on it go layer by layer until the count is reached."""
    _check_share(sparsity)
    left = round(sparsity * sum(linear.weight.numel() for linear in linears.values()))
    if left == 0:
        return

    def scores() -> Iterable[tuple[nn.Linear, Tensor]]:
        for name, linear in linears.items():
            found = score(name, linear.weight)
            _named(name, _check_score, found)
            if found.min() < 0:
                raise ValueError(f'{name}: scores below 0 cannot be compared per="model"')
            yield linear, found.float()

    threshold = _kth_smallest(lambda: (found for _, found in scores()), left)
    ties = left - sum((found < threshold).sum().item() for _, found in scores())
    for linear, found in scores():
        count = (found < threshold).sum().item() + min(ties, (found == threshold).sum().item())
        ties -= count - (found < threshold).sum().item()
        linear.weight.mul_(~_lowest(found.reshape(1, -1), threshold, count).view_as(found))


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
    return t.float().abs().flatten().view(torch.int32) >> 16


def _named(name: str, function, *args):
    """function(*args), with the layer's name in front of its error."""
    try:
        return function(*args)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _check_share(sparsity: float) -> None:
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must be a share from 0 to 1, or a pair such as (2, 4), got {sparsity!r}")


def check_pattern(pattern: tuple[int, int]) -> None:
    """Raises ValueError unless pattern is (n, m) with 1 <= n <= m."""
    whole = len(pattern) == 2 and all(isinstance(number, int) for number in pattern)
    if not whole or not 1 <= pattern[0] <= pattern[1]:
        raise ValueError(f"a pattern is a pair (n, m) of whole numbers with 1 <= n <= m, got {pattern!r}")


def _check_score(score: Tensor) -> None:
    if score.dim() != 2 or score.numel() == 0:
        raise ValueError(f"scores must be a matrix [out, in], got shape {list(score.shape)}")
    if not torch.isfinite(score).all():
        raise ValueError("the scores hold NaN or infinite values: look at the weights and the inputs")
