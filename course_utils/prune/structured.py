"""Structured pruning: whole attention heads and whole MLP neurons are cut out, and the matrices get smaller.

    scores = head_ablation(model, loss)              how much worse the model gets without each head
    scores = head_gradient(model, batches, loss)     the same, estimated from one backward pass
    keep_heads(model, kept_overall(scores, 24))      slice Q, K, V rows and O columns; update the config
    save(model, folder)                              a folder that transformers loads

Works for BERT and for decoders of the Llama architecture, with as many key-value heads as query heads (MHA)
or fewer (grouped-query attention, GQA). Removing whole blocks is in course_utils.prune.depth.

Sources: P. Michel, O. Levy, G. Neubig, "Are Sixteen Heads Really Better than One?", arXiv 1905.10650, for the
importance of heads; J. Ainslie et al., "GQA", arXiv 2305.13245, for which query heads share a key-value head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from course_utils.prune.pruned_bert import PrunedBertForSequenceClassification
from course_utils.quantize.layerwise import find_blocks

# ---- where a block keeps its attention and its MLP -------------------------------------------------------

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
    """The attention of one block: its module, its four linear layers, and how they are cut into heads."""

    block: nn.Module
    module: nn.Module
    names: tuple[str, str, str, str]
    head_dim: int

    @property
    def layers(self) -> tuple[nn.Linear, ...]:
        """(query, key, value, output)"""
        return tuple(self.block.get_submodule(name) for name in self.names)

    @property
    def output(self) -> nn.Linear:
        return self.layers[3]

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.layers[0].out_features // self.head_dim

    @property
    def kv_heads(self) -> int:
        return self.layers[1].out_features // self.head_dim

    @property
    def group(self) -> int:
        """Query heads that share a key-value head, 1 without GQA. Head h reads key-value head h // group."""
        return self.heads // self.kv_heads


def attentions(model: nn.Module) -> list[Attention]:
    """The attention of each block, in order. Raises ValueError for architectures not known here."""
    module_name, names = ATTENTION[_family(model)]
    found = []
    for _, block in find_blocks(model):
        module = block.get_submodule(module_name)
        head_dim = getattr(module, "head_dim", None) or module.attention_head_size
        found.append(Attention(block, module, names, head_dim))
    return found


def mlp_outputs(model: nn.Module) -> list[nn.Linear]:
    """The last linear layer of each block's MLP: its input channels are the neurons."""
    last = MLP[_family(model)][1]
    return [block.get_submodule(last) for _, block in find_blocks(model)]


def _family(model: nn.Module) -> str:
    block = find_blocks(model)[0][1]
    names = {name for name, _ in block.named_modules()}
    for family, (_, layers) in ATTENTION.items():
        if names.issuperset(layers) and names.issuperset((*MLP[family][0], MLP[family][1])):
            return family
    raise ValueError(f"{type(block).__name__} is not built like a BERT or Llama block; give one of these")


# ---- slicing linear layers -------------------------------------------------------------------------------


def keep_rows(linear: nn.Linear, rows: list[int]) -> nn.Linear:
    """A new linear layer with only these outputs: rows of the weight, and their biases."""
    bias = None if linear.bias is None else linear.bias.detach()[rows].clone()
    return _linear(linear.weight.detach()[rows].clone(), bias, linear.weight.requires_grad)


def keep_columns(linear: nn.Linear, columns: list[int]) -> nn.Linear:
    """A new linear layer with only these inputs: columns of the weight. The bias stays whole."""
    bias = None if linear.bias is None else linear.bias.detach().clone()
    return _linear(linear.weight.detach()[:, columns].clone(), bias, linear.weight.requires_grad)


