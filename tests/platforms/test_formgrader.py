"""nbgrader's formgrader in headless Chromium, on submissions that `course assignment build` prepared for."""

import os
import shutil
import socket
import subprocess
import sys

import nbformat
import pytest

from authoring import sync
from authoring.grading.assignment import build
from authoring.project import Project
from tests.notebooks.conftest import SAMPLE
from tests.platforms.test_browser import CHROMIUM_FLAGS, ROOT, chromium
from tests.surroundings import wait_until_served

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def graded(tmp_path):
    """A course folder with one graded submission, and the environment of its programs."""
    root = tmp_path / "course"
    shutil.copytree(SAMPLE, root, ignore=shutil.ignore_patterns("__pycache__"))
    sync.sync(Project(root), run=False, report=lambda line: None)
    folder = tmp_path / "class"
    build(Project(root), ["sample"], folder, answers_only=True)
    modules = os.pathsep.join([str(ROOT), str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": modules, "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
                                "JUPYTER_DATA_DIR": str(tmp_path / "data")}

    def nbgrader(*arguments):
        done = subprocess.run([sys.executable, "-m", "nbgrader", *arguments], cwd=folder, env=environment,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    nbgrader("generate_assignment", "sample")
    notebook = nbformat.read(folder / "release/sample/90_sample.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.id == "predict-bytes":
            cell.source = "prediction = 4000"
    target = folder / "submitted/alice/sample/90_sample.ipynb"
    target.parent.mkdir(parents=True)
    nbformat.write(notebook, target)
    nbgrader("autograde", "sample")
    return folder, environment


@pytest.fixture
def server(graded, tmp_path):
    """Address of a Jupyter server in the course folder."""
    folder, environment = graded
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path / "server.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyter", "server", "--allow-root", "--no-browser", "--ip=127.0.0.1",
         f"--port={port}", "--IdentityProvider.token=", "--ServerApp.password="],
        stdout=log, stderr=subprocess.STDOUT, cwd=folder, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_served(address, process, tmp_path / "server.log")
        yield address
    finally:
        process.kill()
        process.wait()


def test_formgrader_opens_the_graded_submission(server):
    from playwright.sync_api import sync_playwright

    shots = ROOT / "runs" / "browser"
    shots.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1200})
        page.goto(f"{server}/formgrader/gradebook/sample/90_sample", timeout=120_000)
        page.locator("a", has_text="Submission #1").click(timeout=60_000)
        page.wait_for_selector("text=sample.bytes: passed", timeout=60_000)
        page.wait_for_selector("input.score[placeholder='1']", timeout=60_000)
        page.screenshot(path=shots / "formgrader.png", full_page=True)
        text = page.inner_text("body")
        assert "sample.halve: not attempted" in text
        points = [field.get_attribute("placeholder") for field in page.locator("input.score").all()]
        assert points == ["1", "0", "0", "0"]
        browser.close()
