"""Read every built page: nothing is loaded from elsewhere, pictures have alt text, links lead somewhere."""

import functools
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src",
           "embed": "src", "object": "data", "input": "src"}  # tag -> what the browser fetches unasked
NOT_LOADED = {"canonical", "alternate", "next", "prev", "search", "index", "help", "author", "license"}
STYLE_ADDRESS = re.compile(r"""(?:url\(|@import\s+)\s*["']?([^"')\s]+)""")


class Page(HTMLParser):
    """What a page loads, links to and shows.

    Args:
        path: of the page.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.without_alt: list[str] = []
        self._in_style = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note what a tag loads or links to; called by the parser.

        Args:
            tag: its name.
            attributes: names and values.
        """
        given = {name: value or "" for name, value in attributes}
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        self._in_style = tag == "style"
        if given.get(LOADING.get(tag, "")):
            self.loads.append(given[LOADING[tag]])
        if tag == "link" and not NOT_LOADED & set(given.get("rel", "").split()):
            self.loads.append(given.get("href", ""))
        self.loads += [part.split()[0] for part in given.get("srcset", "").split(",") if part.split()]
        self.loads += STYLE_ADDRESS.findall(given.get("style", ""))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "img" and not given.get("alt", "").strip():
            self.without_alt.append(given.get("src", ""))

    def handle_data(self, data: str) -> None:
        """Note what a page's own style sheet loads; called by the parser.

        Args:
            data: text.
        """
        if self._in_style:
            self.loads += STYLE_ADDRESS.findall(data)

    def handle_endtag(self, tag: str) -> None:
        """Note where a style sheet ends; called by the parser.

        Args:
            tag: its name.
        """
        self._in_style = False


def is_outside(address: str) -> bool:
    """Whether an address leads to another server.

    Args:
        address: as the page has it.

    Returns:
        True for "https://...", "//..." and the like; not for a path or for data in the page itself.
    """
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme not in ("", "data")


def faults(folder: Path) -> list[str]:
    """Look over all pages and style sheets of a built site.

    Args:
        folder: with the pages.

    Returns:
        One line for each fault: a page that loads something from outside or something missing, a picture
        without alt text, a link to a page or a heading that is not there.
    """
    read = functools.cache(Page)
    found = []
    for path in sorted(folder.rglob("*.html")):
        if "_static" in path.parts:
            continue  # the theme's templates, no pages
        page, name = read(path), path.relative_to(folder)
        found += [f"{name}: the picture {source[:80]} has no alt text" for source in page.without_alt]
        for address in page.loads:
            if is_outside(address):
                found.append(f"{name} loads {address} from outside")
            elif not address.startswith("data:") and not _file(path, address).is_file():
                found.append(f"{name} loads {address}, which is not there")
        for address in page.links:
            if not is_outside(address) and (fault := _broken(path, address, read)):
                found.append(f"{name}: {fault}")
    for path in sorted(folder.rglob("*.css")):
        outside = filter(is_outside, STYLE_ADDRESS.findall(path.read_text(encoding="utf-8")))
        found += [f"{path.relative_to(folder)} loads {address} from outside" for address in outside]
    return found


def _file(page: Path, address: str) -> Path:
    """The file that a page's address without a host means."""
    path = unquote(urlsplit(address).path)
    target = page.parent / path if path else page
    return target / "index.html" if target.is_dir() else target


def _broken(page: Path, address: str, read: functools._lru_cache_wrapper) -> str | None:
    target, fragment = _file(page, address), unquote(urlsplit(address).fragment)
    if not target.is_file():
        return f"a link to {address}, which is not there"
    if fragment and target.suffix == ".html" and fragment not in read(target).ids:
        return f"a link to {address}: no such place on that page"
    return None
