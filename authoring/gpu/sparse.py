"""Step 5: products with 2:4 sparse weights, in torch's format for NVIDIA's sparse tensor cores."""

import torch
import torch.nn.functional as F

from authoring.gpu.results import attempt, first_line, free
from course_utils import measure
from course_utils.prune import unstructured

TITLE = "2:4 sparse products beside dense ones"
# [outputs, inputs] of the MLP's two kinds of matrices.
SHAPES = {"7B up": (11008, 4096), "7B down": (4096, 11008),
          "13B up": (13824, 5120), "13B down": (5120, 13824)}
SMALL = {"small": (128, 256)}
TOKENS = (1, 16, 64, 256, 1024, 4096)
BACKENDS = {"cuSPARSELt": False, "CUTLASS": True}  # name: torch's switch for CUTLASS


def measure_into(settings, results):
    """Rows "matrix", "dtype", "kernel", "tokens": time of dense / time of sparse, and the errors of both."""
    results.note(error="length of the difference from the FP32 product of the pruned weight, over its length")
    for dtype in (torch.bfloat16, torch.float16):
        for matrix, shape in (SMALL if settings.small else SHAPES).items():
            for kernel in BACKENDS:
                keys = {"matrix": matrix, "dtype": str(dtype).removeprefix("torch."), "kernel": kernel}
                attempt(results, keys, lambda keys=keys, shape=shape, dtype=dtype: add_rows(
                    results, keys, shape, dtype, settings))


@torch.inference_mode()
def add_rows(results, keys, shape, dtype, settings):
    """One row for each number of tokens; an error of one number leaves the others."""
    from torch.sparse import SparseSemiStructuredTensor, to_sparse_semi_structured

    generator = torch.Generator(settings.device).manual_seed(0)
    weight = torch.randn(shape, generator=generator, device=settings.device) / shape[1] ** 0.5
    weight = (weight * unstructured.n_m_mask(unstructured.magnitude_score(weight))).to(dtype)
    SparseSemiStructuredTensor._FORCE_CUTLASS = BACKENDS[keys["kernel"]]
    packed = to_sparse_semi_structured(weight)
    held = sum(getattr(packed, name).nbytes for name in packed.__tensor_flatten__()[0])
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
        results.add(**keys, tokens=tokens, **{
            "sparse (us)": 1e6 * times[0], "dense (us)": 1e6 * times[1],
            "dense / sparse": times[1] / times[0], "bytes / dense bytes": held / weight.nbytes,
            "error of sparse": errors[0], "error of dense": errors[1]})
        del exact, sparse, dense
    free()


def batch_seconds(fn, calls=20, repeats=5):
    """Seconds of one call, when many are queued: a GPU's small products take less than a call from Python."""

    def many():
        for _ in range(calls):
            fn()

    return measure.latency(many, warmup=1, repeats=repeats).median / calls
