"""A Llama-like model as a TVM program: what torch.export traces, with the loops of tvm_kernels.py in it.

Inputs and outputs are those of the ONNX graph (onnx_export.py), without its mask: input_ids int64 [batch,
tokens]; kept int64 [n]; a key and a value tensor for each layer, FP32 [batch, KV heads, past, head dim]. Then
come the weights.
"""

import math

import torch
import tvm_kernels
from transformers import AttentionInterface, AutoModelForCausalLM
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

# Three operators that torch only traces: it needs the shapes of what they give. TVM computes them.


@torch.library.custom_op("course::linear", mutates_args=())
def linear(x: torch.Tensor, panels: torch.Tensor) -> torch.Tensor:
    """x [..., inputs] times the weights in panels: [..., outputs]."""
    raise NotImplementedError


@torch.library.custom_op("course::embedding", mutates_args=())
def embedding(ids: torch.Tensor, panels: torch.Tensor) -> torch.Tensor:
    """Rows of the matrix that the panels hold."""
    raise NotImplementedError


@torch.library.custom_op("course::attention", mutates_args=())
def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal attention of the newest tokens: [batch, tokens, heads, width]."""
    raise NotImplementedError


linear.register_fake(lambda x, panels: x.new_empty(*x.shape[:-1], panels.shape[0] * panels.shape[2]))
embedding.register_fake(lambda ids, panels: panels.new_empty(*ids.shape, panels.shape[1]))
attention.register_fake(lambda q, k, v, _: q.new_empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3]))
AttentionInterface.register(
    "course", lambda module, q, k, v, mask, scaling, **_: (attention(q, k, v, scaling), None))


class Panels(torch.nn.Module):
    """A weight in panels, and the operator that reads it."""

    def __init__(self, weight, operator):
        super().__init__()
        self.weight, self.operator = weight, operator

    def forward(self, x):
        return self.operator(x, self.weight)


def in_panels(weight):
    """[outputs, inputs] as [outputs / LANES, inputs, LANES]: what is read together lies together.

    Outputs are filled up with zero rows to a multiple of LANES.
    """
    rows = -(-len(weight) // tvm_kernels.LANES) * tvm_kernels.LANES
    weight = torch.nn.functional.pad(weight.detach(), (0, 0, 0, rows - len(weight)))
    panels = weight.view(-1, tvm_kernels.LANES, weight.shape[1]).transpose(1, 2).contiguous()
    return torch.nn.Parameter(panels, requires_grad=False)


class Cache:
    """Keys and values of all layers as a list of tensors, in the form that transformers asks for."""

    def __init__(self, past):
        self.tensors = list(past)

    def update(self, keys, values, layer, *_, **__):
        for i, new in ((2 * layer, keys), (2 * layer + 1, values)):
            self.tensors[i] = torch.cat([self.tensors[i], new], dim=2)
        return self.tensors[2 * layer], self.tensors[2 * layer + 1]


class WithCache(torch.nn.Module):
    """The model with its cache as plain tensors."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, kept, past):
        cache = Cache(past)
        positions = torch.arange(input_ids.shape[1]) + past[0].shape[2]
        hidden = self.model.model(input_ids=input_ids, position_ids=positions[None], past_key_values=cache,
                                  use_cache=True).last_hidden_state
        return [self.model.lm_head(hidden[:, kept]), *cache.tensors]


def trace(folder):
    """(what torch.export traces of the model in this folder, the model's config).

    Raises ValueError for a model that the loops of tvm_kernels.py would compute wrongly.
    """
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, attn_implementation="course").eval()
    _refuse(model)
    config, head = model.config, in_panels(model.lm_head.weight)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear):
                weight = head if child is model.lm_head else in_panels(child.weight)
                setattr(module, name, Panels(weight, linear))
    if not config.tie_word_embeddings:
        head = in_panels(model.model.embed_tokens.weight)
    model.model.embed_tokens = Panels(head, embedding)
    width = head_width(config)
    past = [torch.randn(2, config.num_key_value_heads, 5, width) for _ in range(2 * config.num_hidden_layers)]
    example = torch.arange(2 * 3).view(2, 3), torch.tensor([0, 2]), past
    batch, new, kept, seen = map(torch.export.Dim, ("batch", "new", "kept", "seen"))
    shapes = {0: batch, 1: new}, {0: kept}, [{0: batch, 2: seen}] * len(past)
    with torch.no_grad():
        return torch.export.export(WithCache(model), example, dynamic_shapes=shapes), config


def head_width(config):
    """Numbers in a key or a value of one head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _refuse(model):
    """Raise ValueError unless the panels can hold this model."""
    if not hasattr(model, "model") or not hasattr(model, "lm_head"):
        raise ValueError(f"{type(model).__name__} is not built like a Llama")
    lanes, width = tvm_kernels.LANES, head_width(model.config)
    if width % lanes:
        raise ValueError(f"heads are {width} wide, and must be a multiple of {lanes}")
    for name, layer in model.named_modules():
        if not isinstance(layer, torch.nn.Linear):
            continue
        if layer.bias is not None:
            raise ValueError(f"{name} has a bias, which the panels leave out")
        if layer.out_features % lanes and layer is not model.lm_head:
            raise ValueError(f"{name} has {layer.out_features} outputs, not a multiple of {lanes}")


def to_relax(exported):
    """(TVM's module, its weights in the order of the arguments) of a traced model."""
    operators = {"linear.default": _linear, "embedding.default": _embedding, "attention.default": _attention}
    module = from_exported_program(exported, keep_params_as_input=True, custom_convert_map=operators)
    module, weights = relax.frontend.detach_params(module)
    return module, weights["main"]


def _linear(node, importer):
    x, panels = (importer.env[argument] for argument in node.args)
    count, inputs, lanes = (int(size) for size in panels.ty.shape)
    kernel = tvm_kernels.linear(inputs, count * lanes)
    return _by_row(importer, kernel, "linear", x, panels, list(x.ty.shape)[:-1], [inputs], [count * lanes])


def _embedding(node, importer):
    ids, panels = (importer.env[argument] for argument in node.args)
    count, inputs, lanes = (int(size) for size in panels.ty.shape)
    kernel = tvm_kernels.embedding(inputs, count * lanes)
    return _by_row(importer, kernel, "embedding", ids, panels, list(ids.ty.shape), [], [inputs])


def _by_row(importer, kernel, name, x, panels, outer, taken, given):
    """The kernel on all rows of x: the outer dimensions become one, and come back afterwards."""
    rows = math.prod(outer, start=1)
    x = importer.block_builder.emit(relax.op.reshape(x, [rows, *taken]))
    y = _call(importer, kernel, name, [x, panels], relax.TensorType([rows, *given], "float32"))
    return importer.block_builder.emit(relax.op.reshape(y, [*outer, *given]))


def _attention(node, importer):
    q, k, v = (importer.env[argument] for argument in node.args[:3])
    batch, heads, new, width = q.ty.shape
    groups, total = k.ty.shape[1], k.ty.shape[2]
    kernel = tvm_kernels.attention(int(heads), int(groups), int(width), node.args[3])
    shapes = [batch, new, heads, width], [batch, heads, total]
    given = [relax.TensorType(shape, "float32") for shape in shapes]
    return importer.block_builder.emit(_call(importer, kernel, "attention", [q, k, v], given)[0])


def _call(importer, kernel, name, inputs, outputs):
    builder = importer.block_builder
    return builder.emit(relax.call_tir(builder.add_func(kernel, name), inputs, outputs))
