"""A stand-in for ONNX Runtime's session, on which the loop of `decode` can be tried: NumPy, a few numbers.

It is no part of the exercises, since an answer that is graded in a process of its own needs it there.
"""

from types import SimpleNamespace

import numpy as np


class ToyGraph:
    """A session on a small made-up model, with the inputs and outputs of the exported graph.

    It is written in NumPy: two layers of attention over embeddings that differ with id and position. Like
    ONNX Runtime it refuses inputs of another type or shape.

    Args:
        seed: of the model's numbers.
        layers: how many.

    Attributes:
        read: tokens read so far, by all passes.
    """

    HEADS, WIDTH, VOCABULARY, POSITIONS = 2, 4, 23, 64

    def __init__(self, seed: int, layers: int = 2) -> None:
        random = np.random.default_rng(seed)

        def draw(*shape: int) -> np.ndarray:
            return random.normal(size=shape).astype(np.float32)

        self.layers, self.read = layers, 0
        self.ids = draw(self.VOCABULARY, self.HEADS * self.WIDTH)
        self.positions = draw(self.POSITIONS, self.HEADS * self.WIDTH)
        self.maps = draw(layers, 3, self.HEADS * self.WIDTH, self.HEADS * self.WIDTH)
        self.out = 3 * draw(self.HEADS * self.WIDTH, self.VOCABULARY)

    def get_inputs(self) -> list[SimpleNamespace]:
        """Names, shapes and types, as ONNX Runtime gives them.

        Returns:
            Objects with `name`, `shape` and `type`.
        """
        cache = [(f"past_{kind}_{i}", ["batch", self.HEADS, "past", self.WIDTH], "tensor(float)")
                 for i in range(self.layers) for kind in ("key", "value")]
        plain = [("input_ids", ["batch", "tokens"], "tensor(int64)"),
                 ("attention_mask", ["batch", "past + tokens"], "tensor(int64)"),
                 ("kept", ["n"], "tensor(int64)")]
        return [SimpleNamespace(name=name, shape=shape, type=kind) for name, shape, kind in plain + cache]

    def get_outputs(self) -> list[SimpleNamespace]:
        """The same of the outputs.

        Returns:
            Objects with `name`, `shape` and `type`.
        """
        cache = [SimpleNamespace(name=value.name.replace("past", "present"), shape=value.shape,
                                 type=value.type) for value in self.get_inputs()[3:]]
        return [SimpleNamespace(name="logits", shape=["batch", "n", self.VOCABULARY], type="tensor(float)"),
                *cache]

    def run(self, names: list[str] | None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """One pass.

        Args:
            names: of the outputs that are wanted; None: all.
            feeds: name -> input.

        Returns:
            The outputs.

        Raises:
            ValueError: an input is missing, unknown, or of another type or shape.
        """
        found = self._outputs(self._checked(feeds))
        return list(found.values()) if names is None else [found[name] for name in names]

    def _checked(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = {value.name: value for value in self.get_inputs()}
        if set(feeds) != set(values):
            raise ValueError(f"inputs missing or unknown: {min(set(feeds) ^ set(values))}")
        for name, value in values.items():
            dtype = {"tensor(int64)": np.int64, "tensor(float)": np.float32}[value.type]
            given = feeds[name]
            if not isinstance(given, np.ndarray) or given.dtype != dtype or given.ndim != len(value.shape):
                raise ValueError(f"{name}: {value.type} with {len(value.shape)} dimensions is expected")
        past = {feeds[name].shape[2] for name in values if name.startswith("past_")}
        if len(past) != 1 or feeds["attention_mask"].shape[1] != min(past) + feeds["input_ids"].shape[1]:
            raise ValueError("attention_mask must have a place for each past and each new token")
        return feeds

    def _outputs(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        ids, past = feeds["input_ids"], feeds["past_key_0"].shape[2]
        batch, tokens = ids.shape
        self.read += tokens
        split = (batch, -1, self.HEADS, self.WIDTH)
        hidden = self.ids[ids] + self.positions[past:past + tokens]
        seen = np.arange(past + tokens)[None] <= past + np.arange(tokens)[:, None]
        seen = seen & (feeds["attention_mask"][:, None, None, :] > 0)
        cache = {}
        for i, (to_query, to_key, to_value) in enumerate(self.maps):
            query, key, value = ((hidden @ part).reshape(split).swapaxes(1, 2)
                                 for part in (to_query, to_key, to_value))
            key, value = (np.concatenate([feeds[f"past_{kind}_{i}"], new], axis=2).astype(np.float32)
                          for kind, new in (("key", key), ("value", value)))
            scores = np.where(seen, query @ key.swapaxes(2, 3) / 4, -1e9)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = weights @ value / weights.sum(-1, keepdims=True)
            hidden = np.tanh(hidden + mixed.swapaxes(1, 2).reshape(batch, tokens, -1))
            cache |= {f"present_key_{i}": key, f"present_value_{i}": value}
        return {"logits": (hidden[:, feeds["kept"]] @ self.out).astype(np.float32)} | cache
