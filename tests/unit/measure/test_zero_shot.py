"""The last word of a paragraph, against what transformers writes."""

import copy

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from course_utils import measure
from course_utils.measure.zero_shot import NOTHING

PARAGRAPHS = [
    "The train left the station at noon with forty people.",
    "It stopped in every village, and nobody knew the reason.",
    "Nobody came at eight, and nobody left in 1945.",  # ends in a number
    "There was nothing to see but rain and more rain!",  # ends in another sign
    "The station.",  # too short
    "Forty people left the train in the village, as they did every evening.",
]


@pytest.fixture(scope="module")
def tokenizer():
    letters = ByteLevelBPETokenizer()
    letters.train_from_iterator(PARAGRAPHS, vocab_size=300)
    return PreTrainedTokenizerFast(tokenizer_object=letters._tokenizer)


def written(model, before, length):
    ids = before[None]
    options = {"max_new_tokens": length, "min_new_tokens": length, "do_sample": False, "pad_token_id": 0}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(before) :]


@pytest.fixture(scope="module")
def passages(model, tokens):
    """Words of 1 to 3 tokens: the model's own, its own up to the last token, and others."""
    before = tokens[:240].view(24, 10)
    words = torch.full((24, 3), NOTHING)
    for row in range(24):
        length = 1 + row % 3
        words[row, :length] = written(model, before[row], length)
        if row // 3 % 2:
            words[row, length - 1] = (words[row, length - 1] + 1) % 97
        if row >= 18:
            words[row, :length] = tokens[240 + 3 * (row - 18):][:length]
    return measure.LastWords(before, words)


def test_a_word_is_right_where_transformers_writes_it(model, passages):
    expected = []
    for before, word in zip(passages.before, passages.words, strict=True):
        word = word[word != NOTHING]
        expected.append(written(model, before, len(word)).equal(word))
    found = measure.last_word_accuracy(model, passages, batch_size=7)
    assert found.right == tuple(expected) and 9 <= found.correct < 15
    assert found == measure.last_word_accuracy(model, passages)


def test_two_models_are_paired_by_paragraph(model, passages):
    found = measure.last_word_accuracy(model, passages)
    assert measure.compare(found, found).difference == 0
    other = measure.LastWords(passages.before, passages.words.flip(0))
    with pytest.raises(ValueError, match="not of the same examples"):
        measure.compare(found, measure.last_word_accuracy(model, other))


def test_paragraphs_lose_their_last_word(tokenizer):
    texts = ["\n\n".join(PARAGRAPHS[:3]), "\n\n".join(PARAGRAPHS[3:])]
    found = measure.last_words(tokenizer, texts, count=3, context=8)
    assert found.before.shape == (3, 8)
    ends = {}
    for before, word in zip(found.before, found.words, strict=True):
        ends[tokenizer.decode(word[word != NOTHING])] = tokenizer.decode(before)
    assert set(ends) == {" people", " reason", " evening"}
    for word, before in ends.items():
        assert any(paragraph.endswith(before + word + ".") for paragraph in PARAGRAPHS)
    again = measure.last_words(tokenizer, texts, count=3, context=8)
    assert again.before.equal(found.before) and again.words.equal(found.words)


@pytest.mark.parametrize("arguments, match", [
    ({"count": 4, "context": 8}, "4 paragraphs are asked for, but only 3"),
    ({"count": 0}, "must be at least 1"),
    ({"context": 0}, "must be at least 1"),
])  # fmt: skip
def test_paragraphs_that_do_not_suffice_are_refused(tokenizer, arguments, match):
    with pytest.raises(ValueError, match=match):
        measure.last_words(tokenizer, ["\n\n".join(PARAGRAPHS)], **arguments)


def test_another_vocabulary_is_refused(model, passages):
    wrong = measure.LastWords(passages.before + 90, passages.words)
    with pytest.raises(ValueError, match="made by this model's tokenizer"):
        measure.last_word_accuracy(model, wrong)


def test_a_broken_model_is_refused(model, passages):
    broken = copy.deepcopy(model)
    torch.nn.init.constant_(broken.model.norm.weight, float("nan"))
    with pytest.raises(ValueError, match="the model is broken"):
        measure.last_word_accuracy(broken, passages)
