"""Families x functions of course_utils.quantize: exact, or refused in one line with the model as it was.

    python -m tests.families.test_quantize     prints the table
"""

import copy
import re

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from torch import nn
from transformers import PreTrainedTokenizerFast

from course_utils.errors import CourseError
from course_utils.quantize import (
    activations,
    affine,
    awq,
    awq_format,
    checkpoint,
    gptq,
    layerwise,
    packed,
    qat,
)
from course_utils.quantize.affine import Scheme
from course_utils.quantize.layerwise import AbsMax, Hessian
from tests.families.models import FAMILIES, MORE_FAMILIES, VOCABULARY, logits, off, tiny, tokens

SCHEME = Scheme(4, 16)
EXACT = 1e-4  # logits that are equal up to float rounding


def linears(model):
    """The linear layers of the blocks, found by their names: these have a number in it."""
    return {name: layer for name, layer in model.named_modules()
            if isinstance(layer, nn.Linear) and any(part.isdigit() for part in name.split("."))}


@torch.no_grad()
def inputs(model, batch=None):
    """What goes into each of them in a plain forward pass: {name: [tokens, in]}."""
    seen = {}
    hooks = [layer.register_forward_pre_hook(
        lambda _, args, name=name: seen.setdefault(name, []).append(args[0].reshape(-1, args[0].shape[-1])))
        for name, layer in linears(model).items()]
    model(**(batch or {"input_ids": tokens()}), use_cache=False)
    for hook in hooks:
        hook.remove()
    assert all(len(parts) == 1 for parts in seen.values())
    return {name: parts[0] for name, parts in seen.items()}


@torch.no_grad()
def rounded(model, scheme=SCHEME):
    """A copy whose linear layers are rounded one by one."""
    model = copy.deepcopy(model)
    for layer in linears(model).values():
        layer.weight.copy_(affine.fake_quantize(layer.weight, scheme))
    return model


def equal(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(),
                                                 strict=True))


# ---- what is tried, each with its own reference ------------------------------------------------------------

def statistics(model, **_):
    found = layerwise.collect_statistics(model, tokens(), Hessian, batch_size=1, progress=False)
    expected = inputs(model)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        torch.testing.assert_close(found[name].matrix, 2 * x.T @ x / len(x), rtol=1e-3, atol=1e-4)


def round_to_nearest(model, tmp_path=None, **share):
    wanted = rounded(model)
    layerwise.round_to_nearest(model, SCHEME, **share)
    assert equal(model, wanted)


def replace_linears(model, tmp_path=None, **share):
    wanted = logits(rounded(model))
    replaced = packed.replace_linears(model, SCHEME, progress=False, **share)
    assert replaced and not linears(model) and off(model, wanted) < EXACT


def prepare_and_convert(model, tmp_path=None, **share):
    spec = qat.spec("W4A8")
    wanted = rounded(model, spec.weight)
    for layer in linears(wanted).values():
        layer.register_forward_pre_hook(lambda _, args: (affine.from_integers(
            affine.to_integers(args[0], *affine.parameters(args[0], spec.activation), spec.activation),
            *affine.parameters(args[0], spec.activation)), *args[1:]))
    qat.prepare(model, spec, **share)
    assert off(model, logits(wanted)) < EXACT
    qat.convert(model)
    assert not linears(model) and off(model, logits(wanted)) < EXACT


def linear_calls(model, tmp_path=None, **share):
    wanted = copy.deepcopy(model)
    for layer in linears(wanted).values():
        layer.register_forward_pre_hook(lambda _, args: (
            torch.mul(*activations.quantize_per_token(args[0])), *args[1:]))
    with activations.linear_calls(model, activations.dynamic_call, **share):
        assert off(model, logits(wanted)) < EXACT


def smooth(model, **_):
    wanted, before = logits(model), copy.deepcopy(model)
    found = layerwise.collect_statistics(model, tokens(), AbsMax, progress=False)
    expected = activations.smooth(model, found)
    assert off(model, wanted) < EXACT and not equal(model, before)
    for name, x in inputs(model).items():
        torch.testing.assert_close(expected[name], x.abs().amax(0), rtol=1e-3, atol=1e-4)


def keep_salient(model, tmp_path=None, **share):
    found = awq.model_importance(model, tokens(), progress=False)
    importance = {name: x.abs().mean(0) for name, x in inputs(model).items()}
    wanted = rounded(model)
    with torch.no_grad():
        for name, layer in linears(wanted).items():
            kept = importance[name].argsort()[-max(1, round(0.1 * len(importance[name]))):]
            layer.weight[:, kept] = model.get_submodule(name).weight[:, kept]
    awq.keep_salient(model, found, SCHEME, fraction=0.1, **share)
    assert equal(model, wanted)


