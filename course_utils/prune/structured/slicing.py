"""Smaller linear layers out of large ones: some rows, some columns, the rows and columns of some heads."""

from __future__ import annotations

from torch import Tensor, nn


def keep_rows(linear: nn.Linear, rows: list[int]) -> nn.Linear:
    """A new linear layer with only some outputs: rows of the weight, and their biases.

    Args:
        linear: weight [out, in]; it is not changed.
        rows: indices of the outputs that stay.

    Returns:
        Weight [len(rows), in].
    """
    bias = None if linear.bias is None else linear.bias.detach()[rows].clone()
    return _linear(linear.weight.detach()[rows].clone(), bias, linear.weight.requires_grad)


def keep_columns(linear: nn.Linear, columns: list[int]) -> nn.Linear:
    """A new linear layer with only some inputs: columns of the weight. The bias stays whole.

    Args:
        linear: weight [out, in]; it is not changed.
        columns: indices of the inputs that stay.

    Returns:
        Weight [out, len(columns)].
    """
    bias = None if linear.bias is None else linear.bias.detach().clone()
    return _linear(linear.weight.detach()[:, columns].clone(), bias, linear.weight.requires_grad)


def _linear(weight: Tensor, bias: Tensor | None, trainable: bool) -> nn.Linear:
    """A linear layer of these tensors [out, in] and [out]: a copy, so that the old ones can be freed."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=trainable)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=trainable)
    return layer


def slice_heads(
    query: nn.Linear, key: nn.Linear, value: nn.Linear, output: nn.Linear, keep: list[int], head_dim: int
) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
    """Four new linear layers that have only some of the heads.

    With fewer key-value heads than query heads (GQA), each key-value head serves `group` neighbouring query
    heads: the first one serves query heads 0 to group - 1. They stay or go together.

    Args:
        query: weight [heads * head_dim, hidden]; all four layers with or without a bias.
        key: weight [kv_heads * head_dim, hidden].
        value: weight [kv_heads * head_dim, hidden].
        output: weight [hidden, heads * head_dim].
        keep: indices of the key-value heads that stay, in ascending order.
        head_dim: rows of one head; head h has the rows from h * head_dim on.

    Returns:
        (query, key, value, output), in this order. The layers given are not changed.
    """
    group = query.out_features // key.out_features
    of_key = [head * head_dim + i for head in keep for i in range(head_dim)]
    of_query = [head * group * head_dim + i for head in keep for i in range(group * head_dim)]
    return (keep_rows(query, of_query), keep_rows(key, of_key), keep_rows(value, of_key),
            keep_columns(output, of_query))
