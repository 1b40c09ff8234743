"""llama.cpp on a GGUF file, through its own C functions. prepare makes "q4_0" and "q4_k_m": gguf_file.py.

xllamacpp is a prebuilt wheel of llama.cpp. Its Python side has a server only, whose scores come as text, half
a second a position. But the library's C functions are in the same file, and `ctypes` calls them. llama.cpp's
parameter structures change from release to release: they are passed through as a block of bytes.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from protocol import Session, serve

if TYPE_CHECKING:  # what the quoted hints name
    import numpy as np


class Parameters(ctypes.Structure):
    """A parameter structure of llama.cpp as it comes; 1,024 bytes are more than any of them has."""

    _fields_ = [("words", ctypes.c_uint32 * 256)]


class Batch(ctypes.Structure):
    """llama_batch: tokens to read, where in which sequence, and at which of them scores are wanted."""

    _fields_ = [("n_tokens", ctypes.c_int32), ("token", ctypes.POINTER(ctypes.c_int32)),
                ("embd", ctypes.c_void_p), ("pos", ctypes.POINTER(ctypes.c_int32)),
                ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
                ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
                ("logits", ctypes.POINTER(ctypes.c_int8))]  # fmt: skip


def functions() -> ctypes.CDLL:
    """The C functions used here, with their types."""
    import xllamacpp

    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    types = {
        "llama_backend_init": (None, []),
        "llama_model_default_params": (Parameters, []),
        "llama_context_default_params": (Parameters, []),
        "llama_model_load_from_file": (pointer, [ctypes.c_char_p, Parameters]),
        "llama_init_from_model": (pointer, [pointer, Parameters]),
        "llama_n_ctx": (ctypes.c_uint32, [pointer]),
        "llama_set_n_threads": (None, [pointer, number, number]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_vocab_n_tokens": (number, [pointer]),
        "llama_get_memory": (pointer, [pointer]),
        "llama_memory_clear": (None, [pointer, ctypes.c_bool]),
        "llama_decode": (number, [pointer, Batch]),
        "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [pointer, number]),
    }
    for name, (result, arguments) in types.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class LlamaCppSession(Session):
    """llama.cpp's model and context. Options {"positions": length of its KV cache, default 1024}."""

    packages = ("xllamacpp",)
    weights = ("*.gguf",)

    def load(self, folder: str | Path) -> None:
        """Read the one GGUF file of the folder."""
        self.c = functions()
        self.c.llama_backend_init()
        file = str(next(Path(folder).glob("*.gguf"))).encode()
        model = self.c.llama_model_load_from_file(file, self.c.llama_model_default_params())
        if not model:
            raise ValueError(f"llama.cpp does not read {file.decode()}")
        settings, positions = self.c.llama_context_default_params(), self.options.get("positions", 1024)
        slots = positions * self.batch
        # The first fields: n_ctx, n_batch (the most tokens of one call), n_ubatch (left as it is), n_seq_max.
        settings.words[0], settings.words[1], settings.words[3] = slots, slots, self.batch
        self.context = self.c.llama_init_from_model(model, settings)
        if not self.context or self.c.llama_n_ctx(self.context) != slots:
            raise ValueError("llama.cpp made no context of that length: its structures have changed")
        self.c.llama_set_n_threads(self.context, self.threads, self.threads)
        self.vocabulary = self.c.llama_vocab_n_tokens(self.c.llama_model_get_vocab(model))

    def prefill(self, ids: Sequence[int]) -> int:
        """Read the prompt with an empty cache."""
        self._forget()
        self._read(ids, [0] * (len(ids) - 1) + [1])
        return int(self._scores(len(ids) - 1).argmax())

    def step(self, token: int) -> int:
        """Read one token."""
        self._read([token], [1])
        return int(self._scores(0).argmax())

    def logits(self, ids: Sequence[int]) -> "np.ndarray":
        """Scores at every position."""
        import numpy as np

        self.batch = 1
        self._forget()
        self._read(ids, [1] * len(ids))
        return np.stack([self._scores(position).copy() for position in range(len(ids))])

    def prepare(self, step: str, model: str, source: str | None, out: str) -> None:
        """Write the model as GGUF; the step is the format."""
        from gguf_file import write

        Path(out).mkdir(parents=True, exist_ok=True)
        write(model, Path(out) / "model.gguf", step, functions())

    def _forget(self) -> None:
        self.seen = 0
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)

    def _read(self, ids: Sequence[int], wanted: list[int]) -> None:
        """Run the model over ids, after those read so far; wanted: 1 where scores are kept, else 0.

        The sequences of the batch follow one another, so the first one's scores come first.
        """
        n, sequences = len(ids) * self.batch, range(self.batch)
        integers, flags = ctypes.c_int32 * n, ctypes.c_int8 * n
        positions = [self.seen + i for i in range(len(ids))]
        members = [ctypes.pointer(ctypes.c_int32(sequence)) for sequence in sequences for _ in ids]
        batch = Batch(
            n, integers(*(ids * self.batch)), None, integers(*(positions * self.batch)), integers(*([1] * n)),
            (ctypes.POINTER(ctypes.c_int32) * n)(*members), flags(*(wanted * self.batch)))
        code = self.c.llama_decode(self.context, batch)
        if code:
            raise ValueError(f"llama_decode gave {code}: no room for {n} more tokens?")
        self.seen += len(ids)

    def _scores(self, position: int) -> "np.ndarray":
        """float32 [vocabulary]: llama.cpp's own memory, to be copied before the next pass."""
        import numpy as np

        scores = self.c.llama_get_logits_ith(self.context, position)
        return np.ctypeslib.as_array(scores, shape=(self.vocabulary,))


if __name__ == "__main__":
    serve(LlamaCppSession)
