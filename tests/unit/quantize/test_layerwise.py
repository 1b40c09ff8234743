"""course_utils.quantize.layerwise on small random Llama and BERT models, against plain forward passes."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel, LlamaConfig, LlamaForCausalLM

from course_utils.quantize import affine, layerwise
from course_utils.quantize.layerwise import AbsMax, Hessian, MeanAbs, Sample, Together

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def llama(device="cpu"):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                         num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
                         max_position_embeddings=64, initializer_range=0.2)
    return LlamaForCausalLM(config).eval().to(device)


def bert(head=True):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
                        num_attention_heads=4, max_position_embeddings=64, initializer_range=0.2)
    return (BertForSequenceClassification if head else BertModel)(config).eval()


def text(rows=6, length=16):
    return torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(1))


def plain_inputs(model, name, batch):
    """The inputs of one layer in an ordinary forward pass: [tokens, in]."""
    seen = []
    layer = model.get_submodule(name)
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        model(**batch)
    hook.remove()
    return torch.cat(seen).float()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_statistics_equal_those_of_a_plain_forward(device, batch_size):
    model, tokens = llama(device), text()
    found = layerwise.collect_statistics(
        model, tokens, lambda: Together(h=Hessian(), mean=MeanAbs(), top=AbsMax(), sample=Sample(1000)),
        batch_size=batch_size, progress=False)
    assert list(found) == [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    for name, statistic in found.items():
        x = plain_inputs(model, name, {"input_ids": tokens.to(device), "use_cache": False})
        torch.testing.assert_close(statistic.h.matrix, 2 * x.T @ x / len(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(statistic.mean.mean, x.abs().mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(statistic.top.absmax, x.abs().amax(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(statistic.sample.inputs, x, rtol=1e-4, atol=1e-5)


def test_layers_that_share_an_input_share_the_statistic():
    found = layerwise.collect_statistics(llama(), text(), AbsMax, progress=False)
    block = "model.layers.1."
    assert found[block + "self_attn.q_proj"] is found[block + "self_attn.k_proj"]
    assert found[block + "self_attn.q_proj"] is found[block + "self_attn.v_proj"]
    assert found[block + "mlp.gate_proj"] is found[block + "mlp.up_proj"]
    assert len({id(value) for name, value in found.items() if name.startswith(block)}) == 4


@pytest.mark.parametrize("make", [llama, bert, lambda: bert(head=False)])
def test_each_layer_sees_inputs_made_by_the_edited_blocks_before_it(make):
    model, tokens = make(), text()
    scheme = affine.Scheme(4, 16)
    recorded = {}

    def method(name, linear, statistic):
        recorded[name] = statistic.inputs
        return affine.fake_quantize(linear.weight, scheme)

    layerwise.walk(model, tokens, layerwise.each_linear(method), lambda: Sample(1000), progress=False)
    reference = make()
    prefix = layerwise.find_blocks(reference)[0][0].rsplit(".", 1)[0]
    for index, (name, block) in enumerate(layerwise.find_blocks(reference)):
        for inner in layerwise.linears_of(block):  # blocks before this one are quantized by now
            x = plain_inputs(reference, f"{name}.{inner}", {"input_ids": tokens})
            torch.testing.assert_close(recorded[f"{prefix}.{index}.{inner}"], x, rtol=1e-4, atol=1e-4)
        for linear in layerwise.linears_of(block).values():
            linear.weight.data.copy_(affine.fake_quantize(linear.weight, scheme))
    for ours, theirs in zip(model.state_dict().values(), reference.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_sequential_sees_edits_within_the_block():
    model, tokens = llama(), text()
    recorded = {}

    def method(name, linear, statistic):
        recorded[name] = statistic.inputs
        return linear.weight * 0.5

    layerwise.walk(model, tokens, layerwise.each_linear(method, sequential=True), lambda: Sample(1000),
                   progress=False)
    reference = llama()
    for name in ("q_proj", "k_proj", "v_proj"):
        reference.get_submodule(f"model.layers.0.self_attn.{name}").weight.data.mul_(0.5)
    x = plain_inputs(reference, "model.layers.0.self_attn.o_proj", {"input_ids": tokens, "use_cache": False})
    torch.testing.assert_close(recorded["model.layers.0.self_attn.o_proj"], x)


def test_padding_is_not_counted():
    model, tokens = bert(), text()
    mask = torch.ones_like(tokens)
    mask[:, 10:] = 0
    mask[0, 3:] = 0
    batches = [{"input_ids": part, "attention_mask": m} for part, m in zip(tokens.split(2), mask.split(2),
                                                                           strict=True)]
    found = layerwise.collect_statistics(model, batches, Hessian, progress=False)
    name = "bert.encoder.layer.2.output.dense"
    x = plain_inputs(model, name, {"input_ids": tokens, "attention_mask": mask})[mask.flatten().bool()]
    assert found[name].tokens == int(mask.sum())
    torch.testing.assert_close(found[name].matrix, 2 * x.T @ x / len(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("block_method", [False, True])
def test_interrupted_walk_restores_the_model(error, block_method):
    model, tokens = llama(), text()
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def method(name, linear, statistic):
        if name == "model.layers.1.mlp.up_proj":
            raise error("stop here")
        return linear.weight * 2

    def edit(block):
        block.module.input_layernorm.weight.data.mul_(3)
        for linear in block.linears.values():
            linear.weight = nn.Parameter(linear.weight * 2)
        if block.name.endswith("2"):
            raise error("stop here")

    with pytest.raises(error):
        layerwise.walk(model, tokens, edit if block_method else layerwise.each_linear(method), AbsMax,
                       progress=False)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert model.training and model.config.use_cache
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_no_cache_travels_with_the_captured_call():
    """The trap: a captured KV cache grows with each call of the block, with no error."""
    model, tokens = llama(), text()
    assert model.config.use_cache  # the default that the capture must overrule
    outputs = []

    def edit(block):
        outputs.append([block.run(0), block.run(0)])
        return False

    layerwise.walk(model, tokens, edit, batch_size=6, progress=False)
    with torch.no_grad():
        hidden = model.model(tokens, output_hidden_states=True, use_cache=False).hidden_states
    for layer, (first, second) in enumerate(outputs[:-1]):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, hidden[layer + 1])


def test_memory_is_bounded():
    """Only one block's inputs live at a time."""
    model, alive = llama(), []

    def edit(block):
        alive.append(sum(x.numel() for x in block.inputs))

    layerwise.walk(model, text(), edit, batch_size=2, progress=False)
    assert alive == [6 * 16 * 32] * 3
    sample = Sample(10)
    for _ in range(20):
        sample.add(torch.randn(7, 4))
    assert len(sample.inputs) <= 10


