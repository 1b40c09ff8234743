"""ONNX Runtime on our own export: FP32, INT8 and INT4.

prepare makes, each in a folder of its own: "fp32", the graph of onnx_export.py; "int8", weights INT8 and
activations INT8, quantized while it runs (dynamic); "int4", weights INT4 in blocks of 32 (MatMulNBits,
computed in INT8: accuracy level 4), with embedding and output layer in INT8.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from onnx_session import OnnxSession
from protocol import serve

if TYPE_CHECKING:  # what the quoted hints name
    import numpy as np
    import onnx

BLOCK = 32


class OwnExport(OnnxSession):
    """What runs is shared with TensorRT; what is prepared is made here."""

    packages = ("onnxruntime", "onnx", "onnxscript", "torch")

    def prepare(self, step: str, model: str, source: str | None, out: str) -> None:
        """Make model.onnx of the step "fp32", "int8" or "int4"."""
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        steps = {"fp32": self._export, "int8": self._int8, "int4": self._int4}
        steps[step](model, out, out.parent / "fp32" / "model.onnx")

    def _export(self, model: str, out: Path, _: Path) -> None:
        from onnx_export import export

        export(model, out / "model.onnx")

    def _int8(self, _: str, out: Path, fp32: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # 7 of the 8 bits (reduce_range): without VNNI instructions a processor adds pairs of products in 16
        # bits, which overflow at 8. The model then writes nonsense, and nothing says so.
        # Only what holds weights: the quantizer takes the operator Attention for an older one of that name.
        quantize_dynamic(fp32, out / "model.onnx", op_types_to_quantize=["Gather", "Gemm", "MatMul"],
                         weight_type=QuantType.QInt8, per_channel=True, reduce_range=True,
                         use_external_data_format=True)

    def _int4(self, _: str, out: Path, fp32: Path) -> None:
        import onnx
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        model = onnx.load(fp32)
        head = untie(model)
        for bits, left_out in ((4, [head]), (8, [])):  # the second round finds the output layer only
            quantizer = MatMulNBitsQuantizer(model, bits=bits, block_size=BLOCK, is_symmetric=False,
                                             accuracy_level=4, nodes_to_exclude=left_out)
            quantizer.process()
            model = quantizer.model.model
        onnx.save(model, out / "model.onnx", save_as_external_data=True, location="model.onnx.data")


def untie(model: "onnx.ModelProto") -> str:
    """Make the output layer a MatMul with weights of its own, as the quantizer wants it; returns its name.

    The embedding becomes INT8 with a scale for each token: the quantizer has only INT4 for it.
    """
    import onnx

    (head,) = [node for node in model.graph.node if node.op_type == "Gemm"]
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weight = onnx.numpy_helper.to_array(tensors[head.input[1]])
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight.T.copy(), "lm_head_transposed"))
    new = onnx.helper.make_node("MatMul", [head.input[0], "lm_head_transposed"], list(head.output), "lm_head")
    position = list(model.graph.node).index(head)
    model.graph.node.remove(head)
    model.graph.node.insert(position, new)
    quantize_embedding(model, head.input[1], weight)
    return new.name


def quantize_embedding(model: "onnx.ModelProto", name: str, weight: "np.ndarray") -> None:
    """Replace the look-up in the FP32 matrix `name` by one in INT8 rows, times each row's scale."""
    import numpy as np
    import onnx

    scale = np.abs(weight).max(axis=1, keepdims=True) / 127 + np.finfo(np.float32).tiny
    rows = np.round(weight / scale).astype(np.int8)
    (gather,) = [node for node in model.graph.node if node.op_type == "Gather" and node.input[0] == name]
    make, ids = onnx.helper.make_node, gather.input[1]
    nodes = [make("Gather", ["embedding_rows", ids], ["row"]),
             make("Gather", ["embedding_scales", ids], ["scale"]),
             make("Cast", ["row"], ["row_fp32"], to=onnx.TensorProto.FLOAT),
             make("Mul", ["row_fp32", "scale"], list(gather.output))]
    position = list(model.graph.node).index(gather)
    model.graph.node.remove(gather)
    for i, node in enumerate(nodes):
        model.graph.node.insert(position + i, node)
    kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
    del model.graph.initializer[:]
    tensor = onnx.numpy_helper.from_array
    model.graph.initializer.extend([*kept, tensor(rows, "embedding_rows"),
                                    tensor(scale.astype(np.float32), "embedding_scales")])


if __name__ == "__main__":
    serve(OwnExport)
