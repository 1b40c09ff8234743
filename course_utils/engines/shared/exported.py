"""What the engines that run our exported graph have in common.

Its inputs and outputs are described in onnxruntime/onnx_export.py.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from protocol import Session

if TYPE_CHECKING:  # what the quoted hints name
    import numpy as np


class ExportedSession(Session):
    """A session on our graph. A subclass loads it, sets `past`, and runs it in `_run`.

    Attributes:
        past: (key-value heads, head dim) of each cache input, by its name.
        cache: keys or values of all tokens read so far, by the same names.
        read: how many tokens that are.
    """

    past: dict[str, tuple[int, int]]
    cache: dict[str, Any]
    read: int

    def prefill(self, ids: Sequence[int]) -> int:
        """Read the prompt with an empty cache."""
        self._forget()
        return self._next(ids)

    def step(self, token: int) -> int:
        """Read one token."""
        return self._next([token])

    def logits(self, ids: Sequence[int]) -> "np.ndarray":
        """Scores at every position."""
        self.batch = 1
        self._forget()
        return self._run(ids, range(len(ids)))

    def _run(self, ids: Sequence[int], kept: Sequence[int]) -> "np.ndarray":
        """Read ids after those read so far.

        Returns:
            The first sequence's scores at its positions `kept`, FP32 [kept, vocabulary].
        """
        raise NotImplementedError

    def _tensor(self, array: "np.ndarray") -> Any:
        """A NumPy array as the engine wants it."""
        return array

    def _forget(self) -> None:
        import numpy as np

        self.read = 0
        self.cache = {name: self._tensor(np.zeros((self.batch, heads, 0, width), np.float32))
                      for name, (heads, width) in self.past.items()}

    def _next(self, ids: Sequence[int]) -> int:
        return int(self._run(ids, [len(ids) - 1])[-1].argmax())

    def _feeds(self, ids: Sequence[int], kept: Sequence[int]) -> dict[str, Any]:
        """All inputs of the graph to read `ids`, which then count as read. All sequences are equally long."""
        import numpy as np

        self.read += len(ids)
        return {"input_ids": self._tensor(np.array([ids] * self.batch, np.int64)),
                "attention_mask": self._tensor(np.ones((self.batch, self.read), np.int64)),
                "kept": self._tensor(np.array(kept, np.int64))} | self.cache
