"""The model that is put on the phone: the course's model by GPTQ, and what else must be small.

Linear layers are 4 bits in groups of 64, by GPTQ; the order of the columns is the one by activations, with
groups that stay neighbours. Embedding and output layer are one matrix, a fifth of the parameters: 8 bits in
groups of 64, rounded to nearest. Norms stay as they are.
"""

from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from course_utils import data, models
from course_utils.cache import cached_folder
from course_utils.quantize import affine, checkpoint, gptq
from course_utils.quantize.affine import Quantized, Scheme
from course_utils.quantize.packed import QuantLinear

SCHEME = Scheme(4, 64)
TABLE = Scheme(8, 64)
CALIBRATION = 4096  # tokens


def checkpoint_folder() -> Path:
    """The embedded model, quantized by GPTQ and kept in the GPTQ format. Made once; that takes minutes.

    Returns:
        The folder, as `quantize.checkpoint` writes it.
    """
    return cached_folder("smollm2-gptq-int4", _quantize, megabytes=1000) / "checkpoint"


def _quantize(folder: Path) -> None:
    model, tokenizer = models.load_lm(models.embedded_lm())
    text = data.windows(data.wikipedia_tokens(tokenizer, "calibration", CALIBRATION), 512)
    weights = {}
    gptq.quantize_model(model, text, SCHEME, order="activation", static_groups=True, keep=weights)
    checkpoint.save(folder / "checkpoint", model, tokenizer, weights)


def layers(folder: str | Path) -> dict[str, Quantized]:
    """All matrices of the phone's model as integers and scales.

    Args:
        folder: a GPTQ checkpoint of a model with tied embeddings.

    Returns:
        The linear layers of the blocks by name, as the checkpoint has them, and "lm_head", which is the
        embedding too.

    Raises:
        ValueError: no such checkpoint; its embeddings are not tied; or its groups are no neighbours.
    """
    return _read(folder)[0]


def _read(folder: str | Path) -> tuple[dict[str, Quantized], dict[str, torch.Tensor]]:
    """The matrices as `layers` gives them, and all other tensors of the checkpoint by name."""
    weights, tensors = checkpoint.read(folder)
    if not AutoConfig.from_pretrained(folder).tie_word_embeddings:
        raise ValueError(f"{folder}: embedding and output layer are two matrices, one is expected")
    found = {}
    for name, weight in weights.items():
        if bool((weight.g_idx.diff() < 0).any()):
            raise ValueError(f"{folder}: the groups of {name} are no neighbours: quantize with "
                             "static_groups=True")
        found[name] = Quantized(weight.q, weight.scale, weight.zero, weight.scheme, torch.float32)
    (table,) = [name for name in tensors if name.endswith("embed_tokens.weight")]
    return found | {"lm_head": affine.quantize(tensors.pop(table).float(), TABLE)}, tensors


def load_packed(folder: str | Path | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The phone's model in PyTorch, its integers packed. They are unpacked again for each product.

    Args:
        folder: a GPTQ checkpoint; by default that of `checkpoint_folder`.

    Returns:
        (model, tokenizer), the model in eval mode.

    Raises:
        ValueError: as `layers`.
    """
    folder = Path(folder or checkpoint_folder())
    quantized, others = _read(folder)
    config = AutoConfig.from_pretrained(folder)
    del config.quantization_config
    config.tie_word_embeddings = False  # the output layer holds integers now, the embedding floats
    with init_empty_weights(include_buffers=False):  # without memory: all of its weights are replaced
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(others, strict=False, assign=True)
    model.get_input_embeddings().weight = torch.nn.Parameter(affine.dequantize(quantized["lm_head"]))
    while quantized:  # one at a time: the integers are never held twice
        name, weight = quantized.popitem()
        model.set_submodule(name, QuantLinear.from_quantized(weight))
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def unpack(model: PreTrainedModel) -> None:
    """Unpack the integers once and for all: the same numbers, in FP32, in ordinary linear layers.

    Args:
        model: from `load_packed`; changed in place.
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, QuantLinear):
            linear = torch.nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, "meta")
            # The output layer has the embedding's numbers.
            weight = model.get_input_embeddings().weight if name == "lm_head" else layer.dequantize()
            linear.weight, linear.bias = torch.nn.Parameter(weight, requires_grad=False), layer.bias
            model.set_submodule(name, linear)
