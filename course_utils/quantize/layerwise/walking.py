"""The walk through the blocks, and statistics of a model as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from course_utils.quantize.layerwise.backup import Backup
from course_utils.quantize.layerwise.block import Block, Call
from course_utils.quantize.layerwise.finding import find_blocks


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
        model: a decoder of the Llama architecture, or BERT.
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
        ValueError: when there are no tokens or no blocks.
    """
    batches = _batches(tokens, batch_size)
    blocks = find_blocks(model)
    was_training = model.training
    model.eval()
    backup = Backup()
    try:
        with torch.no_grad():
            inputs, calls = capture(model, blocks[0][1], batches)
            shared: dict[tuple, list[list[str]]] = {}
            for name, module in tqdm(blocks, description, unit="block", leave=False, disable=not progress):
                backup.add(module)
                block = Block(name, module, inputs, calls, statistic)
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


# ---- the first block's inputs ----------------------------------------------------------------------------


class _Stop(Exception):
    """Leaves a forward pass early, once the first block was reached."""


def capture(model: nn.Module, first: nn.Module, batches: list[dict]) -> tuple[list[Tensor], list[Call]]:
    """Run each batch up to the first block, and keep what goes into it.

    Args:
        model: the whole model.
        first: its first block.
        batches: dicts of tensors for the model.

    Returns:
        For each batch the hidden states [batch, length, hidden], and what else the block was called with.
    """
    inputs, calls = [], []

    def stop(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        hidden, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
        # Without this the captured call carries a KV cache along: each later call of the block would append
        # to it and attend to tokens it has seen before, with no error.
        kwargs.update({key: None for key in ("past_key_values", "past_key_value") if key in kwargs})
        inputs.append(hidden)
        calls.append(Call(rest, kwargs, None))
        raise _Stop

    hook = first.register_forward_pre_hook(stop, with_kwargs=True)
    use_cache, model.config.use_cache = getattr(model.config, "use_cache", False), False
    device = next(model.parameters()).device
    try:
        for batch in batches:
            batch = {key: value.to(device) for key, value in batch.items()}
            try:
                model(**batch)
            except _Stop:
                pass
            if batch.get("attention_mask") is not None:
                calls[-1].mask = batch["attention_mask"].bool()
    finally:
        hook.remove()
        model.config.use_cache = use_cache
    return inputs, calls


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
