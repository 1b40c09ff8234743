"""Lessons in a real JupyterLab, in headless Chromium: open, run all cells, no error; sliders that move.

Another lesson has its turn with each commit; `make run-all` (COURSE_EVERY_LESSON=1) runs all. The screenshots
are kept in runs/browser/ for a person to look at.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from authoring import generate
from authoring.project import Project
from course_utils import progress
from tests.notebooks.test_lessons import COMMIT, LESSONS, in_turn
from tests.surroundings import wait_until_served

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
IN_TURN = LESSONS if os.environ.get("COURSE_EVERY_LESSON") else in_turn(LESSONS, COMMIT, 1)
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                  "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def chromium():
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("no Chromium: install the package `chromium`, or set CHROMIUM to the program")
    return path


@pytest.fixture
def lab(tmp_path):
    """What `make lab` opens, with an empty folder for the learner's copies; yields address and folder."""
    work = tmp_path / "work"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path / "lab.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "authoring.cli", "lab", "--allow-root", "--no-browser", "--ip=127.0.0.1",
         f"--port={port}", "--IdentityProvider.token=", "--ServerApp.password="],
        stdout=log, stderr=subprocess.STDOUT, cwd=ROOT,
        env={**os.environ, "COURSE_WORK": str(work), "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
             "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
             "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces")})
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_served(address, server, tmp_path / "lab.log")
        yield address, work
    finally:
        server.terminate()
        server.wait(timeout=120)


def prediction(key):
    """The first prediction that a lesson asks for, as its solution has it."""
    solved = nbformat.read(Project().notebook("solutions", Project().lesson(key)), as_version=4)
    text = "\n".join(cell.source for cell in solved.cells if cell.cell_type == "code")
    return re.search(r"^prediction = ([^#\n]*)", text, re.MULTILINE)[1].strip()


def executed(path):
    """The code cells of the notebook on disk, and those of them that have run."""
    while True:
        try:
            notebook = nbformat.read(path, as_version=4)
            break
        except nbformat.reader.NotJSONError:  # being written: Jupyter empties the file first
            time.sleep(0.5)
    cells = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    return cells, [c for c in cells if c.execution_count is not None]


def run_all(page):
    """Click on Run, Run All Cells, as soon as the notebook that is open has a kernel."""
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
    page.wait_for_selector("#jp-main-statusbar >> text=/ipykernel.* Idle/", timeout=120_000)
    page.click("text=Run >> nth=0")
    page.click("text=Run All Cells >> nth=0")


def shots():
    """The folder for screenshots; it is made."""
    folder = ROOT / "runs" / "browser"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("lesson", LESSONS)
def test_lesson_runs_in_jupyterlab(lesson, lab):
    if lesson not in IN_TURN:
        pytest.skip("has its turn with another commit; `make run-all` runs all")
    from playwright.sync_api import sync_playwright

    address, work = lab
    notebook = work / f"{lesson}.ipynb"
    clean = nbformat.read(notebook, as_version=4)
    for cell in clean.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(clean, notebook)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1600})
        page.goto(f"{address}/lab/tree/{lesson}.ipynb", timeout=120_000)
        run_all(page)
        deadline = time.time() + 600
        while time.time() < deadline:
            time.sleep(2)
            page.keyboard.press("Control+s")
            cells, done = executed(notebook)
            if len(done) == len(cells):
                break
        page.wait_for_timeout(2000)
        page.screenshot(path=shots() / f"{lesson}-end.png")
        page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
        page.wait_for_timeout(1000)
        page.screenshot(path=shots() / f"{lesson}-start.png")
        browser.close()

    cells, done = executed(notebook)
    assert len(done) == len(cells), f"only {len(done)} of {len(cells)} cells ran in 10 minutes"
    errors = [(c.id, o.ename, o.evalue) for c in cells for o in c.outputs if o.output_type == "error"]
    assert not errors
    pictures = [o for c in cells for o in c.outputs if "image/png" in o.get("data", {})]
    assert pictures and all(o.metadata["image/png"]["alt"] for o in pictures)


