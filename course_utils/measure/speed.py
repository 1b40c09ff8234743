"""How long things take: one function, the two phases of generation, and the machine's own limits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import torch

from course_utils.measure.quality import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPT = "A train left the station at noon with forty people on board, and it stopped in every village. "


@dataclass(frozen=True)
class Latency:
    """Times of one piece of work, in seconds.

    Attributes:
        median: of the samples.
        q25: lower quartile of the samples.
        q75: upper quartile of the samples.
        fastest: the shortest sample.
        slowest: the longest sample.
        samples: every time measured after the warm-up, in order.
    """

    median: float
    q25: float
    q75: float
    fastest: float
    slowest: float
    samples: tuple[float, ...] = field(repr=False)

    def __str__(self) -> str:
        unit, scale = _time_unit(self.median)
        m, a, b, low, high = (
            _digits(scale * t) for t in (self.median, self.q25, self.q75, self.fastest, self.slowest)
        )
        return f"median {m} {unit} (middle half {a} to {b}, range {low} to {high}, n = {len(self.samples)})"

    def row(self) -> dict[str, float | str]:
        """The figures as a row of `measure.table`.

        Returns:
            Column -> value.
        """
        a, b = _digits(1e3 * self.q25), _digits(1e3 * self.q75)
        return {
            "median (ms)": float(_digits(1e3 * self.median)),
            "middle half (ms)": f"{a} to {b}",
            "samples": len(self.samples),
        }


def latency(fn: Callable[[], Any], warmup: int = 3, repeats: int = 20) -> Latency:
    """Time a function honestly: warm up first, repeat, take the median, report the spread.

    The warm-up calls pay for what only first calls pay for (memory, threads, caches, compilation). The
    median ignores the few samples in which the machine did something else. On a GPU, work is queued and
    a call returns before it is done: every sample waits for the device before it reads the clock.

    Args:
        fn: function without arguments.
        warmup: calls that are not timed, 0 or more.
        repeats: calls that are timed, 1 or more.

    Returns:
        The times, in seconds.

    Raises:
        TypeError: `fn` cannot be called.
        ValueError: a count is out of range.
    """
    if not callable(fn):
        raise TypeError(f"latency needs a function to call, not {type(fn).__name__}; write lambda: ...")
    _check_count("warmup", warmup, 0)
    _check_count("repeats", repeats, 1)
    for _ in range(warmup):
        fn()
    return _latency([_seconds(fn)[0] for _ in range(repeats)])


def synchronize() -> None:
    """Wait until the GPU has done all work queued so far; nothing to do without one."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _seconds(fn: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds that fn took, what it returned)."""
    synchronize()
    start = time.perf_counter()
    result = fn()
    synchronize()
    return time.perf_counter() - start, result


def _latency(samples: list[float]) -> Latency:
    q25, _, q75 = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else samples * 3
    return Latency(median(samples), q25, q75, min(samples), max(samples), tuple(samples))


