"""An ONNX graph whose matrices are given: integers and scales that a quantizer of the course chose.

Request {"model": folder of the FP32 model, "graph": its graph by onnx_export.py or null (it is exported
then), "blocks": a safetensors file, "level": accuracy_level of MatMulNBits, "out": folder}. The blocks hold
LAYER.integers and LAYER.scales, as MatMulNBits stores them, for each linear layer and for "lm_head", which is
the embedding too (8 bits). Written are model.onnx, its weights beside it, and index.json: the place of each
layer's integers and scales in the file of weights, as course_utils.phone.blocks reads it. A second graph,
unpacked.onnx, reads the same file of weights: see `unpack`.

Answer: {"layers": how many}.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from protocol import answer
from worker import merge_products

if TYPE_CHECKING:  # what the quoted hints name
    import numpy as np
    import onnx

HEAD = "lm_head"


def write(model: str, graph: str | None, blocks: str, level: int, out: str) -> dict:
    """Do what the request says."""
    import onnx
    from safetensors.numpy import load_file

    given = load_file(blocks)
    loaded = load_graph(model, graph)
    found = find_products(loaded, model)
    wanted = {name.rpartition(".")[0] for name in given}
    if wanted != {layer for layer, _ in found.values()}:
        raise ValueError("the graph does not hold the layers that are given: is it of another model?")
    embed(loaded)
    for node in list(loaded.graph.node):
        if node.output[0] in found:
            multiply(loaded, node, *found[node.output[0]], given, level)
    used = {name for node in loaded.graph.node for name in node.input}
    kept = [tensor for tensor in loaded.graph.initializer if tensor.name in used]
    kept += [onnx.numpy_helper.from_array(value, name) for name, value in given.items()]
    del loaded.graph.initializer[:]
    loaded.graph.initializer.extend(kept)
    merge_products(loaded)
    for part in (*loaded.graph.node, *loaded.graph.value_info):  # where in the Python code it came from
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    names = {output: layer for output, (layer, _) in found.items()}
    loaded.metadata_props.add(key="layers", value=json.dumps(names))
    Path(out).mkdir(parents=True, exist_ok=True)
    onnx.save(loaded, Path(out) / "model.onnx", save_as_external_data=True, location="model.onnx.data",
              size_threshold=100)  # bytes: scales of the smallest layer are larger, shapes are not
    written = onnx.load(Path(out) / "model.onnx", load_external_data=False)
    places = dict(places_of(written))
    (Path(out) / "index.json").write_text(json.dumps(places, indent=1) + "\n", encoding="utf-8")
    unpack(written)
    onnx.save(written, Path(out) / "unpacked.onnx")
    return {"layers": len(places)}


def load_graph(model: str, graph: str | None) -> "onnx.ModelProto":
    """The FP32 graph, exported from the model's folder when there is none yet."""
    import onnx

    if graph:
        return onnx.load(graph)
    from onnx_export import export

    with tempfile.TemporaryDirectory() as aside:
        export(model, Path(aside) / "model.onnx")
        return onnx.load(Path(aside) / "model.onnx")


def find_products(graph: "onnx.ModelProto", model: str) -> dict[str, tuple[str, int]]:
    """The products with weights: name of the output -> (layer, number of inputs).

    Exporters give weights names of their own. So a layer is recognised by its FP32 numbers.
    """
    import onnx

    names = {fingerprint(weight): name for name, weight in matrices(model)}
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    found = {}
    for node in graph.graph.node:
        if node.op_type == "Gemm":
            found[node.output[0]] = HEAD, tensors[node.input[1]].dims[1]
        elif node.op_type == "MatMul" and node.input[1] in tensors:
            weight = onnx.numpy_helper.to_array(tensors[node.input[1]]).T
            found[node.output[0]] = names.get(fingerprint(weight), node.input[1]), weight.shape[1]
    return found


def matrices(model: str) -> Iterator[tuple[str, "np.ndarray"]]:
    """The matrices of a model's folder, without ".weight" in their names."""
    from safetensors import safe_open

    for file in sorted(Path(model).glob("*.safetensors")):
        with safe_open(file, "np") as opened:
            for name in opened.keys():
                weight = opened.get_tensor(name)
                if weight.ndim == 2:
                    yield name.removesuffix(".weight"), weight


def fingerprint(weight: "np.ndarray") -> str:
    """The same for equal matrices."""
    return hashlib.sha256(repr(weight.shape).encode() + weight.tobytes()).hexdigest()


def multiply(
    graph: "onnx.ModelProto", node: "onnx.NodeProto", layer: str, inner: int, given: dict, level: int
) -> None:
    """Put a MatMulNBits with the given integers in place of a product."""
    import onnx

    rows, blocks, nbytes = given[f"{layer}.integers"].shape
    block = inner // blocks
    new = onnx.helper.make_node(
        "MatMulNBits", [node.input[0], f"{layer}.integers", f"{layer}.scales"], list(node.output), layer,
        domain="com.microsoft", K=inner, N=rows, bits=8 * nbytes // block, block_size=block,
        accuracy_level=level)
    position = list(graph.graph.node).index(node)
    graph.graph.node.remove(node)
    graph.graph.node.insert(position, new)


