"""The page in headless Chromium at a phone's width: the tokens of Python, both engines, errors, offline.

The screenshot is kept in runs/browser/ for a person to look at.
"""

import contextlib
import shutil
import threading
import time
from pathlib import Path

import pytest

from authoring.phone import build, serve
from tests.platforms.test_browser import CHROMIUM_FLAGS, chromium

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
QUESTION, NEW = "What is the capital of France?", 16


@pytest.fixture(scope="module")
def page_folder():
    if shutil.which("npm") is None:
        pytest.skip("no npm here: the page cannot be built")
    return build.build()


@contextlib.contextmanager
def serving(page_folder):
    """Address of the built page, and the server, which runs."""
    running = serve.server(page_folder)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield serve.address(running), running
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture(scope="module")
def address(page_folder):
    with serving(page_folder) as (found, _):
        yield found


@pytest.fixture(scope="module")
def start():
    """Starts a Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        yield lambda *flags: play.chromium.launch(
            executable_path=chromium(), args=[*CHROMIUM_FLAGS, *flags])


@pytest.fixture(scope="module")
def browser(start):
    running = start("--enable-blink-features=ForceEagerMeasureMemory")
    yield running
    running.close()


@contextlib.contextmanager
def opened(browser):
    """A tab as wide as a phone that takes note of each request."""
    context = browser.new_context(viewport={"width": 390, "height": 844})
    tab = context.new_page()
    tab.requested = []
    context.on("request", lambda request: tab.requested.append(request.url))
    yield tab
    context.close()


@pytest.fixture
def page(browser):
    with opened(browser) as tab:
        yield tab


def wait(page, condition, seconds):
    """Until an expression is true. Playwright's own waiting uses eval, which the page's headers forbid."""
    end = time.monotonic() + seconds
    while not page.evaluate(f"Boolean({condition})"):
        assert time.monotonic() < end, f"not within {seconds} seconds: {condition}"
        page.wait_for_timeout(200)


def load(page, engine):
    page.check(f"input[value={engine}]")
    page.click("#load")
    wait(page, f"measured.kind === '{engine}' || measured.error", 120)
    assert not page.evaluate("measured.error")


def ask(page, until="measured.runs", question=QUESTION):
    """Ask, and wait until the answer is there, or as far as is said."""
    page.fill("#question", question)
    page.click("#write")
    wait(page, f"{until} || measured.error", 120)
    assert not page.evaluate("measured.error")


@pytest.fixture(scope="module")
def answered(browser, address):
    """A tab in which the course's model was asked."""
    with opened(browser) as tab:
        tab.goto(f"{address}?threads=2&tokens={NEW}&backend=wasm")
        load(tab, "onnx")
        ask(tab)
        yield tab


def test_the_tokens_are_those_of_python(answered, address):
    from transformers import AutoTokenizer

    from course_utils.phone import decode, export, packed

    tokenizer = AutoTokenizer.from_pretrained(packed.checkpoint_folder())
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True)["input_ids"]
    expected = decode.generate(decode.open_session(export.onnx_folder()), prompt, NEW, tokenizer.eos_token_id)
    found = answered.evaluate("measured")
    assert found["prompt"] == prompt, "tokenizer and chat template of the page"
    assert found["tokens"][:NEW] == expected
    assert found["text"] == tokenizer.decode(found["tokens"], skip_special_tokens=True)
    assert "2 thread" in found["backend"], "the headers allow threads"
    assert all(url.startswith((address, "blob:", "data:")) for url in answered.requested)
    folder = ROOT / "runs" / "browser"
    folder.mkdir(parents=True, exist_ok=True)
    answered.screenshot(path=folder / "phone.png", full_page=True)


def test_stop_ends_the_answer(page, address):
    page.goto(f"{address}?threads=2&tokens=1000&backend=wasm")
    load(page, "onnx")
    ask(page, "document.getElementById('answer').textContent.length > 40", "Tell a long story about a bee.")
    page.click("#stop")
    wait(page, "measured.runs", 10)
    assert len(page.evaluate("measured.tokens")) < 1000
    assert page.inner_text("[role=status]") == "Done."
    assert page.is_disabled("#stop") and page.is_enabled("#write")


def test_the_model_fits_a_phone(page, address):
    """A browser gives a page 1 to 2 GB on a phone. A second engine takes the place of the first."""
    page.goto(f"{address}?threads=1&tokens=2&backend=wasm")  # threads that sleep delay the measurement
    load(page, "onnx")
    ask(page)
    wait(page, "measured.memory", 90)
    first = page.evaluate("measured.memory")
    assert first < 1.2e9
    load(page, "wllama")
    assert page.evaluate("performance.measureUserAgentSpecificMemory().then((all) => all.bytes)") < first


def test_llamacpp_answers_in_the_same_page(page, address):
    page.goto(f"{address}?threads=2&tokens={NEW}")
    load(page, "wllama")
    ask(page)
    found = page.evaluate("measured")
    assert found["promptTokens"] == 37, "the same prompt, token for token"
    assert found["text"].startswith("The capital of France is Paris"), "what those weights write in Python"
    assert found["rate"] > 0 and "2 thread" in found["backend"]
    assert all(url.startswith((address, "blob:", "data:")) for url in page.requested)


def test_too_little_memory_is_named(start, address):
    """Chromium is allowed 256 MB for WebAssembly: less than the weights need."""
    running = start("--js-flags=--wasm-max-mem-pages=4096")
    with opened(running) as page:
        page.goto(f"{address}?threads=1&backend=wasm")
        page.click("#load")
        wait(page, "measured.error", 60)
        assert "memory ran out" in page.inner_text("[role=alert]")
        assert page.is_enabled("#load"), "it can be tried again"
    running.close()


def test_a_damaged_model_is_named(page, address):
    page.route("**/model/model.onnx.data", lambda route: route.fulfill(body=b"no model"))
    page.goto(address)
    page.click("#load")
    wait(page, "measured.error", 60)
    assert "model.onnx.data is damaged" in page.inner_text("[role=alert]")


def test_a_missing_model_is_named(page, address):
    page.route("**/model/model.onnx.data", lambda route: route.fulfill(status=404))
    page.goto(address)
    page.click("#load")
    wait(page, "measured.error", 60)
    assert "model.onnx.data is missing" in page.inner_text("[role=alert]")


def test_a_browser_without_simd_is_told(page, address):
    page.add_init_script("WebAssembly.validate = () => false")
    page.goto(address)
    assert "no SIMD" in page.inner_text("[role=alert]")
    assert page.is_disabled("#load")


def test_it_works_offline_after_the_first_visit(page, page_folder):
    with serving(page_folder) as (address, _):
        page.goto(address)
        wait(page, "navigator.serviceWorker.controller", 120)
    page.goto(f"{address}?threads=2&tokens={NEW}")
    load(page, "onnx")
    ask(page)
    assert "Paris" in page.inner_text("#answer")


def test_by_keyboard_and_for_a_screen_reader(page, address):
    """Every control has a name and is reached by Tab; what changes is announced."""
    page.goto(address)
    reached = []
    for _ in range(3):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
    assert reached == ["engine", "load", "question"]
    for role, name in (("radio", "ONNX Runtime"), ("button", "Load the model"), ("textbox", "Your question"),
                       ("button", "Write"), ("button", "Stop"), ("log", "Answer")):
        assert page.get_by_role(role, name=name).count(), f"{role} {name}"
    assert page.get_by_role("status").count() and page.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "no sideways scrolling"
