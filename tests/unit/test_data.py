"""The real texts: clean, split without overlap, the same each time."""

import inspect
import re
import statistics
from pathlib import Path

import pytest
import torch

from course_utils import data

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def articles():
    return {split: data.wikipedia_texts(split) for split in data.WIKIPEDIA_SPLITS}


def title(article):
    return article.partition("\n")[0]


# --------------------------------------------------------------------------- Wikipedia

def test_splits_share_no_article(articles):
    titles = {split: [title(article) for article in texts] for split, texts in articles.items()}
    assert not set(titles["calibration"]) & set(titles["heldout"])
    assert all(len(set(names)) == len(names) for names in titles.values())
    assert "Aristotle" in titles["calibration"] and "Aldous Huxley" in titles["heldout"]
    share = len(titles["heldout"]) / sum(map(len, titles.values()))
    assert 0.2 < share < 0.45


def test_no_paragraph_is_in_both_splits(articles):
    paragraphs = [{p for text in articles[split] for p in text.split("\n") if len(p) > 100}
                  for split in data.WIKIPEDIA_SPLITS]
    assert not paragraphs[0] & paragraphs[1]


MARKUP = {
    "templates": r"\{\{|\}\}",
    "links": r"\[\[|\]\]",
    "tables": r"(?m)^[|!]|\{\||\bcolspan\b|\bbgcolor\b",
    "bold and italics": r"''",
    "headings": r"(?m)^==",
    "tags": r"</?[a-z]+[^<>]*>",
    "entities": r"&(nbsp|amp|lt|ndash);",
    "empty brackets": r"\(\s*\)",
    "double spaces": r"  ",
    "formulas": r"\\frac|\\displaystyle",
    "lost formulas": data._LOST,
    "reference lists": r"(?m)^(References|See also|Further reading)$",
    "web addresses": r"https?://",
    "pictures and categories": r"\b(File|Image|Category):",
}
AT_MOST = {"web addresses": 5, "pictures and categories": 5}  # some links are broken in the dump itself


@pytest.mark.parametrize("kind", MARKUP)
def test_no_markup_is_left(articles, kind):
    found = [text[max(0, match.start() - 40):match.end() + 40] for texts in articles.values()
             for text in texts for match in re.finditer(MARKUP[kind], text)]
    assert len(found) <= AT_MOST.get(kind, 0), found[:8]


def test_articles_are_prose(articles):
    for text in articles["calibration"] + articles["heldout"]:
        assert len(text) >= data.SHORTEST, title(text)
        letters = sum(char.isalpha() or char.isspace() for char in text) / len(text)
        assert letters > 0.8, (title(text), letters)
    lines = [line for text in articles["heldout"] for line in text.split("\n") if line]
    assert statistics.mean(map(len, lines)) > 150


def test_cleaning_keeps_what_a_reader_sees():
    source = (
        "{{Infobox|name=Rome}}'''Rome''' ({{lang-it|Roma}}) is the [[Capital city|capital]] of ''[[Italy]]''"
        "<ref>A book.</ref>, {{convert|10|km}} wide.<!-- hidden --> [[File:Rome.jpg|thumb|A [[view]]]]\n"
        "{| class=wikitable\n|-\n| cell || cell\n|}\n"
        "== Area ==\nIt is <math>x^2</math> in size.\nIt is {{lang|la|magna}}.<ref name=a />\n"
        "* a [http://example.org park]\n"
        "== See also ==\n* [[Milan]]\n=== More ===\nnothing\n"
        "== Climate ==\nMild&nbsp;and dry.\n== References ==\n{{reflist}}\n[[Category:Cities]]\n")
    assert data.clean_wikitext(source).split("\n\n") == [
        "Rome is the capital of Italy, 10 km wide.",
        "Area", "It is magna.\na park", "Climate", "Mild and dry."]


