"""The weights of blocks as they were, so that a walk that fails can put them back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn


class Backup:
    """The weights of the blocks as they were, in temporary files: a copy in memory would double the model."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="walk-")
        self._saved: list[tuple[nn.Module, Path]] = []

    def add(self, module: nn.Module) -> None:
        """Write a block's weights to disk.

        Args:
            module: the block, not yet edited.
        """
        path = Path(self._folder.name) / f"{len(self._saved)}.pt"
        torch.save(module.state_dict(), path)
        self._saved.append((module, path))

    def drop_last(self) -> None:
        """Forget the block added last: it was not changed."""
        self._saved.pop()[1].unlink()

    def restore(self) -> None:
        """Put all weights back."""
        with torch.no_grad():
            for module, path in self._saved:
                saved = torch.load(path, map_location="cpu", weights_only=True)
                for name, tensor in module.state_dict().items():
                    tensor.copy_(saved[name])

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()
