"""What a model can do that it was never trained for: say the last word of a paragraph."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from course_utils.measure.quality import Accuracy, accuracy_of_answers, check_text, evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NOTHING = -1  # fills the rows of words that have fewer tokens than the longest
ENDS_IN_WORD = re.compile(r"(?P<before>.+)(?P<word> [^\W\d_]+)\.", re.DOTALL)


@dataclass(frozen=True)
class LastWords:
    """Paragraphs without their last word, and the words.

    Attributes:
        before: int64 [paragraphs, context], the tokens before each word.
        words: int64 [paragraphs, longest], the tokens of each word, then -1.
    """

    before: torch.Tensor
    words: torch.Tensor


def last_words(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], count: int = 256,
               context: int = 32) -> LastWords:
    """Take the last word off paragraphs, for a model to guess.

    In the manner of LAMBADA (Paperno et al., "The LAMBADA dataset", ACL 2016, arXiv 1606.06031). Theirs are
    novels, and people had to need the whole passage for the word. These are any paragraphs that end in a word
    of letters and a full stop, so the figures of the two do not compare.

    Args:
        tokenizer: the one of the model that will answer.
        texts: articles; an empty line parts their paragraphs.
        count: how many paragraphs, drawn from all that fit, always the same ones.
        context: tokens that the model sees before the word; paragraphs with fewer are left out.

    Returns:
        The paragraphs' ends and the words.

    Raises:
        ValueError: a number is below 1, or too few paragraphs fit.
    """
    if min(count, context) < 1:
        raise ValueError(f"count and context must be at least 1, not {count} and {context}")
    found = []
    for paragraph in (part for text in texts for part in text.split("\n\n")):
        match = ENDS_IN_WORD.fullmatch(paragraph)
        if not match:
            continue
        before, whole = (tokenizer(part, add_special_tokens=False)["input_ids"]
                         for part in (match["before"], match["before"] + match["word"]))  # fmt: skip
        # Some tokenizers cut the text before the word in another way when the word follows.
        if len(before) >= context and whole[: len(before)] == before:
            found.append((before[-context:], whole[len(before) :]))
    if len(found) < count:
        raise ValueError(f"{count:,} paragraphs are asked for, but only {len(found):,} end in a word after "
                         f"{context} tokens: ask for fewer, or give more text")
    before, words = zip(*random.Random(0).sample(found, count), strict=True)
    words = torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, words)), True, NOTHING)
    return LastWords(torch.tensor(before), words)


def last_word_accuracy(model: PreTrainedModel, passages: LastWords, batch_size: int = 32) -> Accuracy:
    """How often a model writes exactly the word that stood there, always taking its likeliest token.

    All tokens of the word must be right. Each is asked for after the true ones before it: that gives the same
    answer as letting the model write, in one pass. Chance is one word of the vocabulary, about 0.

    Args:
        model: a causal language model of transformers.
        passages: from `last_words`, made with the model's tokenizer.
        batch_size: passages in a pass.

    Returns:
        The share of right words; `measure.compare` pairs two models by passage.

    Raises:
        TypeError: the tokens are no integers.
        ValueError: they are not of this model's vocabulary or too many, or the model reads in both
            directions or gives NaN.
    """
    before, words = passages.before, passages.words
    # A causal model does not see what fills a row up, so any token will do.
    ids = torch.cat([before, words.clamp(min=0)], dim=1)
    check_text(model, ids.flatten(), ids.shape[1], ids.shape[1])
    right = []
    with evaluating(model):
        for rows, answers in zip(ids.split(batch_size), words.split(batch_size), strict=True):
            # The logits at a position are about the next token: the last token is asked for, not read.
            rows = rows[:, :-1].to(model.device)
            logits = model(input_ids=rows, use_cache=False, logits_to_keep=words.shape[1]).logits
            if logits.isnan().any():
                raise ValueError("the model is broken, it has no answer: its logits hold NaN")
            said = logits.argmax(dim=-1).cpu()
            right += ((said == answers) | (answers == NOTHING)).all(dim=1).tolist()
    return accuracy_of_answers(right, ids)
