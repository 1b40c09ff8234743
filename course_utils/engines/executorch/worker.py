"""ExecuTorch, the runtime that PyTorch offers for phones, with its CPU backend XNNPACK.

prepare makes "fp32" and "int4" (weights INT4 in groups of 32, activations INT8 as they come; embedding and
output layer INT8), each one file: executorch_export.py. Compiling takes minutes for each. Both have room for
1,024 tokens. The output layer's weights are in the file twice, once for XNNPACK, which rearranges them, and
once as the embedding.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from protocol import Session, serve

if TYPE_CHECKING:  # what the quoted hints name
    import numpy as np


class ExecuTorchSession(Session):
    """One program, its cache inside. Options {"positions": room that the program must have}."""

    packages = ("executorch", "torch", "torchao")
    weights = ("*.pte",)
    batches = False  # the cache has a fixed shape

    def load(self, folder: str | Path) -> None:
        """Read the program model.pte, and the operators that it uses."""
        import torch  # first: the runtime's libraries need torch's
        from executorch.extension.pybindings import _C as runtime  # the public module imports the compiler

        package = Path(runtime.__file__).parents[2]
        for library in ("extension/llm/custom_ops/*custom_ops_aot_lib.*", "kernels/quantized/*ops_aot_lib.*"):
            for file in package.glob(library):
                torch.ops.load_library(file)
        runtime._unsafe_reset_threadpool(self.threads)
        self.torch = torch
        self.program = runtime._load_program(str(Path(folder) / "model.pte"))
        self.method = self.program.load_method("forward")
        inputs = self.method.method_meta()
        self.positions, self.rows = (max(inputs.input_tensor_meta(i).sizes()) for i in (0, 2))
        self._check(self.options.get("positions", 0))

    def prefill(self, ids: Sequence[int]) -> int:
        """Read the prompt with an empty cache."""
        self.seen = 0
        return self._next(ids)

    def step(self, token: int) -> int:
        """Read one token."""
        return self._next([token])

    def logits(self, ids: Sequence[int]) -> "np.ndarray":
        """Scores at every position."""
        import numpy as np

        self.seen = 0
        parts = [ids[i:i + self.rows] for i in range(0, len(ids), self.rows)]
        return np.concatenate([self._run(part, range(len(part))) for part in parts])

    def _next(self, ids: Sequence[int]) -> int:
        return int(self._run(ids, [len(ids) - 1])[-1].argmax())

    def _run(self, ids: Sequence[int], kept: Sequence[int]) -> "np.ndarray":
        """Read ids after those read so far; scores at their positions `kept`."""
        self._check(self.seen + len(ids))
        inputs = [ids], [self.seen], list(kept)
        (logits,) = self.method([self.torch.tensor(values) for values in inputs])
        self.seen += len(ids)
        return logits.numpy()

    def _check(self, tokens: int) -> None:
        if tokens > self.positions:
            raise ValueError(f"{tokens:,} tokens: the program has room for {self.positions:,}")

    def prepare(self, step: str, model: str, source: str | None, out: str) -> None:
        """Write the program, in FP32 or INT4 as the step says."""
        from executorch_export import export

        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        table = export(model, out / "model.pte", int4=step == "int4")
        (out / "embedding.json").write_text(json.dumps({"bytes": table}))

    def read_bytes(self, folder: str | Path) -> int:
        """Without the embedding, which is looked up."""
        return self.disk_bytes(folder) - json.loads((Path(folder) / "embedding.json").read_text())["bytes"]


if __name__ == "__main__":
    serve(ExecuTorchSession)
