"""ONNX Runtime on our own export: FP32, INT8 and INT4.

prepare makes, each in a folder of its own: "fp32", the graph of onnx_export.py; "int8", weights INT8 and
activations INT8, quantized while it runs (dynamic), with 7 of the 8 bits; "int8-full", the same with all 8;
"int4", weights INT4 in blocks of 32 with scale and zero point (MatMulNBits, computed in INT8: accuracy level
4), with embedding and output layer in INT8; "int4-64", the same in blocks of 64 with a scale only. That one
reads as many bytes as llama.cpp's Q4_0: one scale in FP32 for 64 weights is as long as two in FP16.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from onnx_session import OnnxSession
from protocol import serve

if TYPE_CHECKING:  # what the quoted hints name
    import numpy as np
    import onnx

BLOCKS = {"int4": 32, "int4-64": 64}


class OwnExport(OnnxSession):
    """What runs is shared with TensorRT; what is prepared is made here."""

    packages = ("onnxruntime", "onnx", "onnxscript", "torch")

    def prepare(self, step: str, model: str, source: str | None, out: str) -> None:
        """Make model.onnx of one step."""
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        fp32 = out.parent / "fp32" / "model.onnx"
        if step == "fp32":
            from onnx_export import export

            export(model, out / "model.onnx")
        elif step in BLOCKS:
            self._int4(out, fp32, BLOCKS[step])
        else:
            self._int8(out, fp32, reduce_range=step == "int8")

    def load(self, folder: str | Path) -> None:
        """Read the graph, unless the processor lacks the instructions that it needs."""
        needs = set(self.options.get("needs", ()))
        if needs and not needs & instructions():
            raise ValueError(f"this processor has neither {' nor '.join(sorted(needs))}: sums of products of "
                             "8-bit numbers would overflow in 16 bits")
        super().load(folder)

    def read_bytes(self, folder: str | Path) -> int:
        """Of the graph's tensors; one that is only looked up does not count."""
        return multiplied(Path(folder) / "model.onnx")

    def _int8(self, out: Path, fp32: Path, reduce_range: bool) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # 7 of the 8 bits (reduce_range): without VNNI instructions a processor adds pairs of products in 16
        # bits, which overflow at 8. The model then writes nonsense, and nothing says so.
        # Only what holds weights: the quantizer takes the operator Attention for an older one of that name.
        quantize_dynamic(fp32, out / "model.onnx", op_types_to_quantize=["Gather", "Gemm", "MatMul"],
                         weight_type=QuantType.QInt8, per_channel=True, reduce_range=reduce_range,
                         use_external_data_format=True)

    def _int4(self, out: Path, fp32: Path, block: int) -> None:
        import onnx
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        model = onnx.load(fp32)
        head = untie(model)
        for bits, left_out in ((4, [head]), (8, [])):  # the second round finds the output layer only
            quantizer = MatMulNBitsQuantizer(model, bits=bits, block_size=block, accuracy_level=4,
                                             is_symmetric=block == 64, nodes_to_exclude=left_out)
            quantizer.process()
            model = quantizer.model.model
        merge_products(model)
        onnx.save(model, out / "model.onnx", save_as_external_data=True, location="model.onnx.data")


def instructions() -> set[str]:
    """Names of the processor's instruction sets, as cpuid calls them; empty where nobody can tell."""
    import cpuinfo

    return set(cpuinfo.get_cpu_info().get("flags", []))


def multiplied(file: str | Path) -> int:
    """Bytes of the graph's weights, without tables that nothing but a look-up (Gather) uses."""
    import math

    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    table = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    table -= {name for node in graph.node for name in node.input[node.op_type == "Gather":]}
    dtype = onnx.helper.tensor_dtype_to_np_dtype
    return sum(math.prod(tensor.dims) * dtype(tensor.data_type).itemsize
               for tensor in graph.initializer if tensor.name not in table)


def merge_products(model: "onnx.ModelProto") -> None:
    """Make one product of those that multiply the same numbers: query, key and value; gate and up.

    The threads then meet once instead of two or three times. The results are the same numbers, split up.
    """
    import numpy as np
    import onnx

    graph, make = model.graph, onnx.helper.make_node
    to_array, to_tensor = onnx.numpy_helper.to_array, onnx.numpy_helper.from_array
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    groups: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            groups.setdefault(node.input[0], []).append(node)
    for together in (nodes for nodes in groups.values() if len(nodes) > 1):
        first = together[0]
        merged = [f"{first.name}_merged_{place}" for place in range(1, len(first.input))]
        for place, name in enumerate(merged, 1):  # packed weights, scales, zero points: a row of each output
            parts = [to_array(tensors.pop(node.input[place])) for node in together]
            tensors[name] = to_tensor(np.concatenate(parts), name)
        settings = [{item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
                    for node in together]
        sizes = [setting["N"] for setting in settings]
        tensors[f"{first.name}_sizes"] = to_tensor(np.array(sizes, np.int64), f"{first.name}_sizes")
        product = make("MatMulNBits", [first.input[0], *merged], [f"{first.name}_all"], f"{first.name}_all",
                       domain=first.domain, **settings[0] | {"N": sum(sizes)})
        split = make("Split", [f"{first.name}_all", f"{first.name}_sizes"],
                     [node.output[0] for node in together], f"{first.name}_split", axis=-1)
        position = list(graph.node).index(first)
        for node in together:
            graph.node.remove(node)
        graph.node.insert(position, product)
        graph.node.insert(position + 1, split)
    del graph.initializer[:]
    graph.initializer.extend(tensors.values())


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
