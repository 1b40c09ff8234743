"""One block with the inputs that reach it: it can be run again, and statistics of its layers be taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, nn

from course_utils.quantize.layerwise.finding import linears_of


@dataclass
class Call:
    """What a block is called with besides its hidden states, for one batch.

    Attributes:
        args: further positional arguments.
        kwargs: keyword arguments, without a KV cache.
        mask: bool [batch, length], False where a token is padding; None when nothing is.
    """

    args: tuple
    kwargs: dict
    mask: Tensor | None  # bool [batch, length]: False where a token is padding


@dataclass
class Block:
    """A block, its linear layers, and the inputs that reach it.

    Attributes:
        name: the block's full name in the model.
        module: the block itself.
        inputs: hidden states [batch, length, hidden], one tensor a batch.
        calls: what else the block is called with, one a batch.
        new_statistic: makes an empty statistic; None when none is collected.
        shared: the names of the linear layers in calling order, those that read one and the same tensor
            together.
        outputs: those of the latest statistics pass, [batch, length, hidden] a batch.
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
        """Run the block on one batch with the weights as they are now.

        Args:
            i: number of the batch, from 0.

        Returns:
            The block's output [batch, length, hidden].
        """
        output = self.module(self.inputs[i], *self.calls[i].args, **self.calls[i].kwargs)
        return output[0] if isinstance(output, tuple) else output

    @cached_property
    def statistics(self) -> dict[str, object]:
        """Statistic of each linear layer's input, taken when first asked for, before any edit."""
        return self.collect(list(self.linears))

    def collect(self, names: Iterable[str]) -> dict[str, object]:
        """Run all batches and accumulate a fresh statistic for the inputs of the named layers.

        Layers that read the same tensor (q, k, v) get the same object: it is accumulated once.

        Args:
            names: linear layers by their name inside the block.

        Returns:
            The statistic of each named layer.

        Raises:
            ValueError: when the walk was started without a statistic to collect.
        """
        if self.new_statistic is None:
            raise ValueError("walk() was called without a statistic to collect")
        groups = [[name for name in group if name in set(names)] for group in self.shared]
        watched = {group[0]: self.new_statistic() for group in groups if group}
        self.outputs.clear()
        for i, call in enumerate(self.calls):
            def add(name: str, x: Tensor, mask: Tensor | None = call.mask) -> None:
                x = x.reshape(-1, x.shape[-1])  # a mixture of experts hands on [batch * length, hidden]
                watched[name].add((x if mask is None else x[mask.flatten()]).float())

            with watch({name: self.linears[name] for name in watched}, add):
                self.outputs.append(self.run(i))
        return {name: watched[group[0]] for group in groups for name in group}

    def find_shared(self) -> list[list[str]]:
        """Which linear layers read one and the same tensor (q, k, v): runs batch 0 to see it.

        Returns:
            The names of the layers in calling order, those that read one tensor together.

        Raises:
            ValueError: when a linear layer does not run, or more than once.
        """
        groups: list[tuple[Tensor, list[str]]] = []

        def note(name: str, x: Tensor) -> None:
            for other, names in groups:
                if other is x:
                    names.append(name)
                    return
            groups.append((x, [name]))

        with watch(self.linears, note):
            self.run(0)
        runs = [name for _, names in groups for name in names]
        for name in self.linears:
            if runs.count(name) != 1:
                raise ValueError(f"{self.name}.{name} runs {runs.count(name)} times when its block runs "
                                 "once, and statistics need it to run once")
        return [names for _, names in groups]


@contextmanager
def watch(layers: dict[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call see(name, input) whenever one of the layers runs.

    Args:
        layers: modules by name.
        see: gets the name and the first argument.

    Yields:
        Nothing.
    """
    hooks = [layer.register_forward_pre_hook(lambda _, args, name=name: see(name, args[0]))
             for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
