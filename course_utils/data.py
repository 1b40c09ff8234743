"""The real text that every lesson measures on: Wikipedia articles and rated review sentences."""

import bz2
import functools
import hashlib
import io
import json
import random
import re
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import mwparserfromhell
import torch
from tqdm import tqdm

from course_utils import packages
from course_utils.cache import cached_folder

# One wheel for every machine: only its test data is read, never its code.
WIKIPEDIA = packages.PackageFile(
    "gensim", "4.4.0", "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2", megabytes=28,
    tags=("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--abi", "cp311",
          "--implementation", "cp"))
REVIEWS = packages.PackageFile(
    "vaderSentiment", "3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    "additional_resources/hutto_ICWSM_2014.tar.gz", megabytes=2.5, kind="sdist")

WIKIPEDIA_SPLITS = ("calibration", "heldout")
PIECE = 1024  # tokens taken from one article before the next one's turn


# --------------------------------------------------------------------------- Wikipedia

def wikipedia_texts(split: str) -> list[str]:
    """Cleaned English Wikipedia articles, each starting with its title. Needs no network once cached.

    Args:
        split: "calibration" or "heldout". No article is in both.
    """
    if split not in WIKIPEDIA_SPLITS:
        raise ValueError(f"unknown split {split!r}: Wikipedia has {' and '.join(map(repr, WIKIPEDIA_SPLITS))}")
    folder = cached_folder("wikipedia", _build_wikipedia, version="1")
    return json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))


def wikipedia_tokens(tokenizer, split: str, n_tokens: int | None = None) -> torch.Tensor:
    """The articles of a split as one stream of token ids, LongTensor [n_tokens] (all of them if None).

    Each article is encoded by itself, without special tokens, an empty line after it. The stream
    takes 1,024 tokens from every article in turn, then the next 1,024 from every article, and so on:
    a short sample covers many subjects, and windows of 512 or 1,024 tokens stay within an article.
    """
    stream = _token_stream(tokenizer, split)
    if n_tokens is None:
        return stream.clone()
    if n_tokens < 1:
        raise ValueError(f"n_tokens is {n_tokens}: ask for at least 1 token")
    if n_tokens > len(stream):
        raise ValueError(f"the {split} text has {len(stream):,} tokens with this tokenizer, not {n_tokens:,}")
    return stream[:n_tokens].clone()


@functools.lru_cache(maxsize=4)
def _token_stream(tokenizer, split: str) -> torch.Tensor:
    texts = [text + "\n\n" for text in wikipedia_texts(split)]
    articles = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    longest = max(map(len, articles))
    pieces = [article[start:start + PIECE] for start in range(0, longest, PIECE) for article in articles]
    return torch.tensor([token for piece in pieces for token in piece])


def windows(tokens: torch.Tensor, length: int) -> torch.Tensor:
    """Cut a stream [n] into whole windows [n // length, length], in order. The rest at the end is dropped."""
    if tokens.dim() != 1:
        raise ValueError(f"windows takes one stream of tokens [n], not a tensor of shape {list(tokens.shape)}")
    if length < 1 or length > len(tokens):
        raise ValueError(f"a window of {length:,} tokens does not fit in {len(tokens):,} tokens")
    count = len(tokens) // length
    return tokens[:count * length].view(count, length)


def _build_wikipedia(folder: Path) -> None:
    pages = list(_pages(packages.fetch(WIKIPEDIA)))
    articles = {}
    for title, source in tqdm(pages, desc="Cleaning Wikipedia articles", leave=False):
        text = clean_wikitext(source)
        if len(text) >= 2000:
            articles[title] = f"{title}\n\n{text}"
    # By hash, not by place: neighbours in the alphabet are alike, and a new article moves no other.
    heldout = {title for title in articles if int(hashlib.sha256(title.encode()).hexdigest(), 16) % 3 == 0}
    for split in WIKIPEDIA_SPLITS:
        texts = [text for title, text in articles.items() if (title in heldout) == (split == "heldout")]
        (folder / f"{split}.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")


def _pages(dump: Path):
    """(title, wikitext) of every article in a MediaWiki export; redirects and disambiguations left out."""
    with bz2.open(dump) as file:
        for _, page in ElementTree.iterparse(file):
            if not page.tag.endswith("}page"):
                continue
            space = page.tag.removesuffix("page")
            title = page.findtext(f"{space}title")
            if page.find(f"{space}redirect") is None and page.findtext(f"{space}ns") == "0" \
                    and not title.endswith("(disambiguation)"):
                yield title, page.findtext(f"{space}revision/{space}text") or ""
            page.clear()


_BACK_MATTER = re.compile(
    r"^(see also|references|notes|footnotes|citations|sources|bibliography|further reading|external links|"
    r"notes and references|references and notes|works cited|gallery)$", re.IGNORECASE)


def clean_wikitext(source: str) -> str:
    """Plain prose of an article: no tables, templates, references, pictures or lists of sources."""
    code = mwparserfromhell.parse(source)
    for section in code.get_sections(levels=[2, 3], include_lead=False):
        heading = section.filter_headings(recursive=False)
        if heading and _BACK_MATTER.match(heading[0].title.strip_code().strip()):
            _remove(code, section)
    for tag in code.filter_tags(matches=lambda node: str(node.tag).lower() in ("table", "ref", "gallery", "math")):
        _remove(code, tag)
    for link in code.filter_wikilinks(matches=lambda node: re.match(
            r"\s*:?\s*(file|image|category|media)\s*:", str(node.title), re.IGNORECASE)):
        _remove(code, link)
    text = code.strip_code(normalize=True, collapse=True, keep_template_params=False)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip()


def _remove(code, node) -> None:
    try:
        code.remove(node)
    except ValueError:
        pass  # it went with the table, template or section around it


# --------------------------------------------------------------------------- reviews

_FILES = {"movie": "movieReviewSnippets", "amazon": "amazonReviewSnippets", "tweets": "tweets",
          "nyt": "nytEditorialSnippets"}


def reviews(split: str, domain: str = "movie") -> list[tuple[str, int]]:
    """Sentences with a label: 1 when people rated them positive, 0 when negative.

    Args:
        split: "train" or "test".
        domain: "movie", "amazon", "tweets" or "nyt".
    """
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}: reviews have 'train' and 'test'")
    if domain not in _FILES:
        raise ValueError(f"unknown domain {domain!r}: there are {', '.join(map(repr, _FILES))}")
    folder = cached_folder("reviews", _build_reviews, version="1")
    rows = json.loads((folder / f"{domain}-{split}.json").read_text(encoding="utf-8"))
    return [(text, label) for text, label in rows]


def _build_reviews(folder: Path) -> None:
    with tarfile.open(packages.fetch(REVIEWS)) as archive:
        for domain, stem in _FILES.items():
            raw = archive.extractfile(f"hutto_ICWSM_2014/{stem}_GroundTruth.txt").read()
            rows = []
            for line in io.StringIO(raw.decode("utf-8", errors="replace")):
                _, rating, text = line.rstrip("\r\n").split("\t", 2)
                if abs(float(rating)) >= 0.5:
                    rows.append((text.strip(), int(float(rating) > 0)))
            random.Random(0).shuffle(rows)
            cut = len(rows) * 4 // 5
            for split, part in (("train", rows[:cut]), ("test", rows[cut:])):
                (folder / f"{domain}-{split}.json").write_text(json.dumps(part, ensure_ascii=False), encoding="utf-8")


def prepare() -> None:
    """Fetch and clean all texts, so that later reads need no network."""
    wikipedia_texts("heldout")
    reviews("test")
