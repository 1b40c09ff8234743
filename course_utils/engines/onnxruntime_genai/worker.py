"""ONNX Runtime GenAI: the graph that its own model builder writes, INT4, and its own loop and KV cache."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from protocol import Session, serve

if TYPE_CHECKING:  # what the quoted hints name
    import numpy as np


class GenAiSession(Session):
    """The library's own generator. Options {"positions": the longest text, default 1024}."""

    packages = ("onnxruntime-genai", "onnxruntime")
    weights = ("*.onnx", "*.data")

    def load(self, folder: str | Path) -> None:
        """Read the folder that the model builder wrote."""
        import onnxruntime_genai as genai

        self.genai = genai
        config = genai.Config(str(folder))
        threads = {"model": {"decoder": {"session_options": {"intra_op_num_threads": self.threads}}}}
        config.overlay(json.dumps(threads))
        self.model = genai.Model(config)

    def prefill(self, ids: Sequence[int]) -> int:
        """Read the prompt with an empty cache."""
        self._start()
        return self._next(ids)

    def step(self, token: int) -> int:
        """Read one token."""
        return self._next([token]) if self.batch == 1 else self._own_step()

    def logits(self, ids: Sequence[int]) -> "np.ndarray":
        """Scores at every position."""
        import numpy as np

        rows = []
        self.batch = 1
        self._start()
        for token in ids:  # its prompt pass keeps the last position's scores only
            self.generator.append_tokens([token])
            rows.append(np.array(self.generator.get_logits()).reshape(-1))
        return np.stack(rows)

    def _start(self) -> None:
        settings = self.genai.GeneratorParams(self.model)
        longest = self.options.get("positions", 1024)
        # The shortest is the longest: no end-of-text token stops it.
        settings.set_search_options(max_length=longest, min_length=longest, do_sample=False,
                                    batch_size=self.batch)
        self.generator = self.genai.Generator(self.model, settings)

    def _next(self, ids: Sequence[int]) -> int:
        import numpy as np

        self.generator.append_tokens(np.array([ids] * self.batch, np.int32))
        if self.batch > 1:
            return self._own_step()
        return int(np.array(self.generator.get_logits())[0, -1].argmax())

    def _own_step(self) -> int:
        """A batch takes its prompt only once, so the library feeds its own choice back."""
        self.generator.generate_next_token()
        return int(self.generator.get_sequence(0)[-1])

    def prepare(self, step: str, model: str, source: str | None, out: str) -> None:
        """Run the library's model builder; the step is its precision."""
        with tempfile.TemporaryDirectory() as cache:
            subprocess.run([sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(model),
                            "-o", str(Path(out)), "-p", step, "-e", "cpu", "-c", cache], check=True)


if __name__ == "__main__":
    serve(GenAiSession)
