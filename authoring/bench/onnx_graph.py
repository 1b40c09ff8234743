"""The inputs and outputs of two exported graphs: by the article's one line, and ours with a KV cache."""

import dataclasses

from course_utils import engines, models
from course_utils.engines import export, process
from course_utils.errors import CourseError

TITLE = "What goes in and comes out of an exported graph"
LAYERS, TOKENS = 2, 8


def bench() -> list[dict]:
    """Export graphs and look at them.

    Returns:
        One row for each graph: its inputs and outputs, or why there is no graph.

    Raises:
        CourseError: the engine onnxruntime is not installed, or it failed.
    """
    engine = engines.find("onnxruntime")
    files = export.prepared(engine)
    if files is None:
        raise CourseError(f"the exported model is not there: {engine.how_to_install}")
    reader = dataclasses.replace(engine, script="onnx_graph_worker.py")
    line = {"model": str(models.embedded_lm()), "layers": LAYERS, "tokens": TOKENS}
    requests = {
        "torch.onnx.export(model, input_ids, file)": line | {"use_cache": True},
        "the same after model.config.use_cache = False": line | {"use_cache": False},
        "ours, with the cache as inputs and outputs": {"file": str(files / "fp32" / "model.onnx")},
    }
    rows = []
    for name, request in requests.items():
        answer = process.run(reader, request, timeout=300)
        if not answer:
            raise CourseError(str(answer))
        found = answer.values["graph"] or {"inputs": None, "outputs": None}
        rows.append({"graph": name, "failure": answer.values["failure"], "seconds": answer.values["seconds"],
                     **found})
    return rows