def embed(graph: "onnx.ModelProto") -> None:
    """Look tokens up in the output layer's 8-bit integers: (integer - 128) x scale. They lie there once."""
    import numpy as np
    import onnx

    make, tensor = onnx.helper.make_node, onnx.numpy_helper.from_array
    table = next(node.input[1] for node in graph.graph.node if node.op_type == "Gemm")
    (gather,) = [node for node in graph.graph.node if node.op_type == "Gather" and node.input[0] == table]
    ids = gather.input[1]
    (width,) = [item.dims[1] for item in graph.graph.initializer if item.name == table]
    constants = {"row_offset": np.float32(128), "row_last": np.array([-1], np.int64),
                 "row_shape": np.array([0, 0, width], np.int64)}
    graph.graph.initializer.extend(tensor(np.asarray(value), name) for name, value in constants.items())
    nodes = [make("Gather", [f"{HEAD}.integers", ids], ["row_uint8"]),
             make("Gather", [f"{HEAD}.scales", ids], ["row_scales"]),
             make("Cast", ["row_uint8"], ["row_fp32"], to=onnx.TensorProto.FLOAT),
             make("Sub", ["row_fp32", "row_offset"], ["row_signed"]),
             make("Unsqueeze", ["row_scales", "row_last"], ["row_scale"]),
             make("Mul", ["row_signed", "row_scale"], ["row_blocks"]),
             make("Reshape", ["row_blocks", "row_shape"], list(gather.output))]
    position = list(graph.graph.node).index(gather)
    graph.graph.node.remove(gather)
    for i, node in enumerate(nodes):
        graph.graph.node.insert(position + i, node)


def places_of(loaded: "onnx.ModelProto") -> Iterator[tuple[str, dict]]:
    """What index.json says, read from the graph that was written."""
    import onnx

    layers = json.loads(next(item.value for item in loaded.metadata_props if item.key == "layers"))
    tensors = {tensor.name: tensor for tensor in loaded.graph.initializer}
    splits = {node.input[0]: node for node in loaded.graph.node if node.op_type == "Split"}
    for node in loaded.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        bits = next(item.i for item in node.attribute if item.name == "bits")
        outputs, sizes = list(node.output), [tensors[node.input[1]].dims[0]]
        if outputs[0] in splits:  # several layers in one: their rows follow each other
            split = splits[outputs[0]]
            outputs, sizes = list(split.output), onnx.numpy_helper.to_array(tensors[split.input[1]]).tolist()
        for i, (output, rows) in enumerate(zip(outputs, sizes, strict=True)):
            first = sum(sizes[:i])
            yield layers[output], {"bits": bits, "integers": place(tensors[node.input[1]], first, rows),
                                   "scales": place(tensors[node.input[2]], first, rows)}


def place(tensor: "onnx.TensorProto", first: int, rows: int) -> dict:
    """Where some rows of a tensor lie in the file of weights."""
    import math

    import onnx

    start = next(int(item.value) for item in tensor.external_data if item.key == "offset")
    size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return {"offset": start + first * math.prod(tensor.dims[1:]) * size,
            "shape": [rows, *tensor.dims[1:]]}


def unpack(graph: "onnx.ModelProto") -> None:
    """Spell each MatMulNBits out: (integers - offset) x scales, in FP32, then an ordinary product.

    All but the product reads nothing but weights. So a runtime computes it once, when it loads the graph, and
    keeps FP32 weights: more memory, and no unpacking for each token. That pays where a runtime has no kernel
    for packed integers. What it computes on the way is kept until the graph is loaded. So only the last step
    makes FP32 numbers: integers and scales are transposed while they are small.
    """
    import onnx

    make = onnx.helper.make_node
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    offsets = set()
    for node in [node for node in graph.graph.node if node.op_type == "MatMulNBits"]:
        settings = {item.name: item.i for item in node.attribute}
        rows, width, bits = settings["N"], settings["K"], settings["bits"]
        shape = [width // settings["block_size"], rows]
        kind = onnx.TensorProto.UINT4 if bits == 4 else onnx.TensorProto.UINT8
        matrix = graph.graph.initializer.add()  # the same bytes of the file, as a matrix of integers
        matrix.CopyFrom(tensors[node.input[1]])
        matrix.name, matrix.data_type, matrix.dims[:] = f"{node.name}.matrix", kind, [rows, width]
        offset = "offset_{}_{}_{}".format(bits, *shape)
        if offset not in offsets:
            offsets.add(offset)
            nbytes = shape[0] * shape[1] * bits // 8
            value = bytes([0x88 if bits == 4 else 0x80]) * nbytes  # 8, twice in a byte, or 128
            graph.graph.initializer.append(onnx.helper.make_tensor(offset, kind, shape, value, raw=True))
        inputs = [f"{node.name}.columns", f"{node.name}.column_scales", offset]
        nodes = [make("Transpose", [matrix.name], inputs[:1], perm=[1, 0]),
                 make("Transpose", [node.input[2]], inputs[1:2], perm=[1, 0]),
                 make("DequantizeLinear", inputs, [f"{node.name}.fp32"], axis=0,
                      block_size=settings["block_size"]),
                 make("MatMul", [node.input[0], f"{node.name}.fp32"], list(node.output), node.name)]
        position = list(graph.graph.node).index(node)
        graph.graph.node.remove(node)
        for i, new in enumerate(nodes):
            graph.graph.node.insert(position + i, new)
    used = {name for node in graph.graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.graph.initializer if tensor.name not in used]:
        graph.graph.initializer.remove(tensor)


if __name__ == "__main__":
    answer(lambda request: write(**request))
