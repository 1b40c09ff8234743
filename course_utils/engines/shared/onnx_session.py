"""Our exported graph in ONNX Runtime, whatever the provider: the engines onnxruntime and tensorrt."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exported import ExportedSession

if TYPE_CHECKING:  # what the quoted hints name
    import numpy as np


class OnnxSession(ExportedSession):
    """The exported graph; its KV cache is handed from call to call without a copy into NumPy."""

    weights = ("*.onnx", "*.data")

    def load(self, folder: str | Path) -> None:
        """Read model.onnx and the weights beside it."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 3
        self.runtime = onnxruntime
        self.session = onnxruntime.InferenceSession(
            str(Path(folder) / "model.onnx"), options, providers=self._providers(folder))
        self.outputs = [value.name for value in self.session.get_outputs()]
        past = [value for value in self.session.get_inputs() if value.name.startswith("past_")]
        self.past = {value.name: (value.shape[1], value.shape[3]) for value in past}

    def _providers(self, folder: str | Path) -> list:
        """Which sets of kernels may be used, the first that has one wins."""
        return ["CPUExecutionProvider"]

    def _tensor(self, array: "np.ndarray") -> Any:
        return self.runtime.OrtValue.ortvalue_from_numpy(array)

    def _run(self, ids: Sequence[int], kept: Sequence[int]) -> "np.ndarray":
        logits, *present = self.session.run_with_ort_values(self.outputs, self._feeds(ids, kept))
        self.cache = dict(zip(self.past, present, strict=True))
        return logits.numpy()[0]
