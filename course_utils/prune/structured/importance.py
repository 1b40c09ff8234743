"""Importance: how much worse a model gets without each head, and how much each neuron adds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from course_utils.prune.structured.gates import gated
from course_utils.prune.structured.layout import attentions, mlp_outputs


def head_importance(output: Tensor, gradient: Tensor, head_dim: int) -> Tensor:
    """How much the loss depends on each head, to first order.

    Put a gate xi = 1 on a head, output * xi. The derivative of the loss by xi is the sum of
    output * gradient over the head's tokens and channels. Its absolute value is taken for each example, and
    then the mean over the examples.
    Source: arXiv 1905.10650, section 4.1.

    Args:
        output: float [examples, tokens, heads * head_dim], what the heads put out, side by side.
        gradient: the same shape: the gradient of each example's own loss with respect to `output`.
        head_dim: channels of one head.

    Returns:
        float [heads].
    """
    by_head = (output * gradient).unflatten(-1, (-1, head_dim))  # [examples, tokens, heads, head_dim]
    by_gate = by_head.sum(dim=(1, 3))
    return by_gate.abs().mean(dim=0)


def head_gradient(
    model: nn.Module, batches: Iterable, loss: Callable[[Any], Tensor], query_heads: bool = False
) -> Tensor:
    """Importance of each key-value head (without GQA: of each head) by gradient. One backward pass a batch.

    With GQA a key-value head and the query heads that read it otherwise count as one wide head. The model's
    weights get no gradients, so this needs little memory.

    Args:
        model: a BERT or a decoder of the Llama architecture.
        batches: anything `loss` understands; each is used once.
        loss: loss(batch) -> scalar tensor: the *sum* of the losses of the batch's examples, through the
            model.
        query_heads: score each query head by itself.

    Returns:
        float [blocks, kv_heads], or [blocks, heads] with query_heads, on the CPU.

    Raises:
        ValueError: when the blocks have different numbers of heads, or there are no batches.
    """
    layout = attentions(model)
    width = [attention.head_dim * (1 if query_heads else attention.group) for attention in layout]
    heads = {attention.output.in_features // one for attention, one in zip(layout, width, strict=True)}
    if len(heads) > 1:
        raise ValueError("the blocks have different numbers of heads already; score them before removing any")
    total, examples = torch.zeros(len(layout), heads.pop()), 0
    with _weights_frozen(model):
        for batch in batches:
            with _inputs_of([attention.output for attention in layout]) as seen:
                value = loss(batch)
            gradients = torch.autograd.grad(value, seen)
            for i, (x, g) in enumerate(zip(seen, gradients, strict=True)):
                total[i] += head_importance(x.detach().float(), g.float(), width[i]).cpu() * len(x)
            examples += len(seen[0])
    if not examples:
        raise ValueError("there are no batches to take gradients on; give at least one")
    return total / examples


def head_ablation(model: nn.Module, loss: Callable[[], float], progress: bool = True) -> Tensor:
    """Importance of each key-value head by trying it out: by how much the loss rises without this head.

    Args:
        model: a BERT or a decoder of the Llama architecture.
        loss: loss() -> float, computed through the model; called once for each head, and once for all.
        progress: show a progress bar.

    Returns:
        float [blocks, kv_heads]; negative where the model is better without the head.

    Raises:
        ValueError: when the blocks have different numbers of heads.
    """
    layout = attentions(model)
    outputs = [attention.output for attention in layout]
    counts = [attention.kv_heads for attention in layout]
    if len(set(counts)) > 1:
        raise ValueError("the blocks have different numbers of heads already; score them before removing any")
    rise = torch.zeros(len(layout), counts[0])
    with torch.no_grad():
        base = loss()
        for i, h in tqdm([(i, h) for i in range(len(layout)) for h in range(counts[0])], "ablating",
                         unit="head", leave=False, disable=not progress):
            gate = torch.ones(counts[i])
            gate[h] = 0
            with gated([outputs[i]], [gate]):
                rise[i, h] = loss() - base
    return rise


def neuron_importance(model: nn.Module, run: Callable[[], object]) -> Tensor:
    """Importance of each MLP neuron: mean |activation| times its column's length.

    A neuron j adds activation_j * (column j of the last MLP layer) to the stream: this is the mean length of
    what it adds. It is Wanda's score (arXiv 2306.11695) with the weights of a column taken together, and the
    mean absolute activation in place of the root mean square.

    Args:
        model: a BERT or a decoder of the Llama architecture.
        run: run() sends text through the model, once.

    Returns:
        float [blocks, neurons], on the CPU.

    Raises:
        ValueError: when run() does not call the model.
    """
    layers = mlp_outputs(model)
    sums, seen = [torch.zeros(layer.in_features) for layer in layers], [0] * len(layers)

    def watch(i: int) -> Callable:
        def hook(_: nn.Module, args: tuple) -> None:
            x = args[0].detach().float().flatten(0, -2)
            sums[i] += x.abs().sum(dim=0).cpu()
            seen[i] += len(x)

        return hook

    hooks = [layer.register_forward_pre_hook(watch(i)) for i, layer in enumerate(layers)]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    if not min(seen):
        raise ValueError("run() sent nothing through the model's MLPs; it must call the model")
    columns = [layer.weight.detach().float().norm(dim=0).cpu() for layer in layers]
    return torch.stack([total / n * column for total, n, column in zip(sums, seen, columns, strict=True)])


@contextmanager
def _inputs_of(layers: Sequence[nn.Linear]) -> Iterator[list[Tensor]]:
    """Collects the input of each layer, in the order of the calls, ready for torch.autograd.grad."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: tuple) -> None:
        if not args[0].requires_grad:  # nothing before it needs gradients: begin here
            args[0].requires_grad_()
        seen.append(args[0])

    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _weights_frozen(model: nn.Module) -> Iterator[None]:
    """Inside the `with` block no parameter needs a gradient, and the model is in eval mode."""
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    training = model.training
    model.requires_grad_(False).eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        model.train(training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted[name])