@pytest.mark.parametrize("source, text", [
    ("", ""), ("{{stub}}", ""), ("#REDIRECT [[Rome]]", ""),
    ("An ''unclosed italic.\n\n== References ==\nA book", "An unclosed italic."),
    ("An <ref>unclosed reference", "An"), ("{{convert}} {{lang|la}} {{nowrap}}x", "x"),
])
def test_cleaning_survives_odd_markup(source, text):
    cleaned = data.clean_wikitext(source)
    if text == "An":
        assert cleaned.startswith(text) and "<" not in cleaned
    elif source.startswith("#"):
        assert "[[" not in cleaned
    else:
        assert cleaned == text


def test_tokens_are_those_of_the_articles(lm, articles):
    """Each piece of 1,024 tokens decodes to a stretch of one article of the split."""
    tokenizer = lm[1]
    stream = data.wikipedia_tokens(tokenizer, "heldout")
    assert stream.dtype == torch.long and stream.dim() == 1 and len(stream) % data.PIECE == 0
    assert len(stream) > 100_000
    starts = set()
    for piece in stream.view(-1, data.PIECE)[::9]:
        text = tokenizer.decode(piece[8:-8])  # a piece may begin or end within a character
        where = [i for i, article in enumerate(articles["heldout"]) if text in article]
        assert len(where) == 1
        starts.add(where[0])
    assert len(starts) > 5


def test_tokens_are_the_same_each_time_and_begin_alike(lm):
    tokenizer = lm[1]
    first = data.wikipedia_tokens(tokenizer, "calibration", 5000)
    data._token_stream.cache_clear()
    assert torch.equal(first, data.wikipedia_tokens(tokenizer, "calibration", 5000))
    assert torch.equal(first[:700], data.wikipedia_tokens(tokenizer, "calibration", 700))
    assert first.shape == (5000,)
    assert not torch.equal(first, data.wikipedia_tokens(tokenizer, "heldout", 5000))


def test_first_tokens_are_these(lm):
    """A change of texts, order or tokenizer changes every recorded number: it must be seen here."""
    text = lm[1].decode(data.wikipedia_tokens(lm[1], "heldout", 24))
    assert text == (" to enroll her in Social Security and Medicare. "
                    "During the late 1970s her activities within the Objectivist")


def test_caller_may_write_into_the_tokens(lm):
    tokens = data.wikipedia_tokens(lm[1], "heldout", 10)
    kept = tokens.clone()
    tokens.zero_()
    assert torch.equal(data.wikipedia_tokens(lm[1], "heldout", 10), kept)


def test_another_tokenizer_gives_its_own_tokens(encoder):
    tokens = data.wikipedia_tokens(encoder[1], "heldout", 100)
    assert tokens.max() < 30522 and encoder[1].cls_token_id not in tokens


def test_more_tokens_than_there_are(lm):
    with pytest.raises(ValueError, match=r"n_tokens is 100,000,000, but the heldout text has \d+,\d+"):
        data.wikipedia_tokens(lm[1], "heldout", 100_000_000)


@pytest.mark.parametrize("n_tokens, kind", [
    (0, ValueError), (-5, ValueError), (1.5, TypeError), ("9", TypeError), (True, TypeError)])
def test_bad_numbers_of_tokens(n_tokens, kind):
    with pytest.raises(kind, match="n_tokens"):
        data.wikipedia_tokens(None, "heldout", n_tokens)


@pytest.mark.parametrize("split", ["test", "train", "", None, "Heldout", ["heldout"]])
def test_unknown_split(split):
    for read in (data.wikipedia_texts, lambda split: data.wikipedia_tokens(None, split)):
        with pytest.raises(ValueError, match="unknown split .*choose 'calibration' or 'heldout'"):
            read(split)
    with pytest.raises(ValueError, match="unknown split"):
        data.reviews("heldout")


# --------------------------------------------------------------------------- windows

def test_windows_keep_order_and_drop_the_rest():
    cut = data.windows(torch.arange(11), 4)
    assert cut.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert data.windows(torch.arange(4), 4).shape == (1, 4)
    assert data.windows(torch.arange(20)[::2], 5).tolist() == [[0, 2, 4, 6, 8], [10, 12, 14, 16, 18]]


