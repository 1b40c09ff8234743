"""What goes in and comes out of a model that is exported by the article's one line.

Request {"model": folder, "layers": 2, "tokens": 8, "use_cache": true}. Answer: "graph" (inputs and outputs,
each [name, shape], a dynamic dimension as a name; null when the export failed), "failure" (why it did, one
line), "seconds" and "versions". Two of the layers are enough to see
what the graph is like, and take seconds instead of minutes. Request {"file": path} describes a graph that is
there already.
"""

import importlib.metadata
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from protocol import answer


def describe(file: str | Path) -> dict[str, list]:
    """The graph of an .onnx file as {"inputs": [[name, shape], ...], "outputs": ...}; reads no weights."""
    import onnx

    graph = onnx.load(file, load_external_data=False).graph

    def shapes(values: Iterable) -> list[list]:
        return [[value.name, [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]]
                for value in values]

    return {"inputs": shapes(graph.input), "outputs": shapes(graph.output)}


def export_by_one_line(
    model: str, layers: int, tokens: int, use_cache: bool
) -> tuple[dict[str, list] | None, str | None]:
    """What `torch.onnx.export(model, input_ids, file)` does.

    Args:
        model: the model's folder.
        layers: so many of its first layers are exported.
        tokens: length of the example.
        use_cache: the model hands out its cache.

    Returns:
        The graph as `describe` gives it and why there is none; one of the two is None.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True).eval()
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    model.config.use_cache = use_cache
    input_ids = torch.arange(tokens)[None]
    with tempfile.TemporaryDirectory() as aside:
        file = Path(aside) / "model.onnx"
        try:
            torch.onnx.export(model, (input_ids,), str(file))
        except torch.onnx.OnnxExporterError as error:
            cause = error.__cause__ or error
            return None, f"{type(cause).__name__}: {cause}".split(". ")[0].splitlines()[0]
        return describe(file), None


def task(request: dict) -> dict:
    """The answer described at the top of this file."""
    start = time.perf_counter()
    found, failure = (describe(request["file"]), None) if "file" in request else export_by_one_line(**request)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxscript")}
    return {"graph": found, "failure": failure, "seconds": time.perf_counter() - start, "versions": versions}


if __name__ == "__main__":
    answer(task)
