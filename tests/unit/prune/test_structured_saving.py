"""course_utils.prune.structured.saving: transformers loads the folders, with and without the course."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertForMaskedLM

from course_utils.prune import structured
from tests.unit.prune.small_models import HEAD_DIM, KEPT, MODELS, batch, bert, logits, parameters


@pytest.mark.parametrize("name", ["Llama MHA", "Llama GQA", "Llama GQA, biases"])
def test_llama_folder_loads_with_plain_transformers(name, tmp_path):
    model = MODELS[name]()
    structured.keep_heads(model, KEPT[name])
    structured.keep_neurons(model, [list(range(0, 40, 2))] * 3)
    structured.save(model, tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert torch.equal(logits(loaded.eval()), logits(model))
    assert loaded.config.head_dim == HEAD_DIM


def test_bert_folder_loads_where_the_course_is_not_installed(tmp_path, monkeypatch):
    model = bert()
    structured.keep_heads(model, KEPT["BERT"])
    structured.save(model, tmp_path / "pruned")
    torch.save((batch(), logits(model)), tmp_path / "expected.pt")
    code = f"""
import sys
sys.modules["course_utils"] = None     # importing it fails
import torch
from transformers import AutoModelForSequenceClassification as Auto
model = Auto.from_pretrained({str(tmp_path / "pruned")!r}, trust_remote_code=True)
batch, expected = torch.load({str(tmp_path / "expected.pt")!r})
with torch.no_grad():
    assert torch.equal(model.eval()(**batch).logits, expected)
print(sum(p.numel() for p in model.parameters()))
"""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == parameters(model)


def test_plain_bert_does_not_load_fewer_heads(tmp_path):
    """The reason for trust_remote_code. When transformers learns to, the lesson should say so."""
    model = bert()
    structured.keep_heads(model, KEPT["BERT"])
    structured.save(model, tmp_path)
    with pytest.raises(RuntimeError, match="size"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=False)


def test_bert_with_narrow_mlps_loads_with_plain_transformers(tmp_path):
    model = bert()
    structured.keep_neurons(model, [[0, 5, 9]] * 3)
    structured.save(model, tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded.eval()), logits(model))


def test_other_berts_with_fewer_heads_are_refused(tmp_path):
    model = BertForMaskedLM(bert().config)
    structured.keep_heads(model, KEPT["BERT"])
    with pytest.raises(ValueError, match="sequence classifiers"):
        structured.save(model, tmp_path)
    assert not list(tmp_path.iterdir())