def test_windows_longer_than_the_text_or_the_context(lm):
    with pytest.raises(ValueError, match="window of 9 tokens is longer than the text, which has 8"):
        data.windows(torch.arange(8), 9)
    with pytest.raises(ValueError, match="there are no tokens: the text is empty"):
        data.windows(torch.tensor([], dtype=torch.long), 2)
    many = torch.zeros(10_000, dtype=torch.long)
    with pytest.raises(ValueError, match="longer than the model's context of 8,192"):
        data.windows(many, 8193, model=lm[0])
    assert data.windows(many, 8192, model=lm[0]).shape == (1, 8192)


@pytest.mark.parametrize("tokens, length, kind", [
    ([1, 2, 3], 2, TypeError), (torch.zeros(2, 3), 2, TypeError), (torch.zeros(4), 0, ValueError),
    (torch.zeros(4), -1, ValueError), (torch.zeros(4), 2.0, TypeError)])
def test_bad_windows(tokens, length, kind):
    with pytest.raises(kind, match="tokens|length"):
        data.windows(tokens, length)


# --------------------------------------------------------------------------- reviews

@pytest.mark.parametrize("domain", ["movie", "amazon", "tweets", "nyt"])
def test_reviews(domain):
    train, test = data.reviews("train", domain), data.reviews("test", domain)
    assert len(train) == 4 * (len(train) + len(test)) // 5
    texts = [text for text, _ in train + test]
    assert len(set(texts)) == len(texts), "a sentence is in both splits or twice in one"
    assert {label for _, label in train} == {label for _, label in test} == {0, 1}
    assert all(text == text.strip() and text and "&amp;" not in text for text in texts)
    shares = [statistics.mean(label for _, label in part) for part in (train, test)]
    assert abs(shares[0] - shares[1]) < 0.05
    if domain == "movie":
        assert len(texts) > 10_000 and all(abs(share - 0.5) < 0.02 for share in shares)


def test_labels_follow_the_words():
    """An independent look: plainly good and bad words go with the labels."""
    rows = data.reviews("train") + data.reviews("test")
    for word, expected in (("wonderful", 1), ("masterpiece", 1), ("boring", 0), ("awful", 0)):
        labels = [label for text, label in rows if word in text.lower()]
        assert len(labels) > 10 and abs(statistics.mean(labels) - expected) < 0.35, word


def test_unknown_domain():
    with pytest.raises(ValueError, match="unknown domain 'music': choose 'movie' or 'amazon'"):
        data.reviews("train", "music")


def test_reviews_default_to_movies():
    assert data.reviews("test") == data.reviews("test", "movie")


# --------------------------------------------------------------------------- both

def test_warm_cache_needs_no_network(lm, articles, no_network):
    data.prepare()
    assert data.wikipedia_tokens(lm[1], "calibration", 10).shape == (10,)
    assert data.reviews("train", "nyt")


def test_attribution_names_every_source(capsys):
    data.attribution()
    shown = capsys.readouterr().out
    page = (ROOT / "docs" / "data-and-models.md").read_text(encoding="utf-8")
    from course_utils import models

    for item in (data.WIKIPEDIA, data.REVIEWS, models.SMOLLM2, models.MINILM):
        assert f"{item.package} {item.version}" in shown and f"{item.package} {item.version}" in page
        assert item.sha256 in page
    for licence in ("CC BY-SA", "MIT", "Apache-2.0", "Hutto", "Gilbert"):
        assert licence in shown and licence in page


def test_page_gives_the_numbers_that_the_code_gives(lm, articles):
    page = (ROOT / "docs" / "data-and-models.md").read_text(encoding="utf-8")
    for split in data.WIKIPEDIA_SPLITS:
        tokens = len(data.wikipedia_tokens(lm[1], split))
        assert f"| {split} | {len(articles[split])} | {tokens:,} |" in page
    for domain in data._FILES:
        train, test = data.reviews("train", domain), data.reviews("test", domain)
        positive = round(100 * statistics.mean(label for _, label in train + test))
        assert f"| {domain} | {len(train):,} | {len(test):,} | {positive} % |" in page
    assert inspect.getdoc(data.wikipedia_tokens).count(f"{data.PIECE:,}") >= 1