def test_the_start_page_shows_what_was_solved_in_the_browser(lab):
    """JupyterLab opens on the map, asks nothing of another server, and a prediction typed there counts."""
    from playwright.sync_api import sync_playwright

    address, work = lab
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1200})
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address, timeout=120_000)  # as the browser that `make lab` opens
        page.wait_for_selector("h1:has-text('The map')", timeout=60_000)
        assert page.locator("text=official Jupyter news").count() == 0
        row = page.locator("tr", has_text="What does one token cost?").first
        assert row.locator("td").nth(1).inner_text() == "0"
        page.screenshot(path=shots() / "start-page.png")

        row.locator("a").click()  # the lesson opens from the map
        cell = page.locator(".jp-Notebook:visible .jp-CodeCell", has_text="prediction = None").first
        cell.wait_for(timeout=120_000)
        cell.scroll_into_view_if_needed()
        cell.locator(".cm-content").click()
        page.keyboard.press("Control+End")
        page.keyboard.type(f"\nprediction = {prediction('one_token')}")
        page.keyboard.press("Shift+Enter")
        page.keyboard.press("Shift+Enter")  # the check, the cell below
        page.wait_for_selector(".jp-Notebook:visible >> text=/passed/", timeout=120_000)
        page.screenshot(path=shots() / "solved.png")
        page.keyboard.press("Control+s")
        page.wait_for_timeout(3000)
        assert "| 1 | 0 | 0 |" in progress.markdown(work)

        page.click(".lm-TabBar-tabLabel:has-text('index.ipynb')")
        code = page.locator(".jp-Notebook:visible .jp-CodeCell", has_text="progress.show()").first
        code.locator(".cm-content").click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_function("() => [...document.querySelectorAll('tr')].some("
                               "row => /one token/.test(row.innerText) && row.cells[1].innerText == '1')",
                               timeout=120_000)
        page.screenshot(path=shots() / "start-page-after.png")
        browser.close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def test_sliders_move_the_picture(lab):
    """The explorer of the lesson on formats, alone: a key on a slider draws the picture anew."""
    from playwright.sync_api import sync_playwright

    address, work = lab
    lesson = generate.make_notebook(
        Project(), generate.read_lesson(Project(), Project().lesson("formats")), "notebooks", {})
    lesson.cells = [cell for cell in lesson.cells if cell.id in ("imports", "explore-text", "explore")]
    nbformat.write(lesson, work / "explorer.ipynb")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1200})
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{address}/lab/tree/explorer.ipynb", timeout=120_000)
        run_all(page)
        picture = page.locator(".jp-OutputArea-output:visible img[alt^='0.1 in BF16 is']")
        picture.wait_for(timeout=120_000)
        before = picture.get_attribute("src")
        page.screenshot(path=shots() / "explorer.png")
        page.locator(".widget-slider", has_text="flip").locator(".noUi-handle").focus()
        page.keyboard.press("ArrowRight")
        turned = page.locator(".jp-OutputArea-output:visible img[alt^='0.1 in BF16, bit 1 turned over']")
        turned.wait_for(timeout=30_000)
        assert turned.get_attribute("src") != before and "means -0.1" in turned.get_attribute("alt")
        page.screenshot(path=shots() / "explorer-moved.png")
        page.keyboard.press("Control+s")
        page.wait_for_timeout(3000)
        browser.close()
    (output,) = nbformat.read(work / "explorer.ipynb", as_version=4).cells[-1].outputs
    assert output.data["image/png"] and output.metadata["image/png"]["alt"]  # what viewers show
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def test_an_exercise_goes_from_not_attempted_to_passed_and_shows_its_hint(lab):
    """What a learner does: run the stub, try something wrong, read the hint, and write the answer."""
    from playwright.sync_api import sync_playwright

    address, work = lab
    notebook = work / "00_one_token.ipynb"
    clean = nbformat.read(notebook, as_version=4)
    for cell in clean.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    wanted = ("ex-bytes-at-bits", "ex-bytes-at-bits-check")  # neither needs the lesson's imports
    clean.cells = [cell for cell in clean.cells if cell.id in wanted]
    nbformat.write(clean, notebook)
    solved = nbformat.read(Project().notebook("solutions", Project().lesson("one_token")), as_version=4)
    (right,) = (cell.source for cell in solved.cells if cell.id == "ex-bytes-at-bits")
    stub = next(cell.source for cell in clean.cells if cell.id == "ex-bytes-at-bits")
    wrong = stub.replace("raise NotImplementedError", "return 7")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1200})
        page.goto(f"{address}/lab/tree/{notebook.name}", timeout=120_000)
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=120_000)
        cells = page.locator(".jp-Notebook:visible .jp-CodeCell")
        for source, said in ((None, "not attempted"), (wrong, "Hint: How many bits are there in all"),
                             (right, "one_token.bytes_at_bits: passed")):
            if source:
                cells.nth(0).locator(".cm-content").click()
                page.keyboard.press("Control+a")
                page.keyboard.insert_text(source)
            output = cells.nth(1).locator(".jp-OutputArea-output", has_text=said)
            for _ in range(60):  # JupyterLab drops the keys as long as the kernel is not connected
                cells.nth(0).locator(".cm-content").click()
                page.keyboard.press("Shift+Enter")
                page.keyboard.press("Shift+Enter")  # the check, the cell below
                page.wait_for_timeout(5000)
                if output.count():
                    break
            assert output.count(), f"no {said!r} in five minutes"
            page.screenshot(path=shots() / f"exercise-{said.split()[-1]}.png")
        browser.close()
