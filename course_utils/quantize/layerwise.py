"""The calibration walk: run text through a model block by block and let a method edit each block's weights.

GPTQ, AWQ, SmoothQuant and the pruning methods all need the same thing: what goes into each linear layer when
real text passes, with the blocks before it already edited. So the walk is written once:

1. run the model up to its first block and keep what goes in (`capture`);
2. for each block: collect statistics of the inputs of its linear layers (one pass over the text), let the
   method edit the block, run the block again with its new weights, and hand the outputs to the next block.

Only one block's activations are kept, and statistics accumulate batch by batch, so memory does not grow with
depth. A method is a function on (name, linear, statistic) -> new weight, made into a block edit by
`each_linear`; a method that needs several layers at once (AWQ, SmoothQuant) takes the `Block` itself.

    walk(model, tokens, each_linear(gptq), Hessian)      # tokens: LongTensor [n, length]

Works for decoders of the Llama architecture and for BERT, on any device.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from course_utils.quantize import affine

# ---- statistics: what a method may want to know about a layer's inputs -----------------------------------


class Hessian:
    """matrix = 2 X^T X / n, float32 [in, in], over the n input vectors seen (arXiv 2210.17323, section 3)."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        """x: float32 [tokens, in]."""
        self.total = self.total + x.T @ x
        self.tokens += len(x)

    @property
    def matrix(self) -> Tensor:
        return self.total * (2 / self.tokens)


class MeanAbs:
    """mean = mean |x| of each input channel, float32 [in] (AWQ's measure of importance)."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        """x: float32 [tokens, in]."""
        self.total = self.total + x.abs().sum(dim=0)
        self.tokens += len(x)

    @property
    def mean(self) -> Tensor:
        return self.total / self.tokens


class AbsMax:
    """absmax = largest |x| of each input channel, float32 [in] (SmoothQuant, static quantization)."""

    def __init__(self) -> None:
        self.absmax: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """x: float32 [tokens, in]."""
        largest = x.abs().amax(dim=0)
        self.absmax = largest if self.absmax is None else torch.maximum(self.absmax, largest)


class Sample:
    """inputs = at most `limit` of the input vectors seen, float32 [<= limit, in], spread over the text.

    Keeps every k-th vector of what comes and doubles k when the store is full: bounded and deterministic.
    """

    def __init__(self, limit: int = 512) -> None:
        self.limit, self.stride, self.seen = limit, 1, 0
        self.inputs: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """x: float32 [tokens, in]."""
        kept = x[(-self.seen) % self.stride :: self.stride]
        self.seen += len(x)
        self.inputs = kept.clone() if self.inputs is None else torch.cat([self.inputs, kept])
        while len(self.inputs) > self.limit:
            self.inputs, self.stride = self.inputs[::2].clone(), self.stride * 2


class Together:
    """Several statistics of one input: lambda: Together(absmax=AbsMax(), sample=Sample(256))."""

    def __init__(self, **parts) -> None:
        self.parts = parts
        self.__dict__.update(parts)

    def add(self, x: Tensor) -> None:
        """x: float32 [tokens, in]."""
        for part in self.parts.values():
            part.add(x)


# ---- finding blocks and layers ---------------------------------------------------------------------------


def find_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The model's blocks in order, with their names: its longest nn.ModuleList that holds linear layers.

    Raises ValueError when there is none.
    """
    lists = [(name, modules) for name, modules in model.named_modules()
             if isinstance(modules, nn.ModuleList) and any(linears_of(block) for block in modules)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of blocks with linear layers to walk through")
    name, blocks = max(lists, key=lambda item: len(item[1]))
    return [(f"{name}.{i}", block) for i, block in enumerate(blocks)]


def linears_of(module: nn.Module) -> dict[str, nn.Linear]:
    """The nn.Linear layers inside a module, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}


