"""The site's sources: solutions folded behind stubs, links that lead to pages, and the whole site once."""

import html
import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from authoring.project import Project
from authoring.site import build, build_language, check, lessons, pages

pytestmark = pytest.mark.xdist_group("site")  # they share what takes long to make
PROJECT = Project()


def notebook(answer):
    return new_notebook(cells=[
        new_markdown_cell("# T\n\n[![Open](https://badge.example/b.svg)](https://lab.example)", id="title"),
        new_code_cell(answer, id="ex"), new_code_cell("print(1)", id="after")])


def test_a_solution_is_folded_behind_its_stub():
    learner = notebook("def f():\n    raise NotImplementedError")
    solved = notebook("def f():\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION")
    made = lessons.fold(learner, solved)
    nbformat.validate(made)
    assert [cell.id for cell in made.cells] == ["title", "ex-stub", "ex", "after"]
    title, stub, solution, after = made.cells
    assert title.source == "# T\n\n[Open](https://lab.example)"
    assert stub.source == learner.cells[1].source and "hide-input" not in stub.metadata.get("tags", [])
    assert solution.source == "def f():\n    return 1"
    assert solution.metadata.tags == ["hide-input"]
    assert solution.metadata.mystnb.code_prompt_show == "Show the solution"
    assert "tags" not in after.metadata
    assert solved.cells[1].metadata == {}  # what was given stays as it was


@pytest.mark.parametrize("file, page, link, expected", [
    ("README.md", "start", "notebooks/04_gptq.ipynb", "lessons/04_gptq.ipynb"),
    ("README.md", "lessons/index", "solutions/04_gptq.ipynb#x", "04_gptq.ipynb#x"),
    ("docs/claims.md", "claims", "../solutions/04_gptq.ipynb#cell-id=claim-c4", "#cell-04_gptq-claim-c4"),
    ("README.md", "lessons/index", "docs/data-and-models.md", "../data-and-models.md"),
    ("docs/teaching.md", "teaching", "../README.md", "start.md"),
    ("docs/teaching.md", "teaching", "../LICENSE", f"{PROJECT.repository}/blob/{PROJECT.ref}/LICENSE"),
    ("README.md", "start", "https://a.example/b.md", "https://a.example/b.md"),
    ("README.md", "start", "#place", "#place"),
])
def test_links_lead_to_pages(file, page, link, expected):
    assert pages.relink(PROJECT, file, page, f"see [this]({link}).") == f"see [this]({expected})."


def test_every_part_says_what_one_learns():
    assert all(part.learn.endswith(".") for part in PROJECT.parts)


def small_site(folder, languages):
    """Two pages in each language, with the settings of the whole site."""
    source = folder / "source"
    (source / "part").mkdir(parents=True)
    (source / "index.md").write_text("# Course\n\n```{toctree}\npart/page\n```\n")
    (source / "part" / "page.md").write_text("# Page\n\nText.\n")
    for code in languages:
        build_language(PROJECT, source, folder, "html", code, languages)
    return folder / "html"


@pytest.mark.slow
def test_a_second_language_gets_pages_and_every_page_leads_to_it(tmp_path):
    made = small_site(tmp_path / "two", {"en": "English", "zh_CN": "中文"})
    assert check.faults(made) == []  # the links between the languages lead somewhere
    english, chinese = ((made / code / "part" / "page.html").read_text("utf-8") for code in ("en", "zh"))
    assert re.search(r'<a lang="zh" hreflang="zh" href="../../zh/part/page.html">中文</a>', english)
    assert re.search(r'<a lang="en" hreflang="en" href="../../en/part/page.html">English</a>', chinese)
    assert re.search(r'<html[^>]* lang="zh', chinese) and "搜索" in chinese and "搜索" not in english


@pytest.mark.slow
def test_one_language_needs_no_switch(tmp_path):
    made = small_site(tmp_path, {"en": "English"})
    assert "course-languages" not in (made / "en" / "index.html").read_text("utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build(PROJECT, tmp_path_factory.mktemp("site"))


@pytest.mark.slow
def test_the_site_has_every_lesson_with_its_pictures(site):
    assert check.faults(site) == []  # `build` would have refused them too
    pictures = 0
    for path in PROJECT.notebooks("solutions"):
        page = (site / "en" / "lessons" / f"{path.stem}.html").read_text(encoding="utf-8")
        outputs = [output for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"
                   for output in cell.outputs if "image/png" in output.get("data", {})]
        alts = [output.metadata["image/png"].alt for output in outputs]
        shown = [html.unescape(alt) for alt in re.findall(r'<img alt="([^"]*)"', page)]
        assert alts == shown, path.stem
        pictures += len(alts)
        learner = nbformat.read(PROJECT.root / "notebooks" / path.name, as_version=4)
        exercises = [cell for cell in learner.cells if cell.metadata.get("nbgrader", {}).get("solution")]
        assert page.count("Show the solution") == len(exercises), path.stem
    assert pictures > 20


@pytest.mark.slow
def test_the_map_leads_to_every_lesson_and_the_library_to_sources(site):
    landing = (site / "en" / "index.html").read_text(encoding="utf-8")
    for part in PROJECT.parts:
        assert f"Part {part.number}: {part.title}" in landing
    for path in PROJECT.lessons():
        assert f'href="lessons/{path.stem}.html"' in landing
    gptq = (site / "en" / "api" / "course_utils.quantize.gptq.html").read_text(encoding="utf-8")
    assert 'id="course_utils.quantize.gptq.column_update"' in gptq and "[source]" in gptq
    assert "en/index.html" in (site / "index.html").read_text(encoding="utf-8")
