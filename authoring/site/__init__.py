"""The course as a web site: docs/, the README and the lessons, built by Sphinx, then read by `check`.

`build` lays all sources out in build/site/source, runs Sphinx with docs/conf.py, and looks over every page
that came out. Nothing is executed: the lessons show the outputs that solutions/ keeps.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from authoring.project import Project
from authoring.site import check, pages

FORWARD = """\
<!doctype html>
<html lang="{0}"><head><meta charset="utf-8"><title>{1}</title>
<meta http-equiv="refresh" content="0; url={0}/index.html"></head>
<body><p><a href="{0}/index.html">{1}</a></p></body></html>
"""


def build(project: Project, out: Path, *, builder: str = "html",
          languages: dict[str, str] | None = None) -> Path:
    """Build the site anew; what an earlier build left in `out` is removed.

    Each language gets a folder of its own and links to the others. What docs/locale does not translate stays
    English.

    Args:
        project: the course.
        out: folder for sources and pages; html/ in it is what a web server gets.
        builder: of Sphinx: "html", or "linkcheck", which asks for every outside address.
        languages: Sphinx's code of each -> its name; those of pyproject.toml when left out.

    Returns:
        The folder with the pages.

    Raises:
        ValueError: Sphinx found fault with a source, or a page is not as it must be.
    """
    languages = languages or project.settings["tool"]["course"]["languages"]
    source, made = out / "source", out / builder
    for folder in (source, made):
        shutil.rmtree(folder, ignore_errors=True)
    for name, content in pages.write_all(project).items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for code in languages:
        build_language(project, source, out, builder, code, languages)
    if builder == "html":
        title = pages.read_section(project, "").partition("\n")[0].removeprefix("# ")
        first = folder_of(next(iter(languages)))
        (made / "index.html").write_text(FORWARD.format(first, title), encoding="utf-8")
        (made / ".nojekyll").touch()  # or GitHub Pages leaves out _static
        if faults := check.faults(made):
            shown = "\n".join(faults[:20])
            raise ValueError(f"{len(faults)} faults in the built pages:\n{shown}")
    return made


def folder_of(code: str) -> str:
    """The folder of a language.

    Args:
        code: as Sphinx has it, such as "zh_CN".

    Returns:
        Such as "zh".
    """
    return code.partition("_")[0]


def build_language(project: Project, source: Path, out: Path, builder: str, code: str,
                   languages: dict[str, str]) -> None:
    """Let Sphinx build the pages of one language.

    Args:
        project: the course; its docs/conf.py has the settings.
        source: folder with the sources.
        out: as of `build`.
        builder: as of `build`.
        code: of the language.
        languages: all of them, to link to.

    Raises:
        ValueError: Sphinx found fault with a source.
    """
    folder = folder_of(code)
    shown = ",".join(f"{code}:{name}" for code, name in languages.items())
    command = [sys.executable, "-m", "sphinx", "-b", builder, "-q", "-W", "--keep-going", "-E",
               "-c", project.root / "docs", "-d", out / "doctrees" / folder,
               "-D", f"language={code}", "-A", f"course_languages={shown}", source, out / builder / folder]
    if subprocess.run(list(map(str, command)), cwd=project.root).returncode:
        raise ValueError("Sphinx found fault with a page, see above: its source is in docs/, lessons/, the "
                         "README or a docstring.")
