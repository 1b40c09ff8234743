"""The walk through the blocks, and statistics of a model as it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import Cache

from course_utils.quantize.layerwise.backup import Backup
from course_utils.quantize.layerwise.block import Block, Call
from course_utils.quantize.layerwise.finding import check_untied, find_blocks


def walk(
    model: nn.Module,
    tokens: Tensor | list[dict],
    edit: Callable[[Block], bool | None],
    statistic: Callable[[], object] | None = None,
    *,
    batch_size: int = 4,
    progress: bool = True,
    description: str = "calibrating",
) -> None:
    """Go through the model block by block, let `edit` change each in place, feed the next with the result.

    On any exception, a keyboard interrupt included, all weights are put back and the exception goes on.

    Args:
        model: any model whose blocks run one after another, each on what the one before it put out.
        tokens: LongTensor [n, length], or a list of dicts of tensors for the model (input_ids,
            attention_mask).
        edit: function on a Block that changes the weights of block.linears (or of its norms) in place. It may
            return False to say that it changed nothing: the outputs of the statistics pass are then used as
            they are.
        statistic: class or function that makes an empty statistic: Hessian, MeanAbs, AbsMax, Sample,
            Together...
        batch_size: rows of `tokens` that run together.
        progress: show a progress bar.
        description: what stands before the bar.

    Raises:
        TypeError: when `tokens` is of another kind.
        ValueError: when there are no tokens or no blocks, the blocks share weights, or run in another way.
    """
    batches = _batches(tokens, batch_size)
    blocks = find_blocks(model)
    check_untied(model)
    was_training = model.training
    model.eval()
    backup = Backup()
    try:
        with torch.no_grad():
            inputs, calls = capture(model, [module for _, module in blocks], batches)
            shared: dict[tuple, list[list[str]]] = {}
            bar = tqdm(blocks, description, unit="block", leave=False, disable=not progress)
            for (name, module), own_calls in zip(bar, calls, strict=True):
                backup.add(module)
                block = Block(name, module, inputs, own_calls, statistic)
                if statistic is not None:
                    # Blocks with layers of the same names are built alike: look once.
                    key = tuple(block.linears)
                    block.shared = shared[key] = shared.get(key) or block.find_shared()
                changed = edit(block) is not False
                if not changed:
                    backup.drop_last()
                if module is blocks[-1][1]:
                    break
                for i in range(len(inputs)):
                    inputs[i] = block.outputs[i] if block.outputs and not changed else block.run(i)
    except BaseException:
        backup.restore()
        raise
    finally:
        backup.close()
        model.train(was_training)


def collect_statistics(
    model: nn.Module,
    tokens: Tensor | list[dict],
    statistic: Callable[[], object],
    *,
    batch_size: int = 4,
    progress: bool = True,
) -> dict[str, object]:
    """Statistics of the inputs of all block linears, of the model as it is.

    Args:
        model: as for `walk`.
        tokens: as for `walk`.
        statistic: class or function that makes an empty statistic.
        batch_size: rows of `tokens` that run together.
        progress: show a progress bar.

    Returns:
        The statistic of each layer by full name.

    Raises:
        TypeError: as `walk`.
        ValueError: as `walk`.
    """
    found: dict[str, object] = {}

    def remember(block: Block) -> bool:
        found.update({f"{block.name}.{name}": value for name, value in block.statistics.items()})
        return False

    walk(model, tokens, remember, statistic, batch_size=batch_size, progress=progress,
         description="collecting statistics")
    return found


# ---- what the blocks are called with ---------------------------------------------------------------------


class _Stop(Exception):
    """Leaves a forward pass early, once the last block was reached."""


def capture(
    model: nn.Module, blocks: list[nn.Module], batches: list[dict]
) -> tuple[list[Tensor], list[list[Call]]]:
    """Run each batch up to the last block, and keep what goes into the first and how each block is called.

    Blocks differ in more than weights: some attend within a window, some to all tokens, each with its own
    mask. While a batch runs, the blocks hand on what they get, which costs nothing. Before that, a piece of
    text runs as it should: it shows whether the blocks can be run one by one at all.

    Args:
        model: the whole model.
        blocks: its blocks in order.
        batches: dicts of tensors for the model.

    Returns:
        For each batch the hidden states [batch, length, hidden] that reach the first block. For each block
        and each batch what else the block was called with.

    Raises:
        ValueError: when the blocks do not run once each, in order, each on what the one before it put out.
    """
    piece = {key: value[:1, :64] if value.ndim == 2 else value[:1] for key, value in batches[0].items()}
    run = _record(model, blocks, piece)
    inputs, outputs = [hidden for _, hidden, _, _ in run], [_hidden(output) for _, _, _, output in run]
    if [i for i, _, _, _ in run] != list(range(len(blocks))) or not _same(outputs[:-1], inputs[1:]):
        raise ValueError(f"the {len(blocks)} blocks of {type(model).__name__} do not run once each, one on "
                         "what the other put out: no walk can feed them one by one")
    tuples = [len(output) if isinstance(output, tuple) else 0 for _, _, _, output in run]
    passed = _record(model, blocks, piece, tuples)
    if not all(_same((a.args, a.kwargs), (b.args, b.kwargs))
               for (_, _, a, _), (_, _, b, _) in zip(run, passed, strict=True)):
        raise ValueError(f"a block of {type(model).__name__} is called with what blocks before it computed, "
                         "besides its hidden states: no walk can feed them one by one")
    records = [_record(model, blocks, batch, tuples) for batch in batches]
    for record, batch in zip(records, batches, strict=True):
        for _, hidden, call, _ in record:
            if batch.get("attention_mask") is not None:
                call.mask = batch["attention_mask"].bool().to(hidden.device)
    return [record[0][1] for record in records], [list(calls) for calls in zip(
        *([call for _, _, call, _ in record] for record in records), strict=True)]


def _record(
    model: nn.Module, blocks: list[nn.Module], batch: dict, tuples: list[int] | None = None
) -> list[tuple[int, Tensor, Call, Any]]:
    """Number, hidden states, call and output of each block in the order of running.

    With `tuples` no block computes: each puts out its hidden states, as a tuple of so many (0: as they are).
    """
    record: list[tuple[int, Tensor, Call, Any]] = []

    def forward(i: int, original: Callable, *args: Any, **kwargs: Any) -> Any:
        hidden, call = _split(args, kwargs)
        output = original(*args, **kwargs) if tuples is None else hidden
        if tuples is not None and tuples[i]:
            output = (hidden, *[None] * (tuples[i] - 1))
        record.append((i, hidden, call, output))
        if tuples is not None and len(record) == len(blocks):
            raise _Stop  # before the output layer
        return output

    use_cache, model.config.use_cache = getattr(model.config, "use_cache", False), False
    originals = {block: block.__dict__.get("forward") for block in blocks}
    try:
        for i, block in enumerate(blocks):
            block.forward = partial(forward, i, block.forward)
        device = next(model.parameters()).device
        model(**{key: value.to(device) for key, value in batch.items()})
    except _Stop:
        pass
    finally:
        for block, original in originals.items():
            block.__dict__.pop("forward", None)
            if original is not None:
                block.forward = original
        model.config.use_cache = use_cache
    return record


def _split(args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
    """The hidden states of a block's call, and the rest of it without a KV cache.

    A cache that came along would grow with each later call of the block, and the block would attend to tokens
    that it has seen before, with no error.
    """
    hidden, rest = (args[0], args[1:]) if args else (kwargs["hidden_states"], ())
    rest = tuple(None if isinstance(value, Cache) else value for value in rest)
    return hidden, Call(rest, {key: None if isinstance(value, Cache) else value
                               for key, value in kwargs.items() if key != "hidden_states"}, None)


def _hidden(output: Any) -> Tensor:
    """The hidden states in what a block puts out."""
    return output[0] if isinstance(output, tuple) else output


def _same(one: Any, other: Any) -> bool:
    """Whether two arguments are equal: tensors, or what is made of tensors."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return (isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape
                and torch.isclose(one, other, rtol=0, atol=0, equal_nan=True).all().item())
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return one is other or one == other


def _batches(tokens: Tensor | list[dict], batch_size: int) -> list[dict]:
    """The tokens as a list of dicts of tensors. TypeError or ValueError for what is no text."""
    if isinstance(tokens, Tensor):
        if tokens.ndim != 2 or tokens.is_floating_point():
            kind = f"{tokens.dtype} {list(tokens.shape)}"
            raise TypeError(f"tokens must be a LongTensor [n, length], got {kind}")
        tokens = [{"input_ids": part} for part in tokens.split(batch_size)] if tokens.numel() else []
    if not isinstance(tokens, list) or not all(isinstance(batch, dict) for batch in tokens):
        raise TypeError("tokens must be a LongTensor [n, length] or a list of dicts of tensors")
    if not tokens:
        raise ValueError("no calibration text: tokens is empty")
    return tokens
