"""CUDA graphs: work that is recorded once and replayed without Python between its kernels."""

from collections.abc import Callable
from typing import Any

import torch


def record(fn: Callable[[], Any], warmup: int = 3) -> torch.cuda.CUDAGraph:
    """Record the GPU's work of one call as a CUDA graph.

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs

    Args:
        fn: function without arguments. What it reads and writes must keep its place in memory.
        warmup: calls before, on a stream of their own, in which libraries set themselves up.

    Returns:
        The graph; its `replay` queues the work again.

    Raises:
        RuntimeError: something in the call cannot be recorded. CUDA may be unusable afterwards.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warmup):
            fn()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fn()
    return graph
