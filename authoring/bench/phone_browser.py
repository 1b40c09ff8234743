"""The engines of the page for phones, in one headless Chromium, in turns."""

import shutil
import threading
import time
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer

from authoring.phone import build, serve
from course_utils import models
from course_utils.errors import CourseError
from course_utils.phone import decode, export, packed

if TYPE_CHECKING:  # what the quoted hints name
    from playwright.sync_api import Browser, Page

TITLE = "onnxruntime-web and wllama in one browser, round by round"
FRANCE, QUESTION = "What is the capital of France?", "Write three sentences about the sea."
NEW, ROUNDS, THREADS = 32, 6, 2
# Row -> (engine, graph), as web/page.js and web/worker.js name them.
ENGINES = {"onnxruntime-web": ("onnx", "unpacked"), "onnxruntime-web, packed weights": ("onnx", "packed"),
           "wllama": ("wllama", "")}
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--enable-blink-features=ForceEagerMeasureMemory"]  # else it waits for a moment that suits it


def bench() -> list[dict]:
    """Let all write the same question, one after the other, in each round.

    Returns:
        A row for each engine: seconds to load, tokens a second of each round, the page's memory, and whether
        its tokens for the capital of France are those of Python. None without Chromium or npm.
    """
    from playwright.sync_api import sync_playwright

    program = chromium()
    if not program:
        return []
    running = serve.server(build.build())
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=FLAGS)
        rows = _rounds(browser, serve.address(running))
        browser.close()
    running.shutdown()
    return rows


def chromium() -> str | None:
    """The browser's program.

    Returns:
        Its path; None, and it says so, without one or without npm, which builds the page.
    """
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program and shutil.which("npm"):
        return program
    print("Needs Chromium and npm.")
    return None


def _rounds(browser: "Browser", address: str) -> list[dict]:
    """A tab each, loaded once; in each round they write in turns, and the next round turns that round."""
    tabs, rows = {}, {}
    for name, (engine, graph) in ENGINES.items():
        tabs[name] = tab = browser.new_page(viewport={"width": 390, "height": 844})
        tab.goto(f"{address}?threads={THREADS}&tokens={NEW}&backend=wasm&graph={graph}")
        tab.check(f"input[value={engine}]")
        tab.click("#load")
        wait(tab, "measured.backend || measured.error")
        france = ask(tab, FRANCE)
        rows[name] = {"engine": name, "backend": france["backend"], "load (s)": france["loadSeconds"],
                      "text": france["text"], "tokens as in Python": _as_in_python(engine, france),
                      "decode (tokens/s)": [], "prefill (tokens/s)": [], "memory (MB)": None}
    for i in range(ROUNDS):
        for name in list(ENGINES)[:: 1 if i % 2 else -1]:
            found = ask(tabs[name], QUESTION)
            rows[name]["decode (tokens/s)"].append(found["rate"])
            rows[name]["prefill (tokens/s)"].append(found["promptRate"])
    for name, tab in tabs.items():  # sleeping threads delay the answer by a minute
        wait(tab, "'memory' in measured", 180)
        found = tab.evaluate("measured.memory")
        rows[name]["memory (MB)"] = found and found / 1e6
    return list(rows.values())


def wait(tab: "Page", condition: str, seconds: float = 300) -> None:
    """Wait until an expression is true. Playwright's own waiting uses eval, which the page's headers forbid.

    Args:
        tab: the page.
        condition: in JavaScript.
        seconds: the longest.

    Raises:
        CourseError: it took longer.
    """
    end = time.monotonic() + seconds
    while not tab.evaluate(f"Boolean({condition})"):
        if time.monotonic() > end:
            raise CourseError(f"the page took more than {seconds:.0f} seconds: {condition}")
        tab.wait_for_timeout(100)


def ask(tab: "Page", question: str) -> dict:
    """Write an answer in a loaded tab.

    Args:
        tab: the page, its model loaded.
        question: what is asked.

    Returns:
        What the page measured.

    Raises:
        CourseError: the page showed an error.
    """
    before = tab.evaluate("measured.runs ?? 0")
    tab.fill("#question", question)
    tab.click("#write")
    wait(tab, f"measured.runs > {before} || measured.error")
    found = tab.evaluate("measured")
    if found.get("error"):
        raise CourseError(f"the page says: {found['error']}")
    return found


def _as_in_python(engine: str, found: dict) -> bool:
    """Whether the page wrote what Python writes: with our file, or in FP32 with the weights of the GGUF."""
    tokenizer = AutoTokenizer.from_pretrained(packed.checkpoint_folder())
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": FRANCE}], add_generation_prompt=True)["input_ids"]
    if engine == "onnx":
        return found["tokens"] == decode.generate(
            decode.open_session(export.onnx_folder()), prompt, NEW, tokenizer.eos_token_id)
    model, _ = models.load_lm()
    with torch.inference_mode():
        written = model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False)[0, len(prompt):]
    return found["text"] == tokenizer.decode(written, skip_special_tokens=True)