def test_sample_is_evenly_spread():
    sample = Sample(10)
    for start in range(0, 100, 7):
        sample.add(torch.arange(start, min(start + 7, 100)).float().unsqueeze(1))
    kept = sample.inputs.squeeze(1).tolist()
    assert kept == list(range(0, 100, sample.stride)) and 5 <= len(kept) <= 10


def test_round_to_nearest_leaves_the_embedding_alone():
    model, reference = llama(), llama()
    layerwise.round_to_nearest(model, affine.Scheme(4, 16))
    assert torch.equal(model.lm_head.weight, reference.lm_head.weight)
    for name, linear in layerwise.block_linears(model).items():
        expected = affine.fake_quantize(reference.get_submodule(name).weight, affine.Scheme(4, 16))
        assert torch.equal(linear.weight, expected)
    with pytest.raises(ValueError, match=r"model.layers.0.self_attn.q_proj: group 5 does not divide"):
        layerwise.round_to_nearest(model, affine.Scheme(4, 5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_norm_readers(dtype):
    found = {}

    def look(block):
        found[block.name] = [(norm, set(readers)) for norm, readers in layerwise.norm_readers(block)]
        return False

    model = llama().to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layerwise.walk(model, text(), look, progress=False)
    for name, block in layerwise.find_blocks(model):
        assert found[name] == [(getattr(block, norm), set(readers))
                               for norm, readers in layerwise.NORM_READERS.items()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="LayerNorm into intermediate.dense; something else reads it too"):
        layerwise.walk(bert(), text(), look, progress=False)


def test_what_a_walk_cannot_feed_is_refused():
    class Skips(nn.Module):
        """Feeds each block with the output of the one before it and something else."""

        def __init__(self, way):
            super().__init__()
            self.embed, self.way = nn.Embedding(97, 8), way
            self.blocks = nn.ModuleList(Adds() for _ in range(2))
            self.config = LlamaConfig()

        def forward(self, input_ids):
            if self.way == "backwards":
                return self.blocks[0](self.blocks[1](self.embed(input_ids), None), None)
            first = self.blocks[0](self.embed(input_ids), None)
            if self.way == "adds":
                return self.blocks[1](first + 1, None)
            if self.way == "twice":
                return self.blocks[1](self.blocks[0](first, None), None)
            return self.blocks[1](first, first)

    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, hidden_states, other):
            return self.linear(hidden_states) + (0 if other is None else other)

    for way, match in (("adds", "do not run once each"), ("twice", "do not run once each"),
                       ("backwards", "do not run once each"),
                       ("argument", "called with what blocks before it computed")):
        model = Skips(way)
        with pytest.raises(ValueError, match=match):
            layerwise.collect_statistics(model, text(), AbsMax, progress=False)
        assert "forward" not in model.blocks[0].__dict__ and not model.blocks[0]._forward_pre_hooks


def test_a_layer_that_does_not_run_is_named():
    model = llama()
    model.model.layers[0].mlp.spare = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"layers.0.mlp.spare runs 0 times"):
        layerwise.collect_statistics(model, text(), AbsMax, progress=False)


