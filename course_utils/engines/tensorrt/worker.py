"""TensorRT as a provider of ONNX Runtime, on our own export, in FP16, on a GPU.

The first load compiles the graph for this very GPU and keeps the result in the engine's environment. The KV
cache passes through the host's memory at each step, which costs time.
"""

import sys
from pathlib import Path

from onnx_session import OnnxSession
from protocol import serve


class TensorRtSession(OnnxSession):
    """Our graph compiled for the GPU. Options {"positions": the longest text, default 512}."""

    packages = ("onnxruntime-gpu", "tensorrt-cu13")

    def _providers(self, folder: str | Path) -> list:
        import onnxruntime
        import tensorrt  # noqa: F401 - loads its libraries, which the provider then finds

        onnxruntime.preload_dlls()  # CUDA's libraries, from their packages
        longest = self.options.get("positions", 512)
        # (new tokens, tokens in the cache): what may come, and what it is tuned for
        shapes = {"min": (1, 0), "opt": (1, 128), "max": (longest, longest)}
        profile = {f"trt_profile_{name}_shapes": self._shapes(Path(folder) / "model.onnx", *lengths)
                   for name, lengths in shapes.items()}
        settings = {"trt_fp16_enable": True, "trt_engine_cache_enable": True,
                    "trt_engine_cache_path": str(Path(sys.prefix) / "compiled"), **profile}
        if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
            raise ImportError("this ONNX Runtime has no TensorRT provider")
        return [("TensorrtExecutionProvider", settings), "CUDAExecutionProvider"]

    def _shapes(self, file: Path, new: int, past: int) -> str:
        """input:1x64,... for all inputs of the graph, as the provider wants its ranges."""
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        caches = [value for value in session.get_inputs() if value.name.startswith("past_")]
        sizes = {"input_ids": (self.batch, new), "attention_mask": (self.batch, past + new), "kept": (new,)}
        sizes |= {value.name: (self.batch, value.shape[1], past, value.shape[3]) for value in caches}
        return ",".join(f"{name}:{'x'.join(map(str, size))}" for name, size in sizes.items())


if __name__ == "__main__":
    serve(TensorRtSession)
