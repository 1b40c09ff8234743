"""A whole model in one format after another."""

import pytest
import torch

from course_utils import formats as f


@pytest.fixture
def tiny_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True))  # fmt: skip


def test_converting_a_model_and_back(tiny_model):
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    matrices = {name: p for name, p in tiny_model.named_parameters() if p.dim() == 2}
    vectors = sum(p.nbytes for p in tiny_model.parameters() if p.dim() != 2)
    with f.converting(tiny_model) as put_weights_in:
        for name in f.FORMATS:
            result = put_weights_in(name)
            wanted = {key: f.convert(before[key], name) for key in matrices}
            assert all(torch.equal(matrices[key], values) for key, (values, _) in wanted.items())
            assert result.nbytes == vectors + sum(nbytes for _, nbytes in wanted.values())
            assert result.weights == sum(p.numel() for p in matrices.values())  # the tied embedding once
            lost = torch.cat([(values - before[key]).flatten() for key, (values, _) in wanted.items()])
            original = torch.cat([before[key].flatten() for key in matrices])
            assert result.error == pytest.approx((lost.norm() / original.norm()).item(), rel=1e-4)
            assert set(result.row()) == {"bits per weight", "MB", "weight error (%)"}
    after = tiny_model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_converting_gives_the_weights_back_after_an_error(tiny_model):
    before = tiny_model.model.embed_tokens.weight.clone()
    with pytest.raises(KeyboardInterrupt), f.converting(tiny_model) as put_weights_in:
        put_weights_in("FP4 E2M1")
        assert not torch.equal(before, tiny_model.model.embed_tokens.weight)
        raise KeyboardInterrupt
    assert torch.equal(before, tiny_model.model.embed_tokens.weight)


@pytest.mark.parametrize("call, error, message", [
    (lambda: f.convert(torch.ones(2, 64), "FP12"), ValueError, "no format 'FP12'; there are FP32, TF32"),
])  # fmt: skip
def test_errors_say_what_to_do(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_mxfp4_rounded_up_cuts_nothing_off():
    """Against the rule, block by block: the smallest power of two with the largest weight at 6 or less."""
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    weight[0, :32] = 0
    weight[1, :32] *= 1e-6
    found = f.mxfp4_rounded_up(weight)
    assert (found[0, :32] == 0).all()
    for old, new in zip(weight.view(-1, 32)[1:], found.view(-1, 32)[1:], strict=True):
        scale = next(2.0**power for power in range(-40, 10) if old.abs().max() <= 6 * 2.0**power)
        assert torch.equal(new, f.round_to(old / scale, f.E2M1) * scale)
        assert (new - old).abs().max() <= scale  # half of E2M1's widest step
