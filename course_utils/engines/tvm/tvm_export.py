"""A Llama-like model as a TVM program: what torch.export traces, with the loops of tvm_kernels.py in it.

Inputs and outputs are those of the ONNX graph (onnx_export.py), without its mask: input_ids int64 [batch,
tokens]; kept int64 [n]; a key and a value tensor for each layer, FP32 [batch, KV heads, past, head dim]. Then
come the weights.
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import tvm_kernels
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from tvm import IRModule, relax
from tvm.relax.frontend.torch import from_exported_program

# Three operators that torch only traces: it needs the shapes of what they give. TVM computes them.


@torch.library.custom_op("course::linear", mutates_args=())
def linear(x: torch.Tensor, panels: torch.Tensor) -> torch.Tensor:
    """Multiply x [..., inputs] by the weights in panels: [..., outputs]."""
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

    def __init__(self, weight: torch.nn.Parameter, operator: Callable) -> None:
        super().__init__()
        self.weight, self.operator = weight, operator

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What the operator makes of x and the weight."""
        return self.operator(x, self.weight)


def in_panels(weight: torch.Tensor) -> torch.nn.Parameter:
    """A weight [outputs, inputs] as [outputs / LANES, inputs, LANES]: what is read together lies together.

    Outputs are filled up with zero rows to a multiple of LANES.
    """
    rows = -(-len(weight) // tvm_kernels.LANES) * tvm_kernels.LANES
    weight = torch.nn.functional.pad(weight.detach(), (0, 0, 0, rows - len(weight)))
    panels = weight.view(-1, tvm_kernels.LANES, weight.shape[1]).transpose(1, 2).contiguous()
    return torch.nn.Parameter(panels, requires_grad=False)


class Cache:
    """Keys and values of all layers as a list of tensors, in the form that transformers asks for."""

    def __init__(self, past: Iterable[torch.Tensor]) -> None:
        self.tensors = list(past)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a layer's new keys and values [batch, KV heads, tokens, width]; give all of them back."""
        for i, new in ((2 * layer, keys), (2 * layer + 1, values)):
            self.tensors[i] = torch.cat([self.tensors[i], new], dim=2)
        return self.tensors[2 * layer], self.tensors[2 * layer + 1]


class WithCache(torch.nn.Module):
    """The model with its cache as plain tensors."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, kept: torch.Tensor, past: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Logits at the positions `kept`, then the cache; shapes as at the top of this file."""
        cache = Cache(past)
        positions = torch.arange(input_ids.shape[1]) + past[0].shape[2]
        hidden = self.model.model(input_ids=input_ids, position_ids=positions[None], past_key_values=cache,
                                  use_cache=True).last_hidden_state
        return [self.model.lm_head(hidden[:, kept]), *cache.tensors]


def trace(folder: str | Path) -> tuple[torch.export.ExportedProgram, PreTrainedConfig]:
    """What torch.export traces of the model in this folder, and the model's config.

    Raises:
        ValueError: the loops of tvm_kernels.py would compute this model wrongly.
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


def head_width(config: PreTrainedConfig) -> int:
    """Numbers in a key or a value of one head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _refuse(model: PreTrainedModel) -> None:
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


def to_relax(exported: torch.export.ExportedProgram) -> tuple[IRModule, list]:
    """A traced model as TVM's module, and its weights in the order of the arguments."""
    operators = {"linear.default": _linear, "embedding.default": _embedding, "attention.default": _attention}
    module = from_exported_program(exported, keep_params_as_input=True, custom_convert_map=operators)
    module, weights = relax.frontend.detach_params(module)
    return module, weights["main"]


def _linear(node: torch.fx.Node, importer: Any) -> relax.Var:
    x, panels = (importer.env[argument] for argument in node.args)
    count, inputs, lanes = (int(size) for size in panels.ty.shape)
    kernel = tvm_kernels.linear(inputs, count * lanes)
    return _by_row(importer, kernel, "linear", x, panels, list(x.ty.shape)[:-1], [inputs], [count * lanes])


def _embedding(node: torch.fx.Node, importer: Any) -> relax.Var:
    ids, panels = (importer.env[argument] for argument in node.args)
    count, inputs, lanes = (int(size) for size in panels.ty.shape)
    kernel = tvm_kernels.embedding(inputs, count * lanes)
    return _by_row(importer, kernel, "embedding", ids, panels, list(ids.ty.shape), [], [inputs])


def _by_row(
    importer: Any, kernel: Any, name: str, x: relax.Expr, panels: relax.Expr, outer: list, taken: list,
    given: list,
) -> relax.Var:
    """The kernel on all rows of x: the outer dimensions become one, and come back afterwards."""
    rows = math.prod(outer, start=1)
    x = importer.block_builder.emit(relax.op.reshape(x, [rows, *taken]))
    y = _call(importer, kernel, name, [x, panels], relax.TensorType([rows, *given], "float32"))
    return importer.block_builder.emit(relax.op.reshape(y, [*outer, *given]))


def _attention(node: torch.fx.Node, importer: Any) -> relax.Var:
    q, k, v = (importer.env[argument] for argument in node.args[:3])
    batch, heads, new, width = q.ty.shape
    groups, total = k.ty.shape[1], k.ty.shape[2]
    kernel = tvm_kernels.attention(int(heads), int(groups), int(width), node.args[3])
    shapes = [batch, new, heads, width], [batch, heads, total]
    given = [relax.TensorType(shape, "float32") for shape in shapes]
    return importer.block_builder.emit(_call(importer, kernel, "attention", [q, k, v], given)[0])


def _call(importer: Any, kernel: Any, name: str, inputs: list, outputs: Any) -> relax.Call:
    builder = importer.block_builder
    return builder.emit(relax.call_tir(builder.add_func(kernel, name), inputs, outputs))
