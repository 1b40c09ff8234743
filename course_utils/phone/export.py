"""The ONNX file of the phone's model: a graph with a KV cache whose weights are the checkpoint's integers."""

import dataclasses
import hashlib
import tempfile
from pathlib import Path

from safetensors.torch import save_file

from course_utils import models
from course_utils.cache import cached_folder
from course_utils.engines import environment, find, process
from course_utils.engines.export import prepared
from course_utils.errors import CourseError
from course_utils.phone import blocks, packed

ENGINE = "onnxruntime"
VERSION = "4"


def onnx_folder(level: int = 1) -> Path:
    """The exported model: model.onnx, model.onnx.data, index.json. Made once; that takes a minute.

    unpacked.onnx beside them is for browsers: a second graph on the same weights, unpacked to FP32 when they
    are loaded, if the session's option session.disable_quant_qdq is "1", and else for each token. The
    environment of the engine onnxruntime is installed for it, unless it is there.

    Args:
        level: accuracy_level of MatMulNBits: 1 keeps the activations in FP32; 4 lets a kernel round them to
            INT8 as they come, which is faster and not the same.

    Returns:
        The folder.

    Raises:
        CourseError: pip or the export failed.
    """
    checkpoint = packed.checkpoint_folder()
    digest = hashlib.sha256((checkpoint.parent / "manifest.json").read_bytes()).hexdigest()[:10]
    return cached_folder(f"phone-onnx-{digest}-level{level}",
                         lambda folder: write(checkpoint, models.embedded_lm(), folder, level), VERSION, 1000)


def write(
    checkpoint: str | Path, model: str | Path, folder: str | Path, level: int = 1,
    graph: str | Path | None = None,
) -> None:
    """Write the exported model of a checkpoint.

    Args:
        checkpoint: as for `packed.layers`.
        model: folder of the model that was quantized, in FP32: its graph is taken.
        folder: where to write.
        level: as for `onnx_folder`.
        graph: the model's FP32 graph; by default the one of the engine onnxruntime, or a new one.

    Raises:
        CourseError: pip or the export failed, or the graph is of another model.
        ValueError: as `packed.layers` and `blocks.to_blocks`.
    """
    tensors = {}
    for name, weight in packed.layers(checkpoint).items():
        tensors[f"{name}.integers"], tensors[f"{name}.scales"] = blocks.to_blocks(weight)
    engine = find(ENGINE)
    environment.install(engine)
    files = None if graph else prepared(engine, model)
    graph = files / "fp32" / "model.onnx" if files else graph
    with tempfile.TemporaryDirectory() as aside:
        file = Path(aside) / "blocks.safetensors"
        save_file(tensors, file)
        request = {"model": str(model), "graph": str(graph) if graph else None,
                   "blocks": str(file), "level": level, "out": str(folder)}
        answer = process.run(dataclasses.replace(engine, script="onnx_blocks_worker.py"), request, 3600)
    if not answer:
        raise CourseError(f"exporting the phone's model failed: {answer}")
