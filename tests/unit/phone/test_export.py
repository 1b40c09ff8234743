"""The exported file holds the checkpoint's integers and scales, and ONNX Runtime writes the same tokens."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from course_utils import engines
from course_utils.engines import environment, process
from course_utils.errors import CourseError
from course_utils.phone import blocks, decode, export, packed
from course_utils.quantize import affine, checkpoint, gptq
from course_utils.quantize.affine import Scheme

ENGINE = engines.find(export.ENGINE)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("phone export"),  # they share what takes long to make
    pytest.mark.skipif(not environment.is_installed(ENGINE), reason=f"needs: {ENGINE.how_to_install}"),
]
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
CONFIG = LlamaConfig(
    vocab_size=101, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, tie_word_embeddings=True, bos_token_id=0, eos_token_id=None)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(checkpoint, folder of the ONNX file, FP32 graph) of a random Llama with grouped queries."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).eval()
    folder = tmp_path_factory.mktemp("phone")
    model.save_pretrained(folder / "model")
    vocabulary = {f"t{i}": i for i in range(CONFIG.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, "t0")))
    weights = {}
    text = torch.randint(0, CONFIG.vocab_size, (4, 32))
    gptq.quantize_model(model, text, Scheme(4, 64), order="activation", static_groups=True, keep=weights,
                        progress=False)
    checkpoint.save(folder / "checkpoint", model, tokenizer, weights)
    request = {"task": "prepare", "step": "fp32", "model": str(folder / "model"), "out": str(folder / "fp32")}
    answer = process.run(ENGINE, request, 300)
    assert answer, answer
    graph = folder / "fp32" / "model.onnx"
    export.write(folder / "checkpoint", folder / "model", folder / "onnx", level=1, graph=graph)
    return folder / "checkpoint", folder / "onnx", graph


def test_the_file_holds_the_checkpoints_integers_and_scales(made):
    """Each layer's rows, read from the bytes of the file, against what `checkpoint.read` gives."""
    weights, _ = checkpoint.read(made[0])
    assert set(blocks.index(made[1])) == set(weights) | {"lm_head"}
    for name, weight in weights.items():
        stored, scales = blocks.read(made[1], name)
        assert np.array_equal(blocks.integers(stored), weight.q.numpy()), name
        assert np.array_equal(scales, weight.scale.numpy()), name


def test_the_embedding_is_the_output_layer_and_is_stored_once(made):
    stored, scales = blocks.read(made[1], "lm_head")
    table = packed.layers(made[0])["lm_head"]
    assert np.array_equal(stored.reshape(len(stored), -1).astype(int) - 128, table.q.numpy())
    assert np.array_equal(scales, table.scale.numpy())
    bytes_of = {name: entry for name, entry in blocks.index(made[1]).items()}
    together = sum(int(np.prod(entry["integers"]["shape"])) + 4 * int(np.prod(entry["scales"]["shape"]))
                   for entry in bytes_of.values())
    assert (made[1] / "model.onnx.data").stat().st_size < together + 20_000


def test_onnxruntime_writes_what_the_packed_model_writes(made):
    model, _ = packed.load_packed(made[0])
    expected = model.generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False, pad_token_id=0)
    written = decode.generate(decode.open_session(made[1], 1), PROMPT, 12)
    assert written == expected[0, len(PROMPT):].tolist()


def test_the_graph_for_browsers_writes_the_same_from_the_same_weights(made):
    """It has no operator for packed weights, and its large tensors are those of the one file."""
    session = decode.open_session(made[1], 1, "unpacked.onnx")
    packed_integers = decode.open_session(made[1], 1)
    assert decode.generate(session, PROMPT, 12) == decode.generate(packed_integers, PROMPT, 12)
    graph = (made[1] / "unpacked.onnx").read_bytes()
    assert b"MatMulNBits" not in graph and b"model.onnx.data" in graph and len(graph) < 100_000


@torch.no_grad()
def test_scores_are_those_of_the_packed_model(made):
    model, _ = packed.load_packed(made[0])
    session = decode.open_session(made[1], 1)
    past = {value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
            for value in session.get_inputs() if value.name.startswith("past_")}
    feeds = {"input_ids": np.array([PROMPT]), "attention_mask": np.ones((1, len(PROMPT)), np.int64),
             "kept": np.arange(len(PROMPT))}
    scores = session.run(["logits"], feeds | past)[0]
    assert np.allclose(scores, model(torch.tensor([PROMPT])).logits.numpy(), atol=1e-4)


def test_another_models_graph_is_refused(made, tmp_path):
    """Layers are recognised by their FP32 numbers: of another model nothing is written."""
    torch.manual_seed(1)
    LlamaForCausalLM(CONFIG).save_pretrained(tmp_path / "other")
    with pytest.raises(CourseError, match="of another model"):
        export.write(made[0], tmp_path / "other", tmp_path / "onnx", graph=made[2])
    assert not (tmp_path / "onnx").exists()


def test_what_matmulnbits_cannot_hold_is_refused():
    weight = torch.randn(4, 48)
    for scheme, reason in ((Scheme(4, 24), "groups of 16, 32"), (Scheme(4, 16, symmetric=False), "symmetric"),
                           (Scheme(3, 16), "4 or 8 bits"), (Scheme(4, None), "groups of 16, 32")):
        with pytest.raises(ValueError, match=reason):
            blocks.to_blocks(affine.quantize(weight, scheme))
    scattered = gptq.gptq(weight, torch.diag(torch.rand(48) + 1), Scheme(4, 16), order="activation")
    with pytest.raises(ValueError, match="act-order"):
        blocks.to_blocks(scattered)
