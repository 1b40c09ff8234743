"""A lesson in a real JupyterLab, in headless Chromium: open, run all cells, no error.

The screenshot is kept in runs/browser/ for a person to look at.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest

from authoring.project import Project

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
LESSON = Project().notebook("notebooks", Project().lesson("one_token")).name
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                  "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def chromium():
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("no Chromium: install the package `chromium`, or set CHROMIUM to the program")
    return path


@pytest.fixture
def lab(tmp_path):
    """JupyterLab on a copy of the learner's notebook; yields its address and the copy's path."""
    notebook = tmp_path / LESSON
    shutil.copy(ROOT / "notebooks" / LESSON, notebook)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path / "lab.log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}",
         "--allow-root", "--IdentityProvider.token=", "--ServerApp.password=",
         f"--ServerApp.root_dir={tmp_path}",
         "--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"],
        stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path,
        env={**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
             "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
             "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces")})
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api/status", timeout=2).close()
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, (tmp_path / "lab.log").read_text()
                time.sleep(0.25)
        yield address, notebook
    finally:
        server.terminate()
        server.wait(timeout=30)


def executed(path):
    """The notebook on disk, its code cells, and those of them that have run."""
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" and c.source.strip()]
    return cells, [c for c in cells if c.execution_count is not None]


def test_lesson_runs_in_jupyterlab(lab):
    from playwright.sync_api import sync_playwright

    address, notebook = lab
    clean = nbformat.read(notebook, as_version=4)
    for cell in clean.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(clean, notebook)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1600})
        page.goto(f"{address}/lab/tree/{LESSON}", timeout=120_000)
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
        page.wait_for_selector("[data-status='idle'], .jp-Notebook-ExecutionIndicator[data-status='idle']",
                               timeout=120_000)
        page.click("text=Run >> nth=0")
        page.click("text=Run All Cells >> nth=0")
        deadline = time.time() + 600
        while time.time() < deadline:
            time.sleep(2)
            page.keyboard.press("Control+s")
            cells, done = executed(notebook)
            if len(done) == len(cells):
                break
        page.wait_for_timeout(2000)
        shots = ROOT / "runs" / "browser"
        shots.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=shots / "end.png")
        page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
        page.wait_for_timeout(1000)
        page.screenshot(path=shots / "start.png")
        browser.close()

    cells, done = executed(notebook)
    assert len(done) == len(cells), f"only {len(done)} of {len(cells)} cells ran in 10 minutes"
    errors = [(c.id, o.ename, o.evalue) for c in cells for o in c.outputs if o.output_type == "error"]
    assert not errors
    pictures = [o for c in cells for o in c.outputs if "image/png" in o.get("data", {})]
    assert pictures and all(o.metadata["image/png"]["alt"] for o in pictures)
