"""Where a block keeps its attention and its MLP, in BERT and in Llama."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from course_utils.quantize.layerwise import find_blocks

ATTENTION = {  # module with the head counts; query, key, value, output
    "bert": ("attention.self",
             ("attention.self.query", "attention.self.key", "attention.self.value",
              "attention.output.dense")),
    "llama": ("self_attn",
              ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")),
}
MLP = {  # layers whose rows are the neurons; the layer whose columns are the neurons
    "bert": (("intermediate.dense",), "output.dense"),
    "llama": (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
}


@dataclass(frozen=True)
class Attention:
    """The attention of one block.

    Attributes:
        block: the block.
        module: the module inside it that knows how many heads there are.
        names: its four linear layers by name inside the block: query, key, value, output.
        head_dim: channels of one head.
    """

    block: nn.Module
    module: nn.Module
    names: tuple[str, str, str, str]
    head_dim: int

    @property
    def layers(self) -> tuple[nn.Linear, ...]:
        """The linear layers (query, key, value, output)."""
        return tuple(self.block.get_submodule(name) for name in self.names)

    @property
    def output(self) -> nn.Linear:
        """The linear layer that mixes what the heads put out, [hidden, heads * head_dim]."""
        return self.layers[3]

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self.layers[0].out_features // self.head_dim

    @property
    def kv_heads(self) -> int:
        """Number of key-value heads."""
        return self.layers[1].out_features // self.head_dim

    @property
    def group(self) -> int:
        """Query heads that share a key-value head, 1 without GQA. Head h reads key-value head h // group."""
        return self.heads // self.kv_heads


def attentions(model: nn.Module) -> list[Attention]:
    """The attention of each block, in order.

    Args:
        model: a BERT or a decoder of the Llama architecture.

    Returns:
        One a block.

    Raises:
        ValueError: for architectures not known here.
    """
    module_name, names = ATTENTION[family_of(model)]
    found = []
    for _, block in find_blocks(model):
        module = block.get_submodule(module_name)
        head_dim = getattr(module, "head_dim", None) or module.attention_head_size
        found.append(Attention(block, module, names, head_dim))
    return found


def mlp_outputs(model: nn.Module) -> list[nn.Linear]:
    """The last linear layer of each block's MLP: its input channels are the neurons.

    Args:
        model: a BERT or a decoder of the Llama architecture.

    Returns:
        One a block, weight [hidden, neurons].

    Raises:
        ValueError: for architectures not known here.
    """
    last = MLP[family_of(model)][1]
    return [block.get_submodule(last) for _, block in find_blocks(model)]


def family_of(model: nn.Module) -> str:
    """Which architecture a model's blocks have.

    Args:
        model: any model with blocks.

    Returns:
        "bert" or "llama": a key of ATTENTION and MLP.

    Raises:
        ValueError: for architectures not known here.
    """
    blocks = [dict(block.named_modules()) for _, block in find_blocks(model)]
    for family, (_, layers) in ATTENTION.items():
        names = (*layers, *MLP[family][0], MLP[family][1])
        if all(isinstance(modules.get(name), nn.Linear) for modules in blocks for name in names):
            return family
    kind = type(find_blocks(model)[0][1]).__name__
    raise ValueError(f"{kind} is not built like a BERT or Llama block; give one of these")