def awq_model(model, tmp_path=None, **share):
    """Each block's scales, moved by hand, change nothing; rounded afterwards it is what awq made of it."""
    by_hand, wanted = copy.deepcopy(model), logits(model)
    choices = awq.awq(model, tokens(), SCHEME, use_clip=False, ratios=(0.3, 0.6), progress=False, **share)
    assert len(choices) >= 3 * len(layerwise.find_blocks(by_hand))
    with torch.no_grad():
        for choice in choices:
            block, _, name = choice.name.partition(".self_attn.") if ".self_attn." in choice.name \
                else choice.name.partition(".mlp.")
            block, scale = by_hand.get_submodule(block), choice.search.scale
            attention, mlp = block.self_attn, block.mlp
            before, readers = {
                "q_proj": (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                "gate_proj": (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
                "o_proj": (attention.v_proj, (attention.o_proj,)),
                "down_proj": (mlp.up_proj, (mlp.down_proj,)),
            }[name]
            for parameter in before.parameters():
                parameter.copy_((parameter.mT / scale).mT if parameter.ndim == 2 else parameter / scale)
            for reader in readers:
                reader.weight.copy_(reader.weight @ scale.diag())
    assert off(by_hand, wanted) < EXACT
    assert off(model, logits(rounded(by_hand))) < 1e-3


def gptq_model(model, tmp_path=None, **share):
    """The error of each layer, on the inputs that it gets once all blocks before its own are rounded."""
    before = copy.deepcopy(model)
    reports = gptq.quantize_model(model, tokens(), SCHEME, batch_size=1, progress=False, **share)
    assert {report.name for report in reports} == linears(before).keys()
    blocks = [name for name, _ in layerwise.find_blocks(before)]
    half_way = copy.deepcopy(before)
    for block in blocks:
        seen = inputs(half_way)
        for report in (report for report in reports if report.name.startswith(f"{block}.")):
            weight, new = (m.get_submodule(report.name).weight for m in (before, model))
            x = seen[report.name]
            error = ((x @ (new - weight).T).square().sum() / (x @ weight.T).square().sum()).item()
            assert report.gptq_error == pytest.approx(error, rel=5e-3)
        half_way.get_submodule(block).load_state_dict(model.get_submodule(block).state_dict())


def tokenizer():
    return PreTrainedTokenizerFast(unk_token="w0", tokenizer_object=Tokenizer(
        models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0")))


def save_and_load(model, tmp_path=None, **share):
    keep = {}
    gptq.quantize_model(model, tokens(), SCHEME, progress=False, keep=keep, **share)
    before = copy.deepcopy(model)
    try:
        folder = checkpoint.save(tmp_path / "saved", model, tokenizer(), keep)
    except ValueError:  # it is for the file that the model is refused: the model may be rounded
        assert equal(model, before) and not (tmp_path / "saved").exists()
        model.load_state_dict(tiny_state(model))
        raise
    again, _ = checkpoint.load(folder)
    assert off(again, logits(model)) < 1e-6


def tiny_state(model):
    """The state of a fresh model of the same family."""
    name = next(name for name in FAMILIES | MORE_FAMILIES if type(tiny(name)) is type(model)
                and tiny(name).config.to_dict() == model.config.to_dict())
    return tiny(name).state_dict()


def save_awq(model, tmp_path=None, **share):
    keep = {}
    awq.awq(model, tokens(), SCHEME, ratios=(0.3, 0.6), progress=False, keep=keep, **share)
    tensors = load_file(awq_format.save(tmp_path / "saved", model, tokenizer(), keep) / "model.safetensors")
    for name, tensor in model.state_dict().items():
        layer = name.removesuffix(".weight")
        if layer in keep:
            parts = {part: tensors[f"{layer}.{part}"] for part in ("qweight", "qzeros", "scales")}
            torch.testing.assert_close(affine.dequantize(awq_format.unpack(parts)), tensor)
        elif name in tensors:
            assert torch.equal(tensors[name], tensor.half())


FUNCTIONS = [statistics, round_to_nearest, replace_linears, prepare_and_convert, linear_calls, smooth,
             keep_salient, awq_model, save_awq, gptq_model, save_and_load]
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")

# ---- what is refused, and why; everything else is exact ----------------------------------------------------

CONV1D, SHARE = "weights are in Conv1D layers", "hold [0-9]+% of its matrix weights"
NO_FOLD, NO_NORM = "no factor can move", "reads a norm: nothing"
NO_SCALE, NAMES = "no scale folds away", "is no Llama-style block"
NOT_RUN, NOT_REPLACED = "runs 0 times when its block runs once", "they cannot be replaced"
REFUSED = {(function.__name__, "gpt2"): CONV1D for function in FUNCTIONS}
REFUSED |= {(function.__name__, family): SHARE for function in FUNCTIONS
            for family in (*MIXTURES, "deepseek_v3", "qwen3_next", "gpt_oss")
            if function not in (statistics, smooth)}
REFUSED |= {("smooth", family): NO_FOLD for family in (
    "gemma", "gemma2", "gemma3", "qwen2_moe", "nemotron", "deepseek_v3", "qwen3_next", "opt, norms last")}
REFUSED |= {("smooth", family): NO_NORM for family in ("olmo2", "olmo", "rwkv")}
REFUSED |= {(function.__name__, "mamba"): NOT_RUN
            for function in (statistics, smooth, keep_salient, gptq_model, save_and_load)}
REFUSED |= {(function.__name__, family): NOT_REPLACED for family in ("mamba", "rwkv")
            for function in (replace_linears, prepare_and_convert, linear_calls)}
for _name in ("awq_model", "save_awq"):
    REFUSED |= {(_name, family): NO_SCALE for family in ("gemma", "gemma2", "gemma3")}
    REFUSED |= {(_name, family): NAMES for family in (
        "phi", "phi3", "olmo2", "cohere", "starcoder2", "gptj", "gpt_neox", "opt", "bloom", "falcon",
        "nemotron", "olmo", "mamba", "rwkv", "stablelm in parallel", "opt, norms last")}


def attempt(function, family, folder, **share):
    """None, or the line that refuses. The model is then as it was."""
    model, fresh = tiny(family), tiny(family)
    try:
        function(model, tmp_path=folder, **share)
        return None
    except (CourseError, ValueError) as error:
        assert equal(model, fresh) and torch.equal(logits(model), logits(fresh))
        assert [type(module) for module in model.modules()] == [type(module) for module in fresh.modules()]
        assert not model.training and model.config.to_dict() == fresh.config.to_dict()
        assert not any(module._forward_pre_hooks or module._forward_hooks or "forward" in module.__dict__
                       for module in model.modules())
        assert "\n" not in str(error)
        return str(error)


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_exact_or_refused(function, family, tmp_path):
    reason = attempt(function, family, tmp_path)
    expected = REFUSED.get((function.__name__, family))
    assert (reason is None) == (expected is None), reason
    assert expected is None or re.search(expected, reason)


@pytest.mark.parametrize("family", MIXTURES)
@pytest.mark.parametrize("function", [function for function in FUNCTIONS
                                      if REFUSED.get((function.__name__, "mixtral")) == SHARE])
def test_a_part_of_a_mixture_of_experts_on_demand(function, family, tmp_path, capsys):
    """Exact for what it reaches, and it says how much that is. AWQ and the file need more than that."""
    reason = attempt(function, family, tmp_path, minimum_share=0.1)
    assert f"hold {layerwise.coverage(tiny(family)):.0%} of its matrix weights" in capsys.readouterr().out
    if function in (awq_model, save_awq):
        assert NAMES in reason
    elif function is save_and_load and family == "qwen2_moe":
        assert re.search(r"shared_expert_gate: 1 integers of 4 bits do not fill whole 32-bit words", reason)
    else:
        assert reason is None


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gpt2"])
def test_statistics_leave_padding_out(family, side):
    model, mask = tiny(family), torch.ones_like(tokens())
    mask[0, slice(0, 9) if side == "left" else slice(-9, None)] = 0
    batch = {"input_ids": tokens(), "attention_mask": mask}
    found = layerwise.collect_statistics(model, [batch], Hessian, progress=False)
    for name, x in inputs(model, batch).items():
        x = x[mask.flatten().bool()]
        assert found[name].tokens == int(mask.sum())
        torch.testing.assert_close(found[name].matrix, 2 * x.T @ x / len(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("function", [round_to_nearest, gptq_model, smooth, awq_model])
def test_blocks_that_share_weights_are_refused(function):
    model = tiny("llama")
    first, second = model.model.layers[0], model.model.layers[1]
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match="up_proj.weight is the same tensor as model.layers.1.mlp"):
        function(model)
    assert equal(model, before)


@pytest.mark.parametrize("function", [replace_linears, prepare_and_convert, linear_calls])
@pytest.mark.parametrize("what", ["reads", "leaves out"])
def test_layers_that_a_model_does_not_simply_call_are_not_replaced(function, what):
    model = tiny("llama")
    mlp = model.model.layers[1].mlp
    mlp.forward = lambda x: x @ mlp.up_proj.weight.T @ mlp.down_proj.weight.T if what == "reads" else x
    before, match = copy.deepcopy(model), "cannot be replaced" if what == "reads" else "does not call its"
    with pytest.raises(ValueError, match=match):
        function(model)
    assert equal(model, before) and torch.equal(logits(model), logits(before))


if __name__ == "__main__":
    import sys
    import tempfile
    from pathlib import Path

    print("| family | " + " | ".join(function.__name__ for function in FUNCTIONS) + " |")
    print("|---" * (len(FUNCTIONS) + 1) + "|")
    reasons = {}
    for family in sys.argv[1:] or [*FAMILIES, *MORE_FAMILIES]:
        cells = []
        for function in FUNCTIONS:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    reason = attempt(function, family, Path(folder))
                except BaseException as error:
                    reason = f"FAULT {type(error).__name__}: {str(error).strip()[:300]}"
            number = reason and reasons.setdefault(reason, len(reasons) + 1)
            cells.append(f"refused {number}" if reason else "exact")
        print(f"| {family} | " + " | ".join(cells) + " |", flush=True)
    print()
    for reason, number in reasons.items():
        print(f"{number}. {reason}")
