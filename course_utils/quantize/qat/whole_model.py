"""A whole model: prepare it for training, let it see its inputs, convert it to packed integers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from course_utils.quantize import layerwise
from course_utils.quantize.qat.layers import ConvertedLinear, FakeQuantLinear, Spec


def prepare(model: nn.Module, spec: Spec, minimum_share: float = layerwise.MINIMUM_SHARE) -> nn.Module:
    """Put a FakeQuantLinear in place of each linear layer of the model's blocks.

    Without training, the model now computes what round-to-nearest post-training quantization gives.

    Args:
        model: any model with blocks; changed in place.
        spec: what its layers are trained for.
        minimum_share: of the model's matrix weights, as for `layerwise.check_coverage`.

    Returns:
        The same model.

    Raises:
        ValueError: when the model is prepared already, a weight cannot be quantized, or as
            `layerwise.check_coverage`, `layerwise.check_untied` and `layerwise.check_replaceable`.
        TypeError: when a weight is no float.
    """
    linears = layerwise.block_linears(model)
    if any(isinstance(linear, FakeQuantLinear) for linear in linears.values()):
        raise ValueError("this model is prepared already: load it again, or prepare a copy made before")
    layerwise.check_coverage(model, minimum_share)
    layerwise.check_untied(model)
    layerwise.check_replaceable(model)
    layers = {name: FakeQuantLinear(linear, spec) for name, linear in linears.items()}
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return model


def calibrate(model: nn.Module, batches: Iterable[dict]) -> nn.Module:
    """Let the layers with per="tensor" see their inputs, without training: model(**batch) for each batch.

    Args:
        model: a prepared one.
        batches: dicts of tensors for the model.

    Returns:
        The same model.

    Raises:
        ValueError: when it has no fake-quantized layers.
    """
    layers = fake_quant_layers(model)
    mode = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for layer in layers.values():
            layer.training = True
        with torch.no_grad():
            for batch in batches:
                model(**batch)
    finally:
        for module, training in mode.items():
            module.training = training
    return model


def convert(model: nn.Module) -> nn.Module:
    """Put packed integers in place of each FakeQuantLinear.

    The converted model gives the same results within float rounding, and can no longer be trained.

    Args:
        model: a prepared and trained one; changed in place.

    Returns:
        The same model.

    Raises:
        ValueError: when it has no fake-quantized layers, or a learned scale is not finite.
    """
    converted = {name: ConvertedLinear(layer) for name, layer in fake_quant_layers(model).items()}
    for name, layer in converted.items():
        model.set_submodule(name, layer)
    return model


def fake_quant_layers(model: nn.Module) -> dict[str, FakeQuantLinear]:
    """The FakeQuantLinear layers of a model.

    Args:
        model: a prepared one.

    Returns:
        The layers by full name.

    Raises:
        ValueError: when there are none.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, FakeQuantLinear)}
    if not layers:
        raise ValueError("the model has no fake-quantized layers: call qat.prepare(model, spec) first")
    return layers