def _linear(weight: Tensor, bias: Tensor | None, trainable: bool) -> nn.Linear:
    """A linear layer of these tensors [out, in] and [out]: a copy, so that the old ones can be freed."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=trainable)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=trainable)
    return layer


def slice_heads(query, key, value, output, keep, head_dim):
    """Four new linear layers that have only some of the heads.

    query    nn.Linear [heads * head_dim, hidden]; key and value: nn.Linear [kv_heads * head_dim, hidden]
    output   nn.Linear [hidden, heads * head_dim]; all four with or without a bias
    keep     indices of the key-value heads that stay, in ascending order
    head_dim rows of one head; head h has the rows from h * head_dim on

    With fewer key-value heads than query heads (GQA), each key-value head serves `group` neighbouring query
    heads: the first one serves query heads 0 to group - 1. They stay or go together.
    Returns (query, key, value, output), in this order. The layers given are not changed.
    """
    group = query.out_features // key.out_features
    of_key = [head * head_dim + i for head in keep for i in range(head_dim)]
    of_query = [head * group * head_dim + i for head in keep for i in range(group * head_dim)]
    return (keep_rows(query, of_query), keep_rows(key, of_key), keep_rows(value, of_key),
            keep_columns(output, of_query))


# ---- gates: what a model computes without some heads or neurons ------------------------------------------


@contextmanager
def gated(layers: Sequence[nn.Linear], gates: Sequence[Tensor]) -> Iterator[None]:
    """Inside the block, the inputs of each layer are multiplied by gates. Nothing gets smaller or faster.

    layers  linear layers, such as the output layers of the attentions, or mlp_outputs(model)
    gates   a tensor [n] for each layer: its input channels are cut into n equal parts, and part i is
            multiplied by gate i. One gate a head silences heads; one gate a channel silences neurons
    """
    if len(layers) != len(gates):
        raise ValueError(f"{len(gates)} rows of gates do not fit {len(layers)} layers")
    for layer, gate in zip(layers, gates, strict=True):
        if gate.ndim != 1 or len(gate) == 0 or layer.in_features % len(gate):
            raise ValueError(f"gates of shape {list(gate.shape)} do not cut {layer.in_features} input "
                             "channels into equal parts")

    def multiply(gate: Tensor):
        def hook(_, args):
            x = args[0]
            parts = x.unflatten(-1, (len(gate), -1)) * gate.to(x)[:, None]
            return (parts.flatten(-2),)

        return hook

    hooks = [layer.register_forward_pre_hook(multiply(gate))
             for layer, gate in zip(layers, gates, strict=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def gates_of(kept: Sequence[Sequence[int]], total: Sequence[int]) -> list[Tensor]:
    """For each block a tensor [total]: 1 for the indices that are kept, 0 for the others."""
    gates = []
    for indices, n in zip(kept, total, strict=True):
        gate = torch.zeros(n)
        gate[list(indices)] = 1
        gates.append(gate)
    return gates


# ---- importance ------------------------------------------------------------------------------------------


def head_importance(output, gradient, head_dim):
    """How much the loss depends on each head, to first order.

    output    float tensor [examples, tokens, heads * head_dim]: what the heads put out, side by side
    gradient  the same shape: the gradient of each example's own loss with respect to `output`
    head_dim  channels of one head

    Put a gate xi = 1 on a head, output * xi. The derivative of the loss by xi is the sum of
    output * gradient over the head's tokens and channels. Its absolute value is taken for each example, and
    then the mean over the examples. Returns a float tensor [heads].
    Source: arXiv 1905.10650, section 4.1.
    """
    by_head = (output * gradient).unflatten(-1, (-1, head_dim))  # [examples, tokens, heads, head_dim]
    by_gate = by_head.sum(dim=(1, 3))
    return by_gate.abs().mean(dim=0)


def head_gradient(model: nn.Module, batches: Iterable, loss: Callable, query_heads: bool = False) -> Tensor:
    """Importance of each key-value head (without GQA: of each head) by gradient. One backward pass a batch.

    batches  anything `loss` understands; each is used once
    loss     loss(batch) -> scalar tensor: the *sum* of the losses of the batch's examples, through the model
    query_heads  score each query head by itself

    Returns a float tensor [blocks, kv_heads], or [blocks, heads], on the CPU. With GQA a key-value head and
    the query heads that read it otherwise count as one wide head. The model's weights get no gradients, so
    this needs little memory.
    """
    layout = attentions(model)
    width = [attention.head_dim * (1 if query_heads else attention.group) for attention in layout]
    heads = {attention.output.in_features // one for attention, one in zip(layout, width, strict=True)}
    if len(heads) > 1:
        raise ValueError("the blocks have different numbers of heads already; score them before removing any")
    total, examples = torch.zeros(len(layout), heads.pop()), 0
    with _weights_frozen(model):
        for batch in batches:
            with _inputs_of([attention.output for attention in layout]) as seen:
                value = loss(batch)
            gradients = torch.autograd.grad(value, seen)
            for i, (x, g) in enumerate(zip(seen, gradients, strict=True)):
                total[i] += head_importance(x.detach().float(), g.float(), width[i]).cpu() * len(x)
            examples += len(seen[0])
    if not examples:
        raise ValueError("there are no batches to take gradients on; give at least one")
    return total / examples


def head_ablation(model: nn.Module, loss: Callable[[], float], progress: bool = True) -> Tensor:
    """Importance of each key-value head by trying it out: by how much the loss rises without this head.

    loss   loss() -> float, computed through the model; called once for each head, and once for all
    Returns a float tensor [blocks, kv_heads]; negative where the model is better without the head.
    """
    layout = attentions(model)
    outputs = [attention.output for attention in layout]
    counts = [attention.kv_heads for attention in layout]
    if len(set(counts)) > 1:
        raise ValueError("the blocks have different numbers of heads already; score them before removing any")
    rise = torch.zeros(len(layout), counts[0])
    with torch.no_grad():
        base = loss()
        for i, h in tqdm([(i, h) for i in range(len(layout)) for h in range(counts[0])], "ablating",
                         unit="head", leave=False, disable=not progress):
            gate = torch.ones(counts[i])
            gate[h] = 0
            with gated([outputs[i]], [gate]):
                rise[i, h] = loss() - base
    return rise


def neuron_importance(model: nn.Module, run: Callable[[], object]) -> Tensor:
    """Importance of each MLP neuron, float [blocks, neurons]: mean |activation| times its column's length.

    run   run() sends text through the model, once

    A neuron j adds activation_j * (column j of the last MLP layer) to the stream: this is the mean length of
    what it adds. It is Wanda's score (arXiv 2306.11695) with the weights of a column taken together, and the
    mean absolute activation in place of the root mean square.
    """
    layers = mlp_outputs(model)
    sums, seen = [torch.zeros(layer.in_features) for layer in layers], [0] * len(layers)

    def watch(i):
        def hook(_, args):
            x = args[0].detach().float().flatten(0, -2)
            sums[i] += x.abs().sum(dim=0).cpu()
            seen[i] += len(x)

        return hook

    hooks = [layer.register_forward_pre_hook(watch(i)) for i, layer in enumerate(layers)]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    if not min(seen):
        raise ValueError("run() sent nothing through the model's MLPs; it must call the model")
    columns = [layer.weight.detach().float().norm(dim=0).cpu() for layer in layers]
    return torch.stack([total / n * column for total, n, column in zip(sums, seen, columns, strict=True)])


@contextmanager
def _inputs_of(layers: Sequence[nn.Linear]) -> Iterator[list[Tensor]]:
    """Collects the input of each layer, in the order of the calls, ready for torch.autograd.grad."""
    seen: list[Tensor] = []

    def keep(_, args):
        if not args[0].requires_grad:  # nothing before it needs gradients: begin here
            args[0].requires_grad_()
        seen.append(args[0])

    hooks = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _weights_frozen(model: nn.Module) -> Iterator[None]:
    """Inside the block no parameter needs a gradient, and the model is in eval mode."""
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    training = model.training
    model.requires_grad_(False).eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        model.train(training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted[name])


# ---- which to keep ---------------------------------------------------------------------------------------


def kept_in_each(scores: Tensor, keep: int) -> list[list[int]]:
    """In each row of scores [blocks, n], the indices of the `keep` highest, in ascending order.

    Every block keeps the same number: the only choice for Llama, whose config has one head count for all.
    """
    if not 1 <= keep <= scores.shape[1]:
        raise ValueError(f"keep must be from 1 to {scores.shape[1]}, not {keep}")
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :keep]
    return [sorted(row) for row in order.tolist()]


def kept_in_groups(scores: Tensor, groups: int, keep: int) -> list[list[int]]:
    """As `kept_in_each`, but the row is cut into equal groups and `keep` stay in each: the pattern of GQA.

    scores  float [blocks, heads]; groups: key-value heads; keep: query heads left for each of them
    """
    if scores.shape[1] % groups:
        raise ValueError(f"{scores.shape[1]} heads do not fall into {groups} equal groups")
    size = scores.shape[1] // groups
    by_group = kept_in_each(scores.reshape(-1, size), keep)
    return [[g * size + head for g in range(groups) for head in by_group[block * groups + g]]
            for block in range(len(scores))]


def kept_overall(scores: Tensor, remove: int, at_least: int = 1) -> list[list[int]]:
    """What is left in each block when the `remove` lowest of all scores [blocks, n] go, in ascending order.

    at_least  so many stay in each block, whatever their scores
    Raises ValueError when so many cannot go.
    """
    blocks, n = scores.shape
    if not 0 <= remove <= blocks * (n - at_least):
        raise ValueError(f"remove must be from 0 to {blocks * (n - at_least)}: {blocks} blocks of {n}, "
                         f"each keeps {at_least} at least")
    kept = [list(range(n)) for _ in range(blocks)]
    for flat in scores.flatten().argsort(stable=True).tolist():
        block, index = divmod(flat, n)
        if remove and len(kept[block]) > at_least:
            kept[block].remove(index)
            remove -= 1
    return kept


# ---- cutting ---------------------------------------------------------------------------------------------


def keep_heads(model: nn.Module, kept: Sequence[Sequence[int]]) -> None:
    """Cut heads out of each block, in place: `kept[i]` lists the key-value heads that block i keeps.

    Without GQA these are simply the heads. With GQA the query heads that read a key-value head go with it.
    The config follows: a Llama model stays one that plain transformers loads, so each block must keep the
    same number. In BERT the numbers may differ; `save` says how such a folder is loaded.

    Raises ValueError, before anything is changed, for an index out of range or twice, a block without heads,
    or numbers that the config cannot express.
    """
    layout = attentions(model)
    kept = _checked(kept, [attention.kv_heads for attention in layout], "key-value head")
    if _family(model) == "llama":
        _check_llama(model.config, [len(heads) * a.group for heads, a in zip(kept, layout, strict=True)])
    group = layout[0].group
    for attention, heads in zip(layout, kept, strict=True):
        _replace(attention, slice_heads(*attention.layers, heads, attention.head_dim))
    _tell_config(model, [len(heads) * group for heads in kept], [len(heads) for heads in kept])


def keep_query_heads(model: nn.Module, kept: Sequence[Sequence[int]]) -> None:
    """Cut query heads out of a GQA model, in place, and leave the keys and values whole.

    kept[i] lists the query heads that block i keeps. Each key-value head must keep the same number of its
    query heads, one at least: after the cut, head h reads key-value head h // (heads left per group) again.

    Raises ValueError, before anything is changed, for a broken pattern, and as `keep_heads` does.
    """
    layout = attentions(model)
    kept = _checked(kept, [attention.heads for attention in layout], "query head")
    for i, (attention, heads) in enumerate(zip(layout, kept, strict=True)):
        left = [sum(head // attention.group == g for head in heads) for g in range(attention.kv_heads)]
        if len(set(left)) > 1 or not left[0]:
            raise ValueError(f"block {i} would keep {left} query heads for its {attention.kv_heads} "
                             "key-value heads; the model needs equally many for each, and one at least")
    if _family(model) == "bert":
        raise ValueError("BERT has one key for each query head; use keep_heads")
    _check_llama(model.config, [len(heads) for heads in kept])
    for attention, heads in zip(layout, kept, strict=True):
        query, key, value, output = attention.layers
        channels = [head * attention.head_dim + i for head in heads for i in range(attention.head_dim)]
        _replace(attention, (keep_rows(query, channels), key, value, keep_columns(output, channels)))
    _tell_config(model, [len(heads) for heads in kept], [attention.kv_heads for attention in layout])


def keep_neurons(model: nn.Module, kept: Sequence[Sequence[int]]) -> None:
    """Cut neurons out of each block's MLP, in place: kept[i] lists the neurons that block i keeps.

    Each block must keep the same number (config.intermediate_size). Raises ValueError as `keep_heads`.
    """
    rows, columns = MLP[_family(model)]
    blocks = [block for _, block in find_blocks(model)]
    kept = _checked(kept, [block.get_submodule(columns).in_features for block in blocks], "neuron")
    width = _same_number([len(neurons) for neurons in kept], "neurons (config.intermediate_size)")
    for block, neurons in zip(blocks, kept, strict=True):
        for name in rows:
            block.set_submodule(name, keep_rows(block.get_submodule(name), neurons))
        block.set_submodule(columns, keep_columns(block.get_submodule(columns), neurons))
        if hasattr(block, "mlp") and hasattr(block.mlp, "intermediate_size"):
            block.mlp.intermediate_size = width
    model.config.intermediate_size = width


@contextmanager
def putting_back(model: nn.Module) -> Iterator[nn.Module]:
    """Whatever the block of code cuts out of the model is there again afterwards. Nothing is copied.

    Cutting makes new, smaller layers, so it is enough to remember which layers stood where. While it is in
    use, the old layers stay in memory. Changes of weights in place are not undone.
    """
    children = [(module, dict(module._modules)) for module in model.modules()]
    attributes = [(module, {name: value for name, value in vars(module).items() if isinstance(value, int)})
                  for module in model.modules()]
    config = dict(vars(model.config))
    try:
        yield model
    finally:
        for module, modules in children:
            module._modules.clear()
            module._modules.update(modules)
        for module, values in attributes:
            module.__dict__.update(values)
        vars(model.config).clear()
        vars(model.config).update(config)


def _checked(kept, totals: list[int], what: str) -> list[list[int]]:
    """The indices as sorted lists, after all checks that every kind of cut shares."""
    if len(kept) != len(totals):
        raise ValueError(f"the model has {len(totals)} blocks, but indices were given for {len(kept)}")
    result = []
    for i, (indices, total) in enumerate(zip(kept, totals, strict=True)):
        indices = sorted(int(index) for index in indices)
        if not indices:
            raise ValueError(f"block {i} would keep no {what}; keep one at least, or remove the whole block "
                             "with depth.remove_blocks")
        if len(set(indices)) < len(indices):
            raise ValueError(f"block {i}: a {what} is listed twice in {indices}")
        outside = [index for index in indices if not 0 <= index < total]
        if outside:
            raise ValueError(f"block {i} has no {what} {outside[0]}: they are numbered 0 to {total - 1}")
        result.append(indices)
    return result


def _same_number(counts: list[int], what: str) -> int:
    if len(set(counts)) > 1:
        raise ValueError(f"the config has one number of {what} for all blocks, but the blocks would keep "
                         f"{sorted(set(counts))}")
    return counts[0]


def _check_llama(config, heads: list[int]) -> None:
    count = _same_number(heads, "query heads")
    if config.hidden_size % count:
        fitting = [n for n in range(1, config.num_attention_heads + 1) if config.hidden_size % n == 0]
        raise ValueError(f"transformers refuses {count} heads at hidden size {config.hidden_size}, which "
                         f"they do not divide; possible are {', '.join(map(str, fitting))}")


def _replace(attention: Attention, layers: Sequence[nn.Linear]) -> None:
    for name, layer in zip(attention.names, layers, strict=True):
        attention.block.set_submodule(name, layer)


def _tell_config(model: nn.Module, heads: list[int], kv_heads: list[int]) -> None:
    """Write the numbers of heads where the model's forward pass, and the next load, look for them."""
    config = model.config
    for attention, query_heads, keys in zip(attentions(model), heads, kv_heads, strict=True):
        if _family(model) == "bert":
            attention.module.num_attention_heads = query_heads
            attention.module.all_head_size = query_heads * attention.head_dim
        else:
            attention.module.num_key_value_groups = query_heads // keys
    if _family(model) == "bert":
        # BertConfig derives the head size as hidden_size / num_attention_heads: that number must stay.
        config.heads_per_layer = heads
    else:
        config.head_dim = attentions(model)[0].head_dim  # no longer hidden_size / heads
        config.num_attention_heads, config.num_key_value_heads = heads[0], kv_heads[0]


# ---- saving ----------------------------------------------------------------------------------------------


def save(model: nn.Module, folder: str | Path) -> None:
    """Save a pruned model as a folder that transformers loads.

    Llama, and BERT with whole heads: `from_pretrained(folder)`, nothing else is needed.
    BERT that has lost heads: BertConfig cannot say so, because it derives the head size from the number of
    heads. The folder gets the file pruned_bert.py beside the weights, and
    `AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)` builds the model with
    it: transformers' way for models that it does not know. No part of this course is needed to load it.

    Raises ValueError for a BERT without heads that is no sequence classifier.
    """
    if getattr(model.config, "heads_per_layer", None) is None:
        model.save_pretrained(folder)
        return
    if not hasattr(model, "classifier") or not hasattr(model, "bert"):
        raise ValueError(f"only BERT sequence classifiers can be saved with fewer heads, not "
                         f"{type(model).__name__}")
    with torch.device("meta"):
        shell = PrunedBertForSequenceClassification(model.config)
    shell.load_state_dict(model.state_dict(), assign=True)  # the same tensors: nothing is copied
    PrunedBertForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
    shell.save_pretrained(folder)
