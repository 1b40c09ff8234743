"""What `course site` looks for in built pages is found where it is planted, and nowhere else."""

import pytest

from authoring.site import check

GOOD = """<!doctype html><html><head><link rel="stylesheet" href="_static/a.css?v=1">
<link rel="canonical" href="https://course.example/page.html"><style>p { color: red }</style></head>
<body><h1 id="top">Title</h1><img src="data:image/png;base64,AA==" alt="a red point">
<a href="https://elsewhere.example/">out</a> <a href="#top">up</a>
<a href="b.html#place">b</a></body></html>"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "a.css").write_text("p { background: url(data:image/png;base64,AA==) }")
    (tmp_path / "a.html").write_text(GOOD)
    (tmp_path / "b.html").write_text('<p id="place">text</p>')
    return tmp_path


def test_a_good_site_has_no_fault(folder):
    assert check.faults(folder) == []


@pytest.mark.parametrize("planted, said", [
    ('<script src="https://cdn.example/x.js"></script>', "loads https://cdn.example/x.js from outside"),
    ('<img src="//cdn.example/x.png" alt="a picture">', "loads //cdn.example/x.png from outside"),
    ('<link rel="preload" href="https://fonts.example/f.woff2">', "f.woff2 from outside"),
    ('<img srcset="x.png 1x, https://cdn.example/2.png 2x" src="x.png" alt="two">', "2.png from outside"),
    ("<style>@import 'https://fonts.example/f.css';</style>", "f.css from outside"),
    ('<p style="background: url(https://cdn.example/b.png)">', "b.png from outside"),
    ('<iframe src="https://video.example/1"></iframe>', "video.example/1 from outside"),
    ('<script src="_static/gone.js"></script>', "_static/gone.js, which is not there"),
    ('<img src="data:image/png;base64,AA==">', "has no alt text"),
    ('<img src="data:image/png;base64,AA==" alt=" ">', "has no alt text"),
    ('<a href="gone.html">x</a>', "gone.html, which is not there"),
    ('<a href="b.html#gone">x</a>', "no such place"),
    ('<a href="#gone">x</a>', "no such place"),
])
def test_a_planted_fault_is_found(folder, planted, said):
    (folder / "a.html").write_text(GOOD.replace("</body>", planted + "</body>"))
    faults = check.faults(folder)
    assert any(said in fault and fault.startswith("a.html") for fault in faults), faults


def test_a_style_sheet_that_loads_from_outside_is_found(folder):
    (folder / "_static" / "a.css").write_text('@font-face { src: url("https://fonts.example/f.woff2") }')
    assert check.faults(folder) == ["_static/a.css loads https://fonts.example/f.woff2 from outside"]
