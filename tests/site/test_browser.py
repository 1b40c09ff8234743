"""The built site in headless Chromium: nothing asked of another server, mathematics set, no serious barrier.

Screenshots are kept in runs/browser/ for a person to look at.
"""

import functools
import http.server
import threading

import pytest

from authoring.project import Project
from authoring.site import build
from tests.platforms.test_browser import CHROMIUM_FLAGS, chromium

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PROJECT = Project()
SIZES = {"desktop": {"width": 1400, "height": 1000}, "phone": {"width": 390, "height": 844}}
PAGES = ["index", "start", "lessons/index", f"lessons/{PROJECT.lesson('gptq').stem}", "glossary",
         "recorded", "claims", "api/course_utils.quantize.gptq"]  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site on a server of this machine; yields its address."""
    folder = build(PROJECT, tmp_path_factory.mktemp("site"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_in_chromium(site, browser, size, scheme):
    from axe_playwright_python.sync_playwright import Axe

    shots = PROJECT.root / "runs" / "browser"
    shots.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport=SIZES[size], color_scheme=scheme)
    asked, failed, serious = [], [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: failed.append(request.url))
    for name in PAGES:
        page.goto(f"{site}/en/{name}.html", wait_until="networkidle")
        if page.locator(".math").count():
            page.wait_for_selector(".math mjx-container")
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, f"{name} is {wide} pixels wider than the window"
        page.screenshot(path=shots / f"site-{size}-{scheme}-{name.replace('/', '-')}.png")
        # Preloading, axe puts style sheets into the page, whose imports then lead nowhere.
        options = {"resultTypes": ["violations"], "preload": False}
        for found in Axe().run(page, options=options).response["violations"]:
            if found["impact"] in ("serious", "critical"):
                places = [node["html"][:120] for node in found["nodes"][:3]]
                serious.append((name, found["id"], len(found["nodes"]), places))
    outside = [url for url in asked if not url.startswith((site, "data:", "blob:"))]
    assert outside == [] and failed == [] and serious == []


def test_a_solution_opens_by_the_keyboard_and_search_finds(site, browser):
    page = browser.new_page(viewport=SIZES["desktop"])
    page.goto(f"{site}/en/lessons/{PROJECT.lesson('gptq').stem}.html", wait_until="networkidle")
    solution = page.locator("details", has_text="Show the solution").first
    inside = solution.locator(".cell_input")
    assert not inside.is_visible()
    solution.locator("summary").focus()
    page.keyboard.press("Enter")
    assert inside.is_visible()
    page.goto(f"{site}/en/search.html?q=hessian", wait_until="networkidle")
    page.wait_for_selector("#search-results li a")
    assert page.locator("#search-results li a").count() > 2
