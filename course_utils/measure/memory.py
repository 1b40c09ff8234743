"""How many bytes a model holds, and how many a piece of code needs at its peak."""

import ctypes
import gc
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil
import torch


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of a model's weights as they are really stored.

    Attributes:
        total: bytes, shared storage counted once.
        by_module: module name -> bytes of the tensors that it holds itself (shared ones go to the first).
        by_dtype: dtype name -> bytes.
    """

    total: int
    by_module: dict[str, int] = field(repr=False)
    by_dtype: dict[str, int]

    def __str__(self) -> str:
        kinds = ", ".join(f"{name} {nbytes / 1e6:,.2f} MB" for name, nbytes in self.by_dtype.items())
        return f"weights {self.total / 1e6:,.2f} MB ({kinds})"

    def row(self) -> dict[str, float]:
        """The total as a row of `measure.table`.

        Returns:
            Column -> value.
        """
        return {"weights (MB)": round(self.total / 1e6, 2)}


def weight_bytes(model: torch.nn.Module) -> WeightBytes:
    """Bytes that the parameters and buffers of a torch module occupy in memory.

    Each storage is counted once and whole, so tied weights do not count twice and a view keeps its full
    base alive. Packed and quantized weights count as packed, with their scales: those of bitsandbytes
    (attributes of the parameter) and of tensor subclasses such as torchao's (inner tensors).

    Args:
        model: has real tensors (not on the "meta" device).

    Returns:
        The bytes, in total and by module and dtype.

    Raises:
        TypeError: `model` is no module.
        ValueError: a tensor is on the meta device and holds no bytes.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"weight_bytes needs a torch.nn.Module, not {type(model).__name__}")
    seen, by_module, by_dtype = set(), {}, {}
    for name, module in model.named_modules():
        held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        for tensor in (stored for weight in held for stored in stored_tensors(weight)):
            if tensor.is_meta:
                raise ValueError(f"{name} is on the meta device and holds no bytes; load its weights first")
            storage = tensor.untyped_storage()
            key = (tensor.device, storage.data_ptr())
            if storage.nbytes() == 0 or key in seen:
                continue
            seen.add(key)
            by_module[name] = by_module.get(name, 0) + storage.nbytes()
            dtype = str(tensor.dtype).removeprefix("torch.")
            by_dtype[dtype] = by_dtype.get(dtype, 0) + storage.nbytes()
    return WeightBytes(sum(by_module.values()), by_module, by_dtype)


def stored_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors that a weight is made of: itself, or the parts of a quantized one.

    Args:
        tensor: a parameter or a buffer.

    Yields:
        Tensors that have a storage.
    """
    if hasattr(tensor, "__tensor_flatten__"):  # a wrapper subclass (torchao): the data are inside
        for name in tensor.__tensor_flatten__()[0]:
            yield from stored_tensors(getattr(tensor, name))
        return
    yield tensor.data
    # bitsandbytes keeps scales beside the parameter: 4 bit in quant_state (nested once when the scales
    # are quantized too), 8 bit in SCB.
    states = [getattr(tensor, "quant_state", None)]
    states.append(getattr(states[0], "state2", None))
    extras = [getattr(state, name, None) for state in states for name in ("absmax", "code", "offset")]
    extras.append(getattr(tensor, "SCB", None))
    yield from (extra for extra in extras if isinstance(extra, torch.Tensor))


@dataclass
class PeakMemory:
    """Peak memory of a block of code, filled in when the block ends.

    Attributes:
        start: bytes of resident memory of this process when the block began.
        peak: highest bytes of resident memory seen inside the block.
        gpu_peak: highest bytes that torch held on the GPU inside the block; 0 without a GPU.
    """

    start: int = 0
    peak: int = 0
    gpu_peak: int = 0

    @property
    def increase(self) -> int:
        """Bytes by which the block raised the resident memory."""
        return self.peak - self.start

    def __str__(self) -> str:
        text = f"peak memory {self.peak / 1e6:,.0f} MB (+{self.increase / 1e6:,.0f} MB inside the block)"
        return text + (f", GPU {self.gpu_peak / 1e6:,.0f} MB" if self.gpu_peak else "")

    def row(self) -> dict[str, int]:
        """The figures as a row of `measure.table`.

        Returns:
            Column -> value.
        """
        row = {"peak memory (MB)": round(self.peak / 1e6), "increase (MB)": round(self.increase / 1e6)}
        return row | ({"GPU peak (MB)": round(self.gpu_peak / 1e6)} if self.gpu_peak else {})


@contextmanager
def peak_memory(interval: float = 0.005) -> Iterator[PeakMemory]:
    """Measure the peak resident memory of this process (and torch's peak on a GPU) inside a block.

    A thread reads the process's resident set again and again: a shorter peak can be missed.

    Args:
        interval: seconds between two readings.

    Yields:
        A PeakMemory, complete when the block ends (also when it ends by an error).

    Raises:
        ValueError: the interval is not positive.

    Example:
        with measure.peak_memory() as peak:
            work()
        print(peak)
    """
    if not interval > 0:
        raise ValueError(f"interval must be a positive number of seconds, not {interval!r}")
    process = psutil.Process()
    result = PeakMemory(start=process.memory_info().rss)
    done = threading.Event()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()

    def sample() -> None:
        while not done.is_set():
            result.peak = max(result.peak, process.memory_info().rss)
            time.sleep(interval)

    result.peak = result.start
    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield result
    finally:
        result.peak = max(result.peak, process.memory_info().rss)
        done.set()
        thread.join()
        if cuda:
            result.gpu_peak = torch.cuda.max_memory_allocated()


@contextmanager
def frequent_collection() -> Iterator[None]:
    """Collect garbage every few hundred objects while the block runs, instead of when Python thinks it pays.

    Python counts objects, not bytes. A library that leaves a large tensor in a circle of references keeps it
    until the next full collection, which may be long after: bitsandbytes does so with the FP32 copy of each
    weight that it quantizes to 4 bits. What exists already is set aside (`gc.freeze`), so a pass is quick.

    Yields:
        Nothing.
    """
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.collect()  # a full collection comes once a quarter as many objects are new: count from zero
    gc.set_threshold(100, 2, 2)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def release_memory(garbage: bool = True) -> None:
    """Give back to the system what this process has freed.

    Empties the C library's store of freed memory (glibc keeps much of it, so that a process looks larger than
    what it uses) and torch's CUDA cache, where they exist. Nothing that a variable still holds is freed: one
    slice of one weight keeps the whole file of weights that it was loaded from.

    Args:
        garbage: first collect garbage, which takes a good part of a second when much is loaded.
    """
    if garbage:
        gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # absent from other C libraries, such as musl
        if trim is not None:
            trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
