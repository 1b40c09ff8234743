"""What the engines that run our exported graph have in common. Its inputs and outputs: onnx_export.py."""

from protocol import Session


class ExportedSession(Session):
    """A session on our graph. A subclass loads it, sets `past`, and runs it in `_run`.

    past   {name of a cache input: (key-value heads, head dim)}
    cache  {the same names: keys or values of all tokens read so far}
    read   how many tokens that are
    """

    def prefill(self, ids):
        self._forget()
        return self._next(ids)

    def step(self, token):
        return self._next([token])

    def logits(self, ids):
        self.batch = 1
        self._forget()
        return self._run(ids, range(len(ids)))

    def _run(self, ids, kept):
        """Read ids after those read so far; the first sequence's scores at its positions `kept`.

        FP32 [kept, vocabulary].
        """
        raise NotImplementedError

    def _tensor(self, array):
        """A NumPy array as the engine wants it."""
        return array

    def _forget(self):
        import numpy as np

        self.read = 0
        self.cache = {name: self._tensor(np.zeros((self.batch, heads, 0, width), np.float32))
                      for name, (heads, width) in self.past.items()}

    def _next(self, ids):
        return int(self._run(ids, [len(ids) - 1])[-1].argmax())

    def _feeds(self, ids, kept):
        """All inputs of the graph to read `ids`, which then count as read. All sequences are equally long."""
        import numpy as np

        self.read += len(ids)
        return {"input_ids": self._tensor(np.array([ids] * self.batch, np.int64)),
                "attention_mask": self._tensor(np.ones((self.batch, self.read), np.int64)),
                "kept": self._tensor(np.array(kept, np.int64))} | self.cache
