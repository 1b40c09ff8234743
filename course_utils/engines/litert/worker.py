"""LiteRT (formerly TFLite): give it a file, or export one block of a model and run it.

Request {"task": "load", "file": path}. Answer: {"loads": bool, "says": its message}.
Request {"task": "block", "model": folder, "tokens": n, "out": file}: the model's first block is exported to
.tflite, LiteRT runs it on random numbers. Answer: {"bytes", "difference": the largest to PyTorch, as a share
of the largest output, "versions"}.
"""

import importlib.metadata
from pathlib import Path

from protocol import answer


def load(file: str) -> dict:
    """Give the runtime a file."""
    from ai_edge_litert.interpreter import Interpreter

    try:
        Interpreter(model_path=file)
    except (ValueError, RuntimeError) as error:
        return {"loads": False, "says": str(error).strip().splitlines()[0]}
    return {"loads": True, "says": ""}


def block(model: str, tokens: int, out: str) -> dict:
    """Export the first block of a model, run it, and compare with PyTorch."""
    import litert_torch
    import numpy as np
    import torch
    from ai_edge_litert.interpreter import Interpreter
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, local_files_only=True, attn_implementation="eager").eval()

    class Block(torch.nn.Module):
        """The first block, on a text of fixed length, each token seeing itself and those before it."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = whole.model.layers[0]
            hidden = torch.zeros(1, tokens, whole.config.hidden_size)
            cos, sin = whole.model.rotary_emb(hidden, torch.arange(tokens)[None])
            self.register_buffer("cos", cos)
            self.register_buffer("sin", sin)
            self.register_buffer("mask", torch.full((1, 1, tokens, tokens), -1e9).triu(1))

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            found = self.layer(hidden, attention_mask=self.mask, position_embeddings=(self.cos, self.sin))
            return found[0] if isinstance(found, tuple) else found

    torch.manual_seed(0)
    hidden = torch.randn(1, tokens, whole.config.hidden_size)
    alone = Block().eval()
    with torch.no_grad():
        expected = alone(hidden).numpy()
        litert_torch.convert(alone, (hidden,)).export(out)
    runtime = Interpreter(model_path=out)
    runtime.allocate_tensors()
    runtime.set_tensor(runtime.get_input_details()[0]["index"], hidden.numpy())
    runtime.invoke()
    came = runtime.get_tensor(runtime.get_output_details()[0]["index"])
    return {"bytes": Path(out).stat().st_size,
            "difference": float(np.abs(came - expected).max() / np.abs(expected).max())}


def task(request: dict) -> dict:
    """The answer described at the top of this file."""
    kind = request.pop("task")
    found = {"load": load, "block": block}[kind](**request)
    packages = "litert-torch", "ai-edge-litert", "torch"
    return found | {"versions": {name: importlib.metadata.version(name) for name in packages}}


if __name__ == "__main__":
    answer(task)
