"""course_utils.prune.depth on small random models."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Gemma4TextConfig

from course_utils.prune import depth, structured
from tests.unit.prune.small_models import batch, bert, llama, logits, parameters


def test_influence_of_directions():
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    assert depth.block_influence(x, 3 * x) == pytest.approx(0, abs=1e-6)
    assert depth.block_influence(x, -x) == pytest.approx(2, abs=1e-6)
    turned = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert depth.block_influence(turned, turned.flip(-1)) == pytest.approx(1, abs=1e-6)


def test_influence_is_a_mean_over_tokens_not_over_numbers():
    before = torch.tensor([[100.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    after = torch.tensor([[100.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert depth.block_influence(before, after) == pytest.approx(2 / 3, abs=1e-6)


@pytest.mark.parametrize("build", [llama, bert])
def test_influences_against_the_hidden_states(build):
    model, tokens = build(), batch()["input_ids"]
    found = depth.influences(model, tokens, batch_size=3)
    assert not any(module._forward_hooks for module in model.modules())
    # the last hidden state of a Llama is normed, so compare the blocks before it
    with torch.no_grad():
        states = model(input_ids=tokens, output_hidden_states=True).hidden_states
    for i in range(2):
        cosine = torch.nn.functional.cosine_similarity(states[i], states[i + 1], dim=-1)
        assert found[i].item() == pytest.approx(1 - cosine.mean().item(), abs=1e-5)


def test_a_block_that_does_nothing_has_no_influence_and_can_go():
    model = llama()
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    assert depth.influences(model, batch()["input_ids"])[1].item() == pytest.approx(0, abs=1e-6)
    before = logits(model)
    depth.remove_blocks(model, [1])
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", [llama, bert])
def test_the_model_left_is_the_blocks_left(build):
    """Reference: the same model with the removed block replaced by the identity, by a hook."""
    model = build()
    name = "model.layers" if build is llama else "bert.encoder.layer"
    block = model.get_submodule(f"{name}.1")

    def identity(_, args, kwargs, output):
        x = args[0] if args else kwargs["hidden_states"]
        return (x, *output[1:]) if isinstance(output, tuple) else x

    hook = block.register_forward_hook(identity, with_kwargs=True)
    expected = logits(model)
    hook.remove()
    per_block = sum(parameter.numel() for parameter in block.parameters())
    before = parameters(model)
    depth.remove_blocks(model, [1])
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    assert before - parameters(model) == per_block
    assert model.config.num_hidden_layers == 2


def test_generation_with_a_cache_after_removal():
    model = llama(blocks=5)
    depth.remove_blocks(model, [0, 3])
    ids = batch()["input_ids"][1:2]
    cached = model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=True, eos_token_id=None)
    plain = model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False, eos_token_id=None)
    assert torch.equal(cached, plain)


@pytest.mark.parametrize(("build", "auto"), [(llama, AutoModelForCausalLM),
                                             (bert, AutoModelForSequenceClassification)])
def test_saved_folder_loads_with_plain_transformers(build, auto, tmp_path):
    model = build()
    depth.remove_blocks(model, torch.tensor([2, 0]))
    structured.save(model, tmp_path)
    loaded, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(logits(loaded.eval()), logits(model))


def test_blocks_and_heads_together(tmp_path):
    model = bert()
    structured.keep_heads(model, [[0, 2], [1], [3, 4, 5]])
    depth.remove_blocks(model, [1])
    assert model.config.heads_per_layer == [2, 3]
    structured.save(model, tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=True)
    assert torch.equal(logits(loaded.eval()), logits(model))


def test_removed_blocks_are_put_back():
    model = llama(blocks=4)
    before, config = logits(model), model.config.to_dict()
    with structured.putting_back(model):
        depth.remove_blocks(model, [0, 1])
        assert len(model.model.layers) == 2
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2, 3]


@pytest.mark.parametrize(("indices", "message"), [
    ([3], "no block 3"), ([-1], "no block -1"), ([1, 1], "twice"), ([0, 1, 2], "leave one"),
])
def test_bad_input_is_refused_before_anything_changes(indices, message):
    model = llama()
    with pytest.raises(ValueError, match=message):
        depth.remove_blocks(model, indices)
    assert len(model.model.layers) == model.config.num_hidden_layers == 3


@pytest.mark.parametrize("tokens", [torch.zeros(0, 4, dtype=torch.long), torch.zeros(4, dtype=torch.long)])
def test_influences_need_tokens(tokens):
    with pytest.raises(ValueError, match="length"):
        depth.influences(llama(), tokens)


def test_blocks_with_settings_of_their_own_stay():
    """Gemma 4 has wider heads in its blocks with full attention: its config says so by their numbers."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Gemma4TextConfig(
        vocab_size=97, hidden_size=48, intermediate_size=40, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, global_head_dim=16, num_kv_shared_layers=0,
        hidden_size_per_layer_input=0, layer_types=["sliding_attention", "full_attention"] * 2)).eval()
    before, config = logits(model), model.config.to_dict()
    with pytest.raises(ValueError, match="settings of its own for some blocks") as caught:
        depth.remove_blocks(model, [0])
    assert "\n" not in str(caught.value) and model.config.to_dict() == config
    assert torch.equal(logits(model), before)
