"""course_utils.quantize.awq_format: the published order of the words, and gptqmodel reads them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_utils.quantize import affine, awq, awq_format, layerwise
from course_utils.quantize.affine import Scheme
from tests.unit.quantize.test_awq import small_llama, tokens


def test_words_by_the_published_order():
    """Eight numbers, bit by bit: channel 0 in the lowest nibble, then 2, 4, 6, 1, 3, 5, 7."""
    numbers = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 15]])
    # highest nibble first: channels 7 5 3 1 6 4 2 0
    assert awq_format.pack_words(numbers).item() & 0xFFFFFFFF == 0xF6427531
    for channel in range(8):
        one = torch.zeros(1, 8, dtype=torch.long)
        one[0, channel] = 1
        nibble = [0, 2, 4, 6, 1, 3, 5, 7].index(channel)
        assert awq_format.pack_words(one).item() == 1 << (4 * nibble)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 5))
def test_words_round_trip_and_equal_gptqmodel(seed, rows, words):
    packing = pytest.importorskip("gptqmodel.quantization.awq.utils.packing_utils")
    numbers = torch.randint(0, 16, (rows, 8 * words), generator=torch.Generator().manual_seed(seed))
    packed = awq_format.pack_words(numbers)
    assert packed.dtype == torch.int32 and packed.shape == (rows, words)
    assert torch.equal(awq_format.unpack_words(packed).long(), numbers)
    theirs, _ = packing.pack_awq(numbers, numbers, 4)
    assert torch.equal(packed, theirs)
    read, _ = packing.reverse_awq_order(*packing.unpack_awq(packed, packed, 4), 4)
    assert torch.equal(read.long() & 15, numbers)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.booleans(), st.sampled_from([None, 8, 16]))
def test_a_packed_layer_is_read_back_and_by_gptqmodel(seed, symmetric, group):
    packing = pytest.importorskip("gptqmodel.quantization.awq.utils.packing_utils")
    weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(seed))
    quantized = affine.quantize(weight, Scheme(4, group, symmetric))
    tensors = awq_format.pack(quantized)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    groups = 32 // (group or 32)
    assert shapes == {"qweight": [32, 3], "qzeros": [groups, 3], "scales": [groups, 24]}
    expected = affine.dequantize(quantized)
    assert torch.equal(affine.dequantize(awq_format.unpack(tensors)), expected)
    theirs = packing.dequantize_gemm(tensors["qweight"], tensors["qzeros"], tensors["scales"].float(), 4,
                                     group or 32)
    assert torch.equal(theirs.T, expected)


def test_gptqmodels_layer_computes_with_our_words():
    """AwqTorchLinear, the layer that transformers puts in for an AWQ checkpoint on a CPU."""
    module = pytest.importorskip("gptqmodel.nn_modules.qlinear.torch_awq")
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    quantized = affine.quantize(weight, Scheme(4, 16, symmetric=False))
    layer = module.AwqTorchLinear(bits=4, group_size=16, sym=False, desc_act=False, in_features=32,
                                  out_features=64, bias=False, register_buffers=True)
    layer.load_state_dict(awq_format.pack(quantized))
    layer.post_init()
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1)).half()
    with torch.no_grad():
        came = layer(x).float()
    torch.testing.assert_close(came, x.float() @ affine.dequantize(quantized).T, rtol=5e-3, atol=5e-2)


@pytest.mark.slow
@pytest.mark.parametrize("kv_heads, symmetric", [(4, False), (2, False), (2, True)])
def test_transformers_loads_our_checkpoint(tmp_path, kv_heads, symmetric):
    """A folder written here is loaded by transformers through GPTQModel, and its logits agree with ours."""
    pytest.importorskip("gptqmodel")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    model, keep = small_llama(kv_heads), {}
    awq.awq(model, tokens(), Scheme(4, 32, symmetric), progress=False, keep=keep)
    assert set(keep) == set(layerwise.block_linears(model))
    folder = awq_format.save(tmp_path / "checkpoint", model, tokenizer, keep)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    loaded = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu").eval()
    assert "Awq" in type(loaded.model.layers[0].mlp.up_proj).__name__
    with torch.no_grad():
        ours, theirs = model(tokens()).logits, loaded(tokens()).logits.float()
    # Its CPU kernel multiplies in bfloat16: about 0.4 % a layer. Words in a wrong order give over 100 %.
    assert (theirs - ours).abs().mean() < 0.03 * ours.std()
    with pytest.raises(FileExistsError, match="name another folder"):
        awq_format.save(folder, model, tokenizer, keep)


def test_words_that_cannot_be_packed():
    with pytest.raises(ValueError, match="must be a multiple of that"):
        awq_format.pack_words(torch.zeros(2, 12, dtype=torch.long))
    with pytest.raises(ValueError, match="integers 0 to 15"):
        awq_format.pack_words(torch.full((1, 8), 16))
    with pytest.raises(ValueError, match="integers 0 to 15"):
        awq_format.pack_words(torch.ones(1, 8))
    with pytest.raises(TypeError, match="int32 matrix"):
        awq_format.unpack_words(torch.zeros(1, 8, dtype=torch.long))
    weight = torch.randn(8, 16)
    with pytest.raises(ValueError, match="holds 4 bits"):
        awq_format.pack(affine.quantize(weight, Scheme(3)))
    with pytest.raises(ValueError, match="holds 4 bits"):
        awq_format.pack(affine.quantize(weight, Scheme(4, "tensor")))
    tensors = awq_format.pack(affine.quantize(weight, Scheme(4, 8)))
    with pytest.raises(ValueError, match="do not belong together"):
        awq_format.unpack(tensors | {"scales": tensors["scales"][:1]})


def test_what_the_format_cannot_hold_or_read():
    weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(0))
    tensors = awq_format.pack(affine.quantize(weight, Scheme(4, 16)))
    for part in ("qweight", "qzeros", "scales"):
        with pytest.raises(ValueError, match=f"has {part} too"):
            awq_format.unpack({name: tensor for name, tensor in tensors.items() if name != part})
    with pytest.raises(ValueError, match="do not belong together"):
        awq_format.unpack(tensors | {"scales": torch.zeros(0, 24)})
    with pytest.raises(ValueError, match="stores FP16 scales"):
        awq_format.pack(affine.quantize(weight, Scheme(4, 16, scale_dtype=torch.float32)))


def test_one_word_of_output_channels():
    quantized = affine.quantize(torch.randn(8, 32, generator=torch.Generator().manual_seed(0)), Scheme(4))
    tensors = awq_format.pack(quantized)
    assert tensors["qweight"].shape == (32, 1) and tensors["qzeros"].shape == (1, 1)
    assert torch.equal(affine.dequantize(awq_format.unpack(tensors)), affine.dequantize(quantized))