def block_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of all blocks, by full name. Embedding and output layer are not among them."""
    return {f"{name}.{inner}": layer for name, block in find_blocks(model)
            for inner, layer in linears_of(block).items()}


# The norms of a Llama block whose output only linear layers read. There a factor can move from the norm into
# those layers without changing what the block computes. BERT's norms feed the residual stream too.
NORM_READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def norm_readers(block: nn.Module) -> list[tuple[nn.Module, dict[str, nn.Linear]]]:
    """Pairs (norm, {name: linear that reads only this norm}) of a Llama block.

    Raises ValueError for other blocks, BERT's among them.
    """
    linears = linears_of(block)
    if not all(hasattr(block, norm) and set(names) <= set(linears) for norm, names in NORM_READERS.items()):
        raise ValueError(f"{type(block).__name__} is no Llama-style block: its norms do not feed linear "
                         "layers alone, so no factor can be folded into them")
    return [(getattr(block, norm), {name: linears[name] for name in names})
            for norm, names in NORM_READERS.items()]


# ---- one block, with its inputs --------------------------------------------------------------------------


@dataclass
class Call:
    """What a block is called with besides its hidden states, for one batch."""

    args: tuple
    kwargs: dict
    mask: Tensor | None  # bool [batch, length]: False where a token is padding


@dataclass
class Block:
    """A block, its linear layers, and the inputs that reach it: a tensor [batch, length, hidden] a batch.

    `outputs` are those of the latest statistics pass. `shared` names the linear layers in calling order,
    those that read one and the same tensor together.
    """

    name: str
    module: nn.Module
    inputs: list[Tensor]
    calls: list[Call]
    new_statistic: Callable[[], object] | None = None
    shared: list[list[str]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    @cached_property
    def linears(self) -> dict[str, nn.Linear]:
        """The block's linear layers by their name inside the block, such as "self_attn.q_proj"."""
        return linears_of(self.module)

    def run(self, i: int) -> Tensor:
        """The block's output for batch i with the weights as they are now: [batch, length, hidden]."""
        output = self.module(self.inputs[i], *self.calls[i].args, **self.calls[i].kwargs)
        return output[0] if isinstance(output, tuple) else output

    @cached_property
    def statistics(self) -> dict[str, object]:
        """Statistic of each linear layer's input, taken when first asked for, before any edit."""
        return self.collect(list(self.linears))

    def collect(self, names: Iterable[str]) -> dict[str, object]:
        """Run all batches and accumulate a fresh statistic for the inputs of the named layers.

        Layers that read the same tensor (q, k, v) get the same object: it is accumulated once.
        """
        if self.new_statistic is None:
            raise ValueError("walk() was called without a statistic to collect")
        groups = [[name for name in group if name in set(names)] for group in self.shared]
        watched = {group[0]: self.new_statistic() for group in groups if group}
        self.outputs.clear()
        for i, call in enumerate(self.calls):
            def add(name: str, x: Tensor, mask: Tensor | None = call.mask) -> None:
                x = x.reshape(-1, x.shape[-1]) if mask is None else x[mask]
                watched[name].add(x.float())

            with _watch({name: self.linears[name] for name in watched}, add):
                self.outputs.append(self.run(i))
        return {name: watched[group[0]] for group in groups for name in group}

    def find_shared(self) -> list[list[str]]:
        """Which linear layers read one and the same tensor (q, k, v): runs batch 0 to see it."""
        groups: list[tuple[Tensor, list[str]]] = []

        def note(name: str, x: Tensor) -> None:
            for other, names in groups:
                if other is x:
                    names.append(name)
                    return
            groups.append((x, [name]))

        with _watch(self.linears, note):
            self.run(0)
        return [names for _, names in groups]


