"""What the cases of several lessons are made of: random tensors, and the gradients of an answer."""

from typing import Any

import torch
from torch import Tensor


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Numbers of a standard normal distribution, the same ones on every call.

    Args:
        shape: the sizes of the tensor.
        seed: another seed gives other numbers.

    Returns:
        float32 tensor of that shape.
    """
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(result: Any, above: Tensor | None = None, **inputs: Tensor) -> dict[str, Any]:
    """What an answer computed, and the gradients that reach its inputs: for the `call` of an `Exercise`.

    Args:
        result: what the answer returned. Anything but a tensor is passed on without gradients.
        above: gradient that arrives at `result`, of its shape; ones where it is left out or has another one.
        inputs: leaf tensors by name, each with requires_grad, that the answer was called with.

    Returns:
        "result", detached, and "gradient of NAME" for each input: zeros where no gradient arrived.
    """
    if not isinstance(result, Tensor):
        return {"result": result}
    if result.requires_grad:
        fits = above is not None and above.shape == result.shape
        result.backward(above if fits else torch.ones_like(result))
    found = {
        f"gradient of {name}": torch.zeros_like(value) if value.grad is None else value.grad
        for name, value in inputs.items()
    }
    return {"result": result.detach(), **found}