def test_coverage():
    assert layerwise.coverage(llama()) == layerwise.check_coverage(llama()) == 1
    model = llama()
    with torch.no_grad():  # as many numbers again in a parameter of three dimensions
        size = sum(linear.weight.numel() for linear in layerwise.block_linears(model).values())
        model.model.layers[0].mlp.experts = nn.Parameter(torch.zeros(2, 4, size // 8))
    assert layerwise.coverage(model) == 0.5
    with pytest.raises(ValueError, match=r"hold 50% .* as model.layers.0.mlp.experts.*minimum_share=0.5"):
        layerwise.round_to_nearest(model, affine.Scheme(4))
    assert layerwise.coverage(bert()) > layerwise.MINIMUM_SHARE  # a pooler is left out


def test_experts_in_a_list_are_no_blocks():
    model = llama()
    for block in model.model.layers:
        block.mlp.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(9))
    assert [name for name, _ in layerwise.find_blocks(model)] == [f"model.layers.{i}" for i in range(3)]


def test_wrong_input():
    model = llama()
    method = layerwise.each_linear(lambda name, linear, statistic: linear.weight)
    with pytest.raises(TypeError, match=r"LongTensor \[n, length\], got torch.float32"):
        layerwise.walk(model, torch.rand(2, 3), method, AbsMax)
    with pytest.raises(TypeError, match="list of dicts"):
        layerwise.walk(model, ["some text"], method, AbsMax)
    with pytest.raises(ValueError, match="no calibration text"):
        layerwise.walk(model, text()[:0], method, AbsMax)
    with pytest.raises(ValueError, match="Linear has no list of blocks"):
        layerwise.walk(nn.Linear(2, 2), text(), method, AbsMax)
    with pytest.raises(ValueError, match="without a statistic"):
        layerwise.walk(model, text(), method, progress=False)
    wrong = layerwise.each_linear(lambda name, linear, statistic: linear.weight[:1])
    with pytest.raises(ValueError, match=r"no finite weight \[32, 32\] for model.layers.0.self_attn.q_proj"):
        layerwise.walk(model, text(), wrong, AbsMax, progress=False)
