"""How a model is built, found out by trying: against what is known of each family."""

import pytest
import torch
from torch import nn

from course_utils import shapes
from course_utils.errors import CourseError
from course_utils.lesson_needs import NEEDS
from tests.families.models import FAMILIES, MORE_FAMILIES, logits, tiny

ALL = [*FAMILIES, *MORE_FAMILIES]
WITHOUT = {  # need -> families that are known to lack it
    "linear layers": ["gpt2", "mamba", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "qwen3_next",
                      "gpt_oss"],
    "foldable norms": ["gpt2", "rwkv", "gemma", "gemma2", "gemma3", "nemotron", "olmo", "olmo2",
                       "qwen2_moe", "qwen3_next", "deepseek_v3", "opt, norms last"],
    "Llama's blocks": ["gpt2", "mamba", "rwkv", "phi", "phi3", "starcoder2", "nemotron", "gptj", "gpt_neox",
                       "opt", "opt, norms last", "bloom", "falcon", "mixtral", "qwen3_moe", "deepseek_v3",
                       "qwen3_next", "gpt_oss", "qwen2_moe"],
    "Llama's count": ["gpt2", "mamba", "rwkv", "gptj", "gpt_neox", "phi", "opt", "opt, norms last", "bloom",
                      "falcon", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "qwen3_next", "gpt_oss",
                      "starcoder2", "nemotron"],
    "full attention": ["mistral", "qwen2 with a window", "gemma2", "gemma3", "gpt_oss", "mamba", "rwkv",
                       "qwen3_next"],
}


@pytest.mark.parametrize("family", ALL)
def test_a_model_has_what_a_lesson_needs_or_is_told_what_it_lacks(family):
    model, fresh = tiny(family), tiny(family)
    config = model.config
    if getattr(config, "head_dim", None) is None and hasattr(config, "num_attention_heads"):
        config.head_dim = config.hidden_size // config.num_attention_heads  # as load_lm does
    lacks = {need: reason for need in NEEDS if (reason := shapes.missing(model, need))}
    assert sorted(lacks) == sorted(need for need, families in WITHOUT.items() if family in families), lacks
    assert "\n" not in "".join(lacks.values())
    assert torch.equal(logits(model), logits(fresh))


@pytest.mark.parametrize("family", WITHOUT["Llama's count"])
def test_a_large_vocabulary_hides_no_wrong_block(family):
    model = tiny(family, vocab_size=49_152)
    assert shapes.missing(model, "Llama's count")


def test_a_refusal_names_the_lessons_that_run(capsys):
    with pytest.raises(CourseError, match="This lesson needs foldable norms, which Gemma2.* Lessons that "
                                          "run on this model: one_token, formats, gptq, pruning, structured, "
                                          r"distillation, merging\.$"):
        shapes.require(tiny("gemma2"), "ptq")
    shapes.require(tiny("gemma2"), "gptq")
    assert "about SmolLM2-135M-Instruct" in capsys.readouterr().out


def test_the_layers_of_a_block_by_their_inputs():
    expected = {"llama": ["q_proj k_proj v_proj", "o_proj", "gate_proj up_proj", "down_proj"],
                "opt": ["q_proj k_proj v_proj", "out_proj", "fc1", "fc2"],
                "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}
    for family, groups in expected.items():
        found = shapes.input_groups(tiny(family), 2)
        assert [set(name.rsplit(".", 1)[1] for name in names) for names in found] == [
            set(names.split()) for names in groups]
        assert all(".layers.2." in name for names in found for name in names)


def test_the_layers_that_read_norms():
    assert [set(names) for names in shapes.norm_readers(tiny("llama"))] == [
        {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}, {"mlp.gate_proj", "mlp.up_proj"}]


@pytest.mark.parametrize("family", ALL)
def test_the_list_of_blocks(family):
    assert len(shapes.block_list(tiny(family))) == 4


def test_a_model_without_blocks():
    with pytest.raises(ValueError, match="Linear has no list of blocks"):
        shapes.block_list(nn.Linear(2, 2))


def test_places_go_from_the_first_block_to_the_last():
    model = tiny("llama", num_hidden_layers=7)
    assert [shapes.place(model, share / 7) for share in range(8)] == [0, 1, 2, 3, 4, 5, 6, 6]
