"""PyTorch itself, through transformers: FP32, BF16, and two libraries' INT8 weights, compiled or not.

options {"variant": "fp32" | "bf16" | "torchao-int8" | "bitsandbytes-int8", "compile": true or false}
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from protocol import Session, serve

if TYPE_CHECKING:  # what the quoted hints name
    import numpy as np
    import torch
    from transformers import Cache, PreTrainedModel

VARIANTS = ("fp32", "bf16", "torchao-int8", "bitsandbytes-int8")


class TorchSession(Session):
    """The model as the rest of the course runs it, with transformers' own KV cache."""

    packages = ("torch", "transformers", "torchao", "bitsandbytes")

    def load(self, folder: str | Path) -> None:
        """Read the model as the variant says."""
        import torch

        self.variant = self.options.get("variant", "fp32")
        if self.variant not in VARIANTS:
            raise ValueError(f"variant is {self.variant!r}: known are {', '.join(VARIANTS)}")
        torch.set_num_threads(self.threads)
        torch.set_grad_enabled(False)
        self.torch = torch
        self.model = self._load(folder).eval()
        self.one_token = self.model
        self.compiled = self.options.get("compile", False)
        if self.compiled:
            # Only the single step: its shapes are always the same, so it is compiled once. The mode is that
            # of torchao's guide; on a CPU it times several kernels for each matrix product.
            mode = "max-autotune" if self.variant == "torchao-int8" else None
            self.one_token = torch.compile(self.model, mode=mode)

    def _load(self, folder: str | Path) -> "PreTrainedModel":
        import torch
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        dtype = torch.bfloat16 if self.variant == "bf16" else torch.float32
        settings = {"dtype": dtype, "local_files_only": True}
        if self.variant == "bitsandbytes-int8":
            settings |= {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": "cpu"}
        model = AutoModelForCausalLM.from_pretrained(folder, **settings)
        if self.variant == "torchao-int8":
            from torchao.quantization import Int8WeightOnlyConfig, quantize_

            quantize_(model, Int8WeightOnlyConfig())
        return model

    def _cache(self) -> "Cache":
        from transformers import DynamicCache, StaticCache

        if not self.compiled:
            return DynamicCache(config=self.model.config)
        # Compiled code wants a cache that does not grow. One length for every call: nothing is recompiled.
        return StaticCache(config=self.model.config, max_cache_len=self.options.get("positions", 512))

    def prefill(self, ids: Sequence[int]) -> int:
        """Read the prompt with an empty cache."""
        self.cache = self._cache()
        return self._next(self.model, ids)

    def step(self, token: int) -> int:
        """Read one token."""
        return self._next(self.one_token, [token])

    def _next(self, model: "PreTrainedModel", ids: Sequence[int]) -> int:
        ids = self.torch.tensor([ids] * self.batch)
        out = model(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return int(out.logits[0, -1].argmax())

    def read_bytes(self, folder: str | Path) -> int:
        """All matrices of linear layers, as they lie in memory; the embedding is only looked up."""
        linear = [module for module in self.model.modules() if isinstance(module, self.torch.nn.Linear)]
        return sum(stored(parameter) for module in linear for parameter in module.parameters())

    def logits(self, ids: Sequence[int]) -> "np.ndarray":
        """Scores at every position."""
        out = self.model(input_ids=self.torch.tensor([ids]), use_cache=False)
        return out.logits[0].float().numpy()


def stored(tensor: "torch.Tensor") -> int:
    """Bytes of a tensor, or of the tensors that a quantized one is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(stored(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    scales = getattr(tensor, "SCB", None)  # bitsandbytes keeps the scales of the rows there
    return tensor.nbytes + (scales.nbytes if scales is not None else 0)


if __name__ == "__main__":
    serve(TorchSession)
