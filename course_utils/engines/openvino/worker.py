"""OpenVINO on our ONNX export, with weights compressed by NNCF.

prepare makes "int8" (each row of a matrix its own scale) and "int4" (groups of 64, not all layers' inputs are
a multiple of 128; embedding and output layer stay INT8) out of the FP32 graph of the engine onnxruntime.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exported import ExportedSession
from protocol import serve

if TYPE_CHECKING:  # what the quoted hints name
    import numpy as np

GROUP = 64


class OpenVinoSession(ExportedSession):
    """The exported graph, compiled for the CPU; its KV cache goes from call to call as tensors."""

    packages = ("openvino", "nncf")
    weights = ("*.xml", "*.bin")

    def load(self, folder: str | Path) -> None:
        """Read model.xml and compile it for the CPU."""
        import openvino

        self.openvino = openvino
        settings = {"INFERENCE_NUM_THREADS": self.threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
                    "INFERENCE_PRECISION_HINT": "f32"}
        model = openvino.Core().compile_model(str(Path(folder) / "model.xml"), "CPU", settings)
        # Two of them take turns: what one wrote, the other reads where it lies.
        self.requests = model.create_infer_request(), model.create_infer_request()
        past = [i for i in model.inputs if i.get_any_name().startswith("past_")]
        self.past = {i.get_any_name(): (i.partial_shape[1].get_length(), i.partial_shape[3].get_length())
                     for i in past}

    def _run(self, ids: Sequence[int], kept: Sequence[int]) -> "np.ndarray":
        request, other = self.requests
        self.requests = other, request
        request.infer(self._feeds(ids, kept), share_inputs=True)
        logits, *present = (request.get_output_tensor(i).data for i in range(1 + len(self.past)))
        self.cache = dict(zip(self.past, present, strict=True))
        return logits[0].copy()

    def read_bytes(self, folder: str | Path) -> int:
        """The weights without the graph's description."""
        return (Path(folder) / "model.bin").stat().st_size

    def prepare(self, step: str, model: str, source: str | None, out: str) -> None:
        """Compress the weights of the FP32 graph, as the step "int8" or "int4" says."""
        import nncf
        import openvino

        graph = openvino.Core().read_model(str(Path(source) / "fp32" / "model.onnx"))
        modes = {"int8": {"mode": nncf.CompressWeightsMode.INT8_ASYM},
                 "int4": {"mode": nncf.CompressWeightsMode.INT4_ASYM, "group_size": GROUP, "ratio": 1.0}}
        Path(out).mkdir(parents=True, exist_ok=True)
        openvino.save_model(nncf.compress_weights(graph, **modes[step]), str(Path(out) / "model.xml"))


if __name__ == "__main__":
    serve(OpenVinoSession)
