"""The models of the table before and after: each made by an earlier lesson's functions, packed, and cached.

A recipe says how a model is made from the full one and what that takes: text, training, and the kernels
without which fewer bytes are no faster. `make` follows it; `load` keeps what took long in the cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from course_utils import data, distill, measure, models
from course_utils.cache import cached_folder
from course_utils.merge import methods
from course_utils.prune import depth, sparsegpt
from course_utils.quantize import awq, gptq, packed
from course_utils.quantize.affine import Quantized, Scheme

VERSION = "1"  # raise it when a recipe makes something else
INT4, INT8 = Scheme(4, 64, symmetric=False), Scheme(8)
CALIBRATION_TOKENS, WINDOW = 8192, 512
BLOCKS_CUT, HEALING_STEPS = 3, 64
NO_TEXT, TEXT, REVIEWS = "none", "8,192 tokens of plain text", "1,500 film reviews"
ANY, PACKED, LIBRARY = "any", "one that reads packed integers", "bitsandbytes"


@dataclass(frozen=True)
class Recipe:
    """How a model of the table is made, and what that takes.

    Attributes:
        make: function (model, calibration windows) -> model. It may change the model in place.
        lesson: key of the lesson that the method is from.
        text: what text it needs.
        trains: whether weights are trained.
        kernel: what must exist so that fewer bytes can be faster.
        zeros: share of zeros in the weights, which bytes do not show.
    """

    make: Callable[[PreTrainedModel, Tensor], nn.Module]
    lesson: str
    text: str = NO_TEXT
    trains: bool = False
    kernel: str = ANY
    zeros: float = 0.0


# ---- steps -------------------------------------------------------------------------------------------------


def put_packed(model: nn.Module, found: dict[str, Quantized]) -> nn.Module:
    """Put a packed layer in place of each linear layer that a method has chosen integers for.

    Args:
        model: changed in place.
        found: name of the layer -> its integers and scales, as `keep=` of `gptq.quantize_model` and `awq.awq`
            collects them.

    Returns:
        The same model.
    """
    for name, weight in found.items():
        model.set_submodule(name, packed.QuantLinear.from_quantized(weight, model.get_submodule(name).bias))
    return model


def gptq_packed(model: nn.Module, windows: Tensor, scheme: Scheme = INT4) -> nn.Module:
    """GPTQ in the order of activations, packed.

    Args:
        model: changed in place.
        windows: calibration text, int64 [n, length].
        scheme: what to quantize to.

    Returns:
        The same model.
    """
    found: dict = {}
    gptq.quantize_model(model, windows, scheme, order="activation", static_groups=True, keep=found)
    return put_packed(model, found)


def awq_packed(model: nn.Module, windows: Tensor, scheme: Scheme = INT4) -> nn.Module:
    """AWQ with scaling and clipping, packed.

    Args:
        model: changed in place.
        windows: calibration text, int64 [n, length].
        scheme: what to quantize to.

    Returns:
        The same model.
    """
    found: dict = {}
    awq.awq(model, windows, scheme, keep=found)
    return put_packed(model, found)


def blocks_to_keep(model: nn.Module, windows: Tensor, cut: int = BLOCKS_CUT) -> tuple[list[int], list[int]]:
    """Which blocks stay when those of least influence go, and which of them follow a gap.

    Args:
        model: a causal language model.
        windows: calibration text, int64 [n, length]; 512 tokens of it are read.
        cut: how many blocks go.

    Returns:
        (numbers of the blocks that stay, rising; those of them behind a gap, which healing trains).
    """
    text = windows.flatten()[:512].view(-1, 128)
    order = depth.influences(model, text).argsort(stable=True).tolist()
    kept = sorted(order[cut:])
    return kept, [block for block in kept if block - 1 in order[:cut]] or kept[-1:]


def cut_model(model: nn.Module, windows: Tensor) -> nn.Module:
    """The model without the blocks of least influence.

    Args:
        model: stays as it is; what is left shares its memory.
        windows: calibration text, int64 [n, length].

    Returns:
        A shorter model.
    """
    kept, _ = blocks_to_keep(model, windows)
    return distill.make_student(model, kept, train=[])


def healed(model: PreTrainedModel, windows: Tensor, cut: int = BLOCKS_CUT,
           steps: int = HEALING_STEPS) -> PreTrainedModel:
    """The cut model, its blocks behind the gaps trained on the whole model's probabilities.

    Args:
        model: the teacher; stays as it is. What is not trained shares its memory with the student.
        windows: calibration text, int64 [n, length].
        cut: how many blocks go.
        steps: of training.

    Returns:
        A shorter model.
    """
    kept, behind_gaps = blocks_to_keep(model, windows, cut)
    student = distill.make_student(model, kept, train=behind_gaps)
    distill.heal(student, model, data.windows(windows.flatten(), 64), steps=steps, lr=5e-4, seed=0)
    return student


def combined(model: PreTrainedModel, windows: Tensor, cut: int = BLOCKS_CUT,
             steps: int = HEALING_STEPS) -> PreTrainedModel:
    """Pruned, distilled, quantized: cut and heal, then GPTQ for the blocks (INT4), the token table in INT8.

    Args:
        model: the teacher; stays as it is.
        windows: calibration text, int64 [n, length].
        cut: how many blocks go.
        steps: of training.

    Returns:
        A shorter model that holds packed weights, in memory of its own.
    """
    student = owned(healed(model, windows, cut, steps))
    gptq_packed(student, windows, INT4)
    packed.replace_embedding(student, INT8)
    return student


def owned(model: nn.Module) -> nn.Module:
    """Give a model memory of its own where it shares another's; tied weights stay tied.

    Args:
        model: its parameters' memory is replaced in place.

    Returns:
        The same model.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.clone()
    return model