@dataclass(frozen=True)
class GenerationSpeed:
    """Speed of the two phases of generation, with a KV cache.

    Attributes:
        prefill: of reading the whole prompt at once.
        decode: of one step that makes one new token.
        prompt_tokens: length of the prompt.
        new_tokens: number of decode steps timed.
        device: where it ran.
        dtype: of the model's weights.
        threads: that torch used.
    """

    prefill: Latency
    decode: Latency
    prompt_tokens: int
    new_tokens: int
    device: str
    dtype: str
    threads: int

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens read per second (median)."""
        return self.prompt_tokens / self.prefill.median

    @property
    def decode_rate(self) -> float:
        """New tokens made per second (median step)."""
        return 1 / self.decode.median

    def __str__(self) -> str:
        return (
            f"prefill {self.prefill_rate:,.0f} tokens/s ({self.prompt_tokens} tokens at once), "
            f"decode {self.decode_rate:,.1f} tokens/s (median of {self.new_tokens} steps); "
            f"{self.dtype}, {self.device}, {self.threads} threads"
        )

    def row(self) -> dict[str, float]:
        """The rates as a row of `measure.table`.

        Returns:
            Column -> value.
        """
        return {
            "prefill (tokens/s)": float(_digits(self.prefill_rate)),
            "decode (tokens/s)": float(_digits(self.decode_rate)),
        }


def generation_speed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt_tokens: int = 256,
                     new_tokens: int = 32, repeats: int = 3) -> GenerationSpeed:
    """Time prefill and decode separately, on a prompt of ordinary English.

    Prefill: the whole prompt in one pass that fills the KV cache and gives the logits of its last token.
    Decode: one token per pass, greedy, each step timed on its own; the cache grows as in real use. One
    untimed prefill and two untimed decode steps warm up.

    Args:
        model: causal language model of transformers that keeps keys and values.
        tokenizer: the model's own.
        prompt_tokens: length of the prompt, 1 or more.
        new_tokens: decode steps to time, 1 or more.
        repeats: prefills to time, 1 or more.

    Returns:
        The times of both phases.

    Raises:
        ValueError: a count is out of range, prompt and new tokens do not fit the model, or it has no KV
            cache.
    """
    for name, value in (("prompt_tokens", prompt_tokens), ("new_tokens", new_tokens), ("repeats", repeats)):
        _check_count(name, value, 1)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and prompt_tokens + new_tokens + 2 > longest:
        raise ValueError(
            f"{prompt_tokens} prompt tokens + {new_tokens} new ones + 2 to warm up do not fit in the "
            f"{longest} positions of this model"
        )
    parameter = next(model.parameters())
    prompt = _prompt(tokenizer, prompt_tokens).to(parameter.device)
    vocabulary = model.config.get_text_config().vocab_size
    if prompt.max() >= vocabulary:
        raise ValueError(f"the tokenizer gives token id {prompt.max().item()}, but the model knows 0 to "
                         f"{vocabulary - 1}: give the model's own tokenizer")
    with evaluating(model):
        prefill, decode = _time_phases(model, prompt, new_tokens, repeats)
    dtype = str(model.dtype).removeprefix("torch.")
    device = str(parameter.device)
    return GenerationSpeed(prefill, decode, prompt_tokens, new_tokens, device, dtype, torch.get_num_threads())


def _prompt(tokenizer: PreTrainedTokenizerBase, n: int) -> torch.Tensor:
    """The first n tokens of a sentence repeated as often as needed, int64 [1, n]."""
    sentence = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    copies = -(-n // len(sentence))
    return torch.tensor([(sentence * copies)[:n]])


def _time_phases(model: PreTrainedModel, prompt: torch.Tensor, new_tokens: int,
                 repeats: int) -> tuple[Latency, Latency]:
    """(Latency of prefill, Latency of a decode step)."""
    run = partial(model, use_cache=True, logits_to_keep=1)
    if getattr(run(input_ids=prompt), "past_key_values", None) is None:
        raise ValueError(f"{type(model).__name__} hands on no KV cache (past_key_values): its decode steps "
                         "cannot be timed as those of a transformer")
    timed = [_seconds(lambda: run(input_ids=prompt)) for _ in range(repeats)]
    out, steps = timed[-1][1], []
    for _ in range(2 + new_tokens):
        token = out.logits[:, -1:].argmax(dim=-1)
        seconds, out = _seconds(partial(run, input_ids=token, past_key_values=out.past_key_values))
        steps.append(seconds)
    return _latency([seconds for seconds, _ in timed]), _latency(steps[2:])


@dataclass(frozen=True)
class Bandwidth:
    """Memory bandwidth in bytes per second.

    Attributes:
        read: best rate of reading a tensor much larger than the caches.
        copy: best rate of copying one, bytes read plus bytes written.
        nbytes: bytes of the tensor that was read.
        device: where it lay.
        threads: that torch used.
    """

    read: float
    copy: float
    nbytes: int
    device: str
    threads: int

    def __str__(self) -> str:
        return (
            f"memory bandwidth: read {self.read / 1e9:,.1f} GB/s, copy {self.copy / 1e9:,.1f} GB/s "
            f"({self.nbytes / 1e6:,.0f} MB, {self.device}, {self.threads} threads)"
        )

    def row(self) -> dict[str, float]:
        """The rates as a row of `measure.table`.

        Returns:
            Column -> value.
        """
        return {"read (GB/s)": round(self.read / 1e9, 1), "copy (GB/s)": round(self.copy / 1e9, 1)}


def bandwidth(device: torch.device | str = "cpu", nbytes: int | None = None, repeats: int = 7) -> Bandwidth:
    """Measure how fast this device reads memory.

    Reads a float32 tensor by several reductions and keeps the fastest pass, as the STREAM benchmark does: a
    limit is what the machine can do, not what it does on average.

    Args:
        device: whose memory to read.
        nbytes: bytes of the tensor, at least 1 MB; None: 256 MiB, on a GPU 2 GiB: far more than any cache.
        repeats: passes to time, 1 or more.

    Returns:
        The rates of the fastest passes.

    Raises:
        ValueError: nbytes is under 1 MB, or `repeats` is out of range.
    """
    device = torch.device(device)
    nbytes = nbytes or (256 if device.type == "cpu" else 2048) * 2**20
    if nbytes < 1e6:
        raise ValueError(f"nbytes must be at least 1,000,000, not {nbytes}: caches hold a small tensor")
    x = torch.ones(nbytes // 8 * 2, device=device)  # written once, so every page really exists
    half = x.numel() // 2
    reads = (lambda: x.sum(), lambda: torch.linalg.vector_norm(x), lambda: torch.dot(x, x))
    read = min(latency(fn, warmup=1, repeats=repeats).fastest for fn in reads)
    copy = latency(lambda: x[half:].copy_(x[:half]), warmup=1, repeats=repeats).fastest
    size = 4 * x.numel()
    return Bandwidth(size / read, size / copy, size, str(device), torch.get_num_threads())


@dataclass(frozen=True)
class MatmulSpeed:
    """Arithmetic speed of a large matrix product.

    Attributes:
        flops: best floating-point operations per second (a multiplication and an addition count as two).
        n: the matrices are [n, n].
        dtype: of the matrices.
        device: where it ran.
        threads: that torch used.
    """

    flops: float
    n: int
    dtype: str
    device: str
    threads: int

    def __str__(self) -> str:
        return (
            f"matrix product: {self.flops / 1e9:,.0f} GFLOP/s "
            f"([{self.n}, {self.n}], {self.dtype}, {self.device}, {self.threads} threads)"
        )

    def row(self) -> dict[str, int]:
        """The speed as a row of `measure.table`.

        Returns:
            Column -> value.
        """
        return {"matmul (GFLOP/s)": round(self.flops / 1e9)}


def matmul_speed(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, n: int | None = None,
                 repeats: int = 5) -> MatmulSpeed:
    """Measure how fast this device multiplies two [n, n] matrices.

    Args:
        device: where to multiply.
        dtype: of the matrices.
        n: rows and columns, at least 16; None: 2048, on a GPU 8192.
        repeats: passes to time, 1 or more.

    Returns:
        The speed of the fastest pass.

    Raises:
        ValueError: n or `repeats` is out of range.
    """
    device = torch.device(device)
    n = n or (2048 if device.type == "cpu" else 8192)
    _check_count("n", n, 16)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    seconds = latency(lambda: a @ b, warmup=2, repeats=repeats).fastest
    name = str(dtype).removeprefix("torch.")
    return MatmulSpeed(2 * n**3 / seconds, n, name, str(device), torch.get_num_threads())


def _check_count(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, not {value!r}")


def _time_unit(seconds: float) -> tuple[str, float]:
    for unit, scale in (("s", 1), ("ms", 1e3)):
        if seconds * scale >= 1:
            return unit, scale
    return "µs", 1e6


def _digits(x: float) -> str:
    """Three significant digits without an exponent: 1234.5 -> '1234', 0.01234 -> '0.0123'."""
    decimals = 0 if x == 0 else max(0, 2 - math.floor(math.log10(abs(x))))
    return f"{x:.{decimals}f}"
