"""GPTQ on the linear layers of all blocks of a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from course_utils.quantize import affine, layerwise
from course_utils.quantize.affine import Scheme
from course_utils.quantize.gptq.columns import GPTQWeight, gptq
from course_utils.quantize.gptq.optimal_brain import output_error


@dataclass(frozen=True)
class LayerReport:
    """One linear layer, with its `output_error` on the calibration text as a share of the output's energy.

    Attributes:
        name: the layer's full name.
        nearest_error: of round to nearest.
        gptq_error: of GPTQ.
        damping: share of the mean diagonal that was added to the Hessian's diagonal.
    """

    name: str
    nearest_error: float
    gptq_error: float
    damping: float


def quantize_model(
    model: nn.Module,
    tokens: Tensor | list[dict],
    scheme: Scheme,
    *,
    order: str = "natural",
    damping: float = 0.01,
    clip_search: bool = False,
    static_groups: bool = False,
    sequential: bool = False,
    batch_size: int = 4,
    progress: bool = True,
    keep: dict[str, GPTQWeight] | None = None,
    minimum_share: float = layerwise.MINIMUM_SHARE,
) -> list[LayerReport]:
    """Quantize the linear layers of all blocks in place, block by block.

    Layers with one input in common (q, k and v; gate and up) have one Hessian: their rows are stacked, so
    that the decomposition and the walk over the columns are done once for all of them.
    The model is put back as it was when anything goes wrong or the run is interrupted.

    Args:
        model: as for `layerwise.walk`.
        tokens: calibration text, LongTensor [n, length] or dicts of tensors (`layerwise.walk`).
        scheme: as for `gptq`.
        order: as for `gptq`.
        damping: as for `gptq`.
        clip_search: as for `gptq`.
        static_groups: as for `gptq`.
        sequential: measure a layer's inputs after the layers before it in its block were rounded. Four passes
            a block instead of one.
        batch_size: rows of `tokens` that run together.
        progress: show a progress bar.
        keep: a dict that receives the integers and scales of each layer by full name, for `checkpoint.save`.
        minimum_share: of the model's matrix weights, as for `layerwise.check_coverage`.

    Returns:
        A report of each layer.

    Raises:
        TypeError: as `gptq` and `layerwise.walk`.
        ValueError: as `gptq`, with the layer's name, and as `layerwise.walk` and `layerwise.check_coverage`.
    """
    layerwise.check_coverage(model, minimum_share)
    reports: list[LayerReport] = []

    def quantize_group(block: layerwise.Block, names: list[str], hessian: Tensor) -> None:
        weights = [block.linears[name].weight for name in names]
        stacked = torch.cat([weight.detach().float() for weight in weights])
        try:
            found = gptq(stacked, hessian, scheme, order=order, damping=damping, clip_search=clip_search,
                         static_groups=static_groups)
        except ValueError as error:
            raise ValueError(f"{block.name}.{names[0]}: {error}") from None
        results = _split_rows(found, [len(weight) for weight in weights])
        for name, weight, result in zip(names, weights, results, strict=True):
            full_name = f"{block.name}.{name}"
            reports.append(_report(full_name, weight, result, hessian))
            weight.data.copy_(result.dequantize())
            if keep is not None:
                keep[full_name] = result

    def edit(block: layerwise.Block) -> None:
        everything = None if sequential else block.statistics
        for names in block.shared:
            statistics = block.collect(names) if sequential else everything
            quantize_group(block, names, statistics[names[0]].matrix)

    layerwise.walk(model, tokens, edit, layerwise.Hessian, batch_size=batch_size, progress=progress,
                   description=f"GPTQ {scheme}")
    return reports


def _split_rows(whole: GPTQWeight, sizes: list[int]) -> list[GPTQWeight]:
    """The rows of stacked layers, given back to each layer."""
    parts = zip(whole.q.split(sizes), whole.scale.split(sizes), whole.zero.split(sizes), strict=True)
    return [GPTQWeight(q, scale, zero, whole.g_idx, whole.scheme, whole.damping) for q, scale, zero in parts]


def _report(name: str, weight: Tensor, result: GPTQWeight, hessian: Tensor) -> LayerReport:
    """The errors of round to nearest and of GPTQ for one layer with weight [out, in]."""
    weight = weight.detach().float()
    energy = output_error(weight, torch.zeros_like(weight), hessian)
    nearest = affine.fake_quantize(weight, result.scheme)
    return LayerReport(
        name,
        output_error(weight, nearest, hessian) / energy,
        output_error(weight, result.dequantize(), hessian) / energy,
        result.damping,
    )