def unpacked(model: PreTrainedModel) -> PreTrainedModel:
    """Put float layers in place of packed ones: the same numbers, read from packed integers once and for all.

    Args:
        model: changed in place.

    Returns:
        The same model.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, packed.QuantLinear)
              and not name.endswith(".table")}  # fmt: skip
    for name, layer in layers.items():
        linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        linear.weight = nn.Parameter(layer.dequantize())
        linear.bias = None if layer.bias is None else nn.Parameter(layer.bias)
        model.set_submodule(name, linear)
    if isinstance(tokens := model.get_input_embeddings(), packed.QuantEmbedding):
        model.set_input_embeddings(nn.Embedding.from_pretrained(tokens.table.dequantize()))
    return model.requires_grad_(False)


def merged(model: PreTrainedModel, _: Tensor) -> PreTrainedModel:
    """Half-way (SLERP) between the model and a copy that learned film reviews, as the lesson on merging does.

    Args:
        model: changed in place.

    Returns:
        The same model.
    """
    tokenizer = AutoTokenizer.from_pretrained(models.embedded_lm())
    reviews = "\n".join(sentence for sentence, _ in data.reviews("train"))
    tokens = torch.tensor(tokenizer(reviews, verbose=False)["input_ids"][: 20 * 256])
    names = [name for name, p in model.named_parameters() if name.endswith("down_proj.weight")][-6:]
    model.requires_grad_(False)
    before = {name: model.get_parameter(name).detach().clone() for name in names}
    learn([model.get_parameter(name) for name in names], model, data.windows(tokens, 64).split(4))
    after = {name: model.get_parameter(name).detach() for name in names}
    half = methods.slerp(before, after, 0.5)
    for name in names:
        model.get_parameter(name).data.copy_(half[name])
    return model


def learn(parameters: Sequence[nn.Parameter], model: PreTrainedModel, batches: Sequence[Tensor],
          lr: float = 1e-3) -> None:
    """Train some matrices to predict the next token, one step a batch, the learning rate falling to 0.

    Args:
        parameters: what is trained, in place.
        model: they are part of it.
        batches: token ids, each int64 [rows, length].
        lr: learning rate of the first step.
    """
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches))
    for ids in batches:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.requires_grad_(False)


def _bitsandbytes(**options: object) -> Callable[[PreTrainedModel, Tensor], nn.Module]:
    def load(*_: object) -> nn.Module:
        config = BitsAndBytesConfig(**options)
        with measure.frequent_collection():  # the library leaves FP32 copies for the garbage collector
            return AutoModelForCausalLM.from_pretrained(models.embedded_lm(), dtype=torch.float32,
                                                        device_map="cpu", quantization_config=config)

    return load


def _int8(model: nn.Module, _: Tensor) -> nn.Module:
    packed.replace_linears(model, INT8)
    return model


def _sparse(model: nn.Module, windows: Tensor) -> nn.Module:
    sparsegpt.sparsegpt_model(model, windows, 0.5, damping=0.1)
    return model


# ---- the table ---------------------------------------------------------------------------------------------

FP32 = "FP32"
RECIPES = {
    FP32: Recipe(lambda model, _: model, "one_token"),
    "BF16": Recipe(lambda model, _: model.bfloat16(), "formats", kernel="BF16 products"),
    "INT8": Recipe(_int8, "ptq", kernel=PACKED),
    "INT8, bitsandbytes": Recipe(_bitsandbytes(load_in_8bit=True, llm_int8_threshold=6.0), "ptq",
                                 kernel=LIBRARY),
    "NF4, bitsandbytes": Recipe(
        _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
        "ptq", kernel=LIBRARY),
    "INT4, GPTQ": Recipe(gptq_packed, "gptq", TEXT, kernel=PACKED),
    "INT4, AWQ": Recipe(awq_packed, "awq", TEXT, kernel=PACKED),
    "pruned: half zeros": Recipe(_sparse, "pruning", TEXT, kernel="one that skips zeros", zeros=0.5),
    "pruned: 27 blocks": Recipe(cut_model, "structured", TEXT),
    "distilled: 27 blocks": Recipe(healed, "distillation", TEXT, trains=True),
    "merged": Recipe(merged, "merging", REVIEWS, trains=True),
    "combined": Recipe(combined, "before_after", TEXT, trains=True, kernel=PACKED),
}


@dataclass(frozen=True)
class Made:
    """A model that a recipe gave.

    Attributes:
        model: the model.
        seconds: of processor time that making it took, without loading the full one.
    """

    model: nn.Module
    seconds: float


def make(name: str, windows: Tensor | None = None) -> Made:
    """Make a model of the table anew from the embedded one.

    Args:
        name: a key of `RECIPES`.
        windows: calibration text, int64 [n, length]; None: the one that the table is made with.

    Returns:
        The model in eval mode, with memory of its own, and the seconds.

    Raises:
        ValueError: there is no such recipe.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}: there are {', '.join(RECIPES)}")
    full, tokenizer = models.load_lm()
    if windows is None:
        windows = data.windows(data.wikipedia_tokens(tokenizer, "calibration", CALIBRATION_TOKENS), WINDOW)
    start = time.process_time()
    model = RECIPES[name].make(full, windows)
    return Made(owned(model).eval().requires_grad_(False), time.process_time() - start)


def load(name: str, made: nn.Module | None = None) -> nn.Module:
    """A model of the table, from the cache where it was made before.

    Args:
        name: a key of `RECIPES`.
        made: the model, by who has just made it and not yet run it; None: it is made when it is missing.

    Returns:
        The model in eval mode.

    Raises:
        ValueError: there is no such recipe.
        CourseError: the cache cannot be used.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}: there are {', '.join(RECIPES)}")
    version = f"{VERSION}, torch {torch.__version__}, transformers {transformers.__version__}"
    title = "-".join(name.replace(":", "").replace(",", "").lower().split())

    def build(folder: Path) -> None:
        save(made or make(name).model, folder / "model.pt")

    return read(cached_folder(f"model-{title}", build, version, megabytes=600) / "model.pt")


def save(model: nn.Module, path: Path) -> None:
    """Keep a whole model, packed layers and all. Save before the first run: bitsandbytes rearranges then.

    Args:
        model: the model.
        path: of the file.
    """
    torch.save(model, path)


def read(path: Path) -> nn.Module:
    """A model that `save` kept. The file holds Python objects: read none from elsewhere.

    Args:
        path: of the file.

    Returns:
        The model.
    """
    return torch.load(path, weights_only=False)
