"""What crosses from an answer's process as an object, and what only as a name."""

import json
import logging

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils.checking.mirror import Mirror, Opaque
from course_utils.checking.remote import _known_class
from course_utils.phone.toy import ToyGraph
from course_utils.quantize import packed
from course_utils.quantize.affine import Scheme


def crossed(value):
    """What the judge holds after the value has come over."""
    header, blobs = Mirror(_known_class).pack(value)
    return Mirror(_known_class).unpack(json.loads(json.dumps(header)), blobs)


def test_a_model_with_packed_layers_computes_the_same_on_the_other_side():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, tie_word_embeddings=True)).eval()  # fmt: skip
    packed.replace_linears(model, Scheme(8), progress=False)
    came = crossed(model)
    assert type(came) is LlamaForCausalLM and came is not model
    with torch.no_grad():
        torch.testing.assert_close(came(torch.arange(5)[None]).logits, model(torch.arange(5)[None]).logits)


@pytest.mark.parametrize("value", [logging.getLogger("a"), json.JSONDecoder(), ToyGraph(0)])
def test_an_object_of_another_class_is_a_name(value):
    came = crossed(value)
    assert isinstance(came, Opaque) and type(came).__name__ == type(value).__name__


def test_a_function_is_a_name():
    assert isinstance(crossed([np.load])[0], Opaque)
