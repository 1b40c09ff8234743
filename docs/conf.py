"""Settings of Sphinx for the site; `course site` runs it (authoring/site)."""

import importlib.util
import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

from authoring.project import Project

_course = Project()
_meta = _course.settings["project"]

project = "Making LLM inference cheaper"
author = "the authors of the course"
copyright = "the authors of the course; Apache License 2.0"
version = release = _meta["version"]
language = "en"  # `course site` sets each language of pyproject.toml in turn

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
]

# Lessons: nothing is executed, the stored outputs are shown.
nb_execution_mode = "off"
nb_render_plugin = "course"  # authoring.site.renderer, an entry point of pyproject.toml
nb_ipywidgets_js = {}  # or pages with widgets would load them from elsewhere
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

# The library: docstrings in Google's convention, names in `backticks` as code.
default_role = "code"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_use_ivar = True  # or an attribute that is a property too is described twice
napoleon_use_rtype = False

# Mathematics without a network: MathJax comes out of a package and lies beside the pages (see `setup`).
mathjax_path = "mathjax/tex-chtml.js"

html_theme = "pydata_sphinx_theme"
html_title = project
html_static_path = ["_static"]
templates_path = ["_templates"]
locale_dirs = ["locale"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "icon_links": [{"name": "Repository", "url": _course.repository, "icon": "fa-brands fa-github"}],
    "header_links_before_dropdown": 4,
    "navigation_with_keys": False,  # arrow keys are for scrolling
    "show_toc_level": 2,
    "navbar_end": ["languages", "theme-switcher", "navbar-icon-links"],
    "footer_end": [],
}
html_sidebars = {"index": []}
linkcheck_anchors = False
linkcheck_timeout = 20


MARKED = re.compile(r"(`[^`]*`|(?<![\w*])\*\w[^*]*\w\*(?![\w*]))")  # `code` and *emphasis*
ENTRY = re.compile(r"(\w+) {2,}(\S.*)|    (\w+): (\S.*)")  # in a module: a name and what it is


def plain_docstring(app: Sphinx, what: str, name: str, thing: object, options: object,
                    lines: list[str]) -> None:
    """Let a docstring mean what it says: |x| and * are no markup, what is indented stays so or is a list.

    Args:
        app: of Sphinx, which calls this.
        what: "module", "function" and the like.
        name: of the object.
        thing: the object.
        options: of the directive.
        lines: of the docstring, changed in place.
    """
    made, block, margin = [], "", ""  # "list": of names and what they are; "code": shown as it is
    for before, line in zip(["", *lines], lines, strict=False):
        plain = "".join(part if MARKED.fullmatch(part) else re.sub(r"([|*])", r"\\\1", part)
                        for part in MARKED.split(line))
        named = ENTRY.match(plain) if what == "module" and block != "code" else None
        if named and (named[1] or block == "list" or before == "Modules:"):
            made += [""] * (block != "list") + [f"* `{named[1] or named[3]}`: {named[2] or named[4]}"]
            block = "list"
        elif line.strip() and not line.startswith("    "):
            made += [""] * bool(block) + [plain]
            block = ""
        elif block == "list":
            made.append("  " + plain.strip())
        elif block == "code":
            made.append(margin + line)
        elif before == "Example:" or what == "module" and line.strip():
            margin = "    " if before == "Example:" else ""
            made += [f"{margin}.. code-block:: {'python' if margin else 'text'}", "", margin + line]
            block = "code"
        else:
            made.append(plain)
    lines[:] = made


def setup(app: Sphinx) -> None:
    """Copy MathJax beside the pages, without the parts for other kinds of input and output.

    Args:
        app: of Sphinx.
    """
    package = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent
    others = shutil.ignore_patterns("*svg*", "*full*", "mml*", "tex-mml*", "node-main.js", "adaptors")

    def copy(app: Sphinx, error: Exception | None) -> None:
        if error is None and app.builder.format == "html":
            shutil.copytree(package / "static" / "mathjax", app.outdir / "_static" / "mathjax", ignore=others,
                            dirs_exist_ok=True)

    app.connect("build-finished", copy)
    app.connect("autodoc-process-docstring", plain_docstring, priority=100)  # before napoleon