@contextmanager
def _watch(layers: dict[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call see(name, input) whenever one of the layers runs."""
    hooks = [layer.register_forward_pre_hook(lambda _, args, name=name: see(name, args[0]))
             for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# ---- the walk --------------------------------------------------------------------------------------------


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

    tokens: LongTensor [n, length], or a list of dicts of tensors for the model (input_ids, attention_mask).
    edit: function on a Block that changes the weights of block.linears (or of its norms) in place. It may
    return False to say that it changed nothing: the outputs of the statistics pass are then used as they are.
    statistic: class or function that makes an empty statistic: Hessian, MeanAbs, AbsMax, Sample, Together...

    On any exception, a keyboard interrupt included, all weights are put back and the exception goes on.
    Raises TypeError or ValueError when there are no tokens or no blocks.
    """
    batches = _batches(tokens, batch_size)
    blocks = find_blocks(model)
    was_training = model.training
    model.eval()
    backup = _Backup()
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


def each_linear(
    method: Callable[[str, nn.Linear, object], Tensor | None], sequential: bool = False
) -> Callable[[Block], None]:
    """A block edit: each linear layer gets the weight that method(full name, linear, statistic) returns.

    None leaves the layer as it is. sequential: collect the statistics of a layer after the layers before it
    in the same block have their new weights ("true sequential" in GPTQ tools). It costs one pass for each
    distinct input (four in a Llama block) instead of one a block.
    """

    def replace(block: Block, names: Iterable[str], statistics: dict[str, object]) -> None:
        for name in names:
            full_name, linear = f"{block.name}.{name}", block.linears[name]
            weight = method(full_name, linear, statistics[name])
            if weight is None:
                continue
            if weight.shape != linear.weight.shape or not torch.isfinite(weight).all():
                raise ValueError(f"the method returned no finite weight {list(linear.weight.shape)} "
                                 f"for {full_name}")
            linear.weight.data.copy_(weight)

    def edit(block: Block) -> None:
        if not sequential:
            replace(block, block.statistics, block.statistics)
            return
        for names in block.shared:
            replace(block, names, block.collect(names))

    return edit


def collect_statistics(
    model: nn.Module,
    tokens: Tensor | list[dict],
    statistic: Callable[[], object],
    *,
    batch_size: int = 4,
    progress: bool = True,
) -> dict[str, object]:
    """Statistics of the inputs of all block linears, by full name, of the model as it is."""
    found: dict[str, object] = {}

    def remember(block: Block) -> bool:
        found.update({f"{block.name}.{name}": value for name, value in block.statistics.items()})
        return False

    walk(model, tokens, remember, statistic, batch_size=batch_size, progress=progress,
         description="collecting statistics")
    return found


def round_to_nearest(model: nn.Module, scheme: affine.Scheme, clip_search: bool = False) -> None:
    """Fake-quantize the linear layers of all blocks in place. Needs no text: the baseline of every method."""
    for name, linear in block_linears(model).items():
        try:
            linear.weight.data.copy_(affine.fake_quantize(linear.weight, scheme, clip_search))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


# ---- the first block's inputs ----------------------------------------------------------------------------


class _Stop(Exception):
    """Leaves a forward pass early, once the first block was reached."""


def capture(model: nn.Module, first: nn.Module, batches: list[dict]) -> tuple[list[Tensor], list[Call]]:
    """Run each batch up to the block `first`: its hidden states [batch, length, hidden] and the rest."""
    inputs, calls = [], []

    def stop(_, args, kwargs):
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


class _Backup:
    """The weights of the blocks as they were, in temporary files: a copy in memory would double the model."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="walk-")
        self._saved: list[tuple[nn.Module, Path]] = []

    def add(self, module: nn.Module) -> None:
        path = Path(self._folder.name) / f"{len(self._saved)}.pt"
        torch.save(module.state_dict(), path)
        self._saved.append((module, path))

    def drop_last(self) -> None:
        self._saved.pop()[1].unlink()

    def restore(self) -> None:
        with torch.no_grad():
            for module, path in self._saved:
                saved = torch.load(path, map_location="cpu", weights_only=True)
                for name, tensor in module.state_dict().items():
                    tensor.copy_(saved[name])

    def close(self) -> None:
        self._folder.cleanup()
