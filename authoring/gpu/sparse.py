"""Step 5: products with 2:4 sparse weights, in torch's format for NVIDIA's sparse tensor cores."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from authoring.gpu import graphs
from authoring.gpu.plan import Settings
from authoring.gpu.results import Results, attempt, first_line, free
from course_utils import measure
from course_utils.prune import unstructured

TITLE = "2:4 sparse products beside dense ones"
# [outputs, inputs] of the MLP's two kinds of matrices.
SHAPES = {"7B up": (11008, 4096), "7B down": (4096, 11008),
          "13B up": (13824, 5120), "13B down": (5120, 13824)}
SMALL = {"small": (128, 256)}
TOKENS = (1, 16, 64, 256, 1024, 4096)
BACKENDS = {"cuSPARSELt": False, "CUTLASS": True}  # name: torch's switch for CUTLASS


def measure_into(settings: Settings, results: Results) -> None:
    """Add rows "matrix", "dtype", "kernel", "tokens": time of dense / time of sparse, and the errors of both.

    Args:
        settings: of the run.
        results: gets the rows.
    """
    results.note(error="length of the difference from the FP32 product of the pruned weight, over its length")
    for dtype in (torch.bfloat16, torch.float16):
        for matrix, shape in (SMALL if settings.small else SHAPES).items():
            for kernel in BACKENDS:
                keys = {"matrix": matrix, "dtype": str(dtype).removeprefix("torch."), "kernel": kernel}
                attempt(results, keys, lambda keys=keys, shape=shape, dtype=dtype: add_rows(
                    results, keys, shape, dtype, settings))


@torch.inference_mode()
def add_rows(results: Results, keys: dict[str, str], shape: tuple[int, int], dtype: torch.dtype,
             settings: Settings) -> None:
    """Add one row for each number of tokens; an error of one number leaves the others.

    Args:
        results: gets the rows.
        keys: entries of all of them; "kernel" is a key of BACKENDS.
        shape: of the weight, [outputs, inputs].
        dtype: of weight and inputs, torch.bfloat16 or torch.float16.
        settings: of the run.
    """
    from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

    generator = torch.Generator(settings.device).manual_seed(0)
    weight = torch.randn(shape, generator=generator, device=settings.device) / shape[1] ** 0.5
    weight = (weight * unstructured.n_m_mask(unstructured.magnitude_score(weight))).to(dtype)
    SparseSemiStructuredTensor._FORCE_CUTLASS = BACKENDS[keys["kernel"]]
    packed = to_sparse_semi_structured(weight)
    held = sum(getattr(packed, name).nbytes for name in packed.__tensor_flatten__()[0])
    timed = []  # rows with their inputs
    for tokens in TOKENS[:2] if settings.small else TOKENS:
        x = torch.randn(tokens, shape[1], generator=generator, device=settings.device).to(dtype)
        try:
            exact = F.linear(x.float(), weight.float())
            sparse, dense = F.linear(x, packed), F.linear(x, weight)
            errors = [((y.float() - exact).norm() / exact.norm()).item() for y in (sparse, dense)]
            times = [batch_seconds(lambda w=w, x=x: F.linear(x, w)) for w in (packed, weight)]
        except (RuntimeError, NotImplementedError, ValueError) as error:
            results.add(**keys, tokens=tokens, error=first_line(error))
            continue
        row = {"sparse (us)": 1e6 * times[0], "dense (us)": 1e6 * times[1],
               "dense / sparse": times[1] / times[0], "bytes / dense bytes": held / weight.nbytes,
               "error of sparse": errors[0], "error of dense": errors[1]}
        results.add(**keys, tokens=tokens, **row)
        timed.append((results.rows[-1], x))
        del exact, sparse, dense
    for row, x in timed:  # last, because a capture that fails may take CUDA along; the rows above are kept
        row |= graph_times(x, packed, weight)
        results.write()
    free()


def graph_times(x: torch.Tensor, packed: torch.Tensor, weight: torch.Tensor) -> dict[str, Any]:
    """Time both products replayed as a CUDA graph: the GPU's part, without the call from Python.

    Args:
        x: inputs, 16-bit float [tokens, inputs].
        packed: the 2:4 sparse weight [outputs, inputs] in torch's format, of the same dtype.
        weight: the same weight, dense.

    Returns:
        Entries of a row: microseconds of both and their ratio, or why there are none.
    """
    try:
        sparse, dense = (graph_seconds(lambda w=w: F.linear(x, w)) for w in (packed, weight))
    except Exception as error:  # a kernel that cannot be captured: what was timed from Python is kept
        return {"no CUDA graph because": first_line(error)}
    return {"sparse as a CUDA graph (us)": 1e6 * sparse, "dense as a CUDA graph (us)": 1e6 * dense,
            "dense / sparse as CUDA graphs": dense / sparse}


def graph_seconds(fn: Callable[[], torch.Tensor], calls: int = 20, repeats: int = 5) -> float:
    """Time one call, of many that are recorded as one CUDA graph and replayed.

    Args:
        fn: function without arguments; the same output each time.
        calls: recorded in the graph.
        repeats: replays that are timed.

    Returns:
        Seconds, the median.

    Raises:
        RuntimeError: the call cannot be recorded, or a replay gives another output than a call.
    """
    last = None

    def many() -> None:
        nonlocal last
        for _ in range(calls):
            last = fn()

    graph = graphs.record(many, warmup=1)
    seconds = measure.latency(graph.replay, warmup=1, repeats=repeats).median / calls
    exact = fn().float()
    if not (last.float() - exact).norm() < 0.01 * exact.norm():  # NaN is refused, too
        raise RuntimeError("the replayed graph gives another output than the call that was recorded")
    return seconds


def batch_seconds(fn: Callable[[], object], calls: int = 20, repeats: int = 5) -> float:
    """Time one call, when many are queued: a GPU's small products take less than a call from Python.

    Args:
        fn: function without arguments.
        calls: queued one after the other.
        repeats: times that this is done.

    Returns:
        Seconds, the median.
    """

    def many() -> None:
        for _ in range(calls):
            fn()

    return measure.latency(many, warmup=1, repeats=repeats).median / calls
