"""Where a token's time goes in a browser: ONNX Runtime's profile of the page for phones."""

import json
import re
import threading
from collections import Counter

from transformers import AutoTokenizer

from authoring.bench import phone_browser
from authoring.phone import build, serve
from course_utils.errors import CourseError
from course_utils.phone import packed

TITLE = "Milliseconds a token by operator in headless Chromium, for both graphs of the page for phones"
NEW, THREADS, SHOWN = 9, 1, 6
GRAPHS = {"packed": "packed, MatMulNBits", "unpacked": "the same, unpacked once"}  # by web/worker.js's names
# Drives the page's own worker, as the page does.
SCRIPT = """async ({graph, threads, prompt, newTokens}) => {
  const worker = new Worker("worker.js", { type: "module" });
  const answer = (kind) => new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => data.error ? reject(new Error(data.error)) : kind in data && resolve();
  });
  worker.postMessage({ load: { threads, backend: "wasm", graph, profile: true } });
  await answer("loaded");
  worker.postMessage({ write: { prompt, newTokens, stop: [] } });
  await answer("done");
  worker.postMessage({ endProfiling: true });
  await answer("ended");
}"""


def bench() -> list[dict]:
    """Profile one answer of each graph, each in a Chromium of its own.

    Returns:
        A row for each graph and operator: milliseconds a token while it writes, and the share. None without
        Chromium or npm.
    """
    from playwright.sync_api import sync_playwright

    program = phone_browser.chromium()
    if not program:
        return []
    tokenizer = AutoTokenizer.from_pretrained(packed.checkpoint_folder())
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": phone_browser.FRANCE}], add_generation_prompt=True)["input_ids"]
    running = serve.server(build.build())
    threading.Thread(target=running.serve_forever, daemon=True).start()
    rows = []
    with sync_playwright() as play:
        for graph, name in GRAPHS.items():
            browser = play.chromium.launch(executable_path=program, args=phone_browser.FLAGS)
            tab, lines = browser.new_page(), []
            tab.on("console", lambda message, lines=lines: lines.append(message.text))
            tab.goto(serve.address(running))
            tab.evaluate(SCRIPT, {"graph": graph, "threads": THREADS, "prompt": prompt, "newTokens": NEW})
            browser.close()
            rows += [{"weights": name} | row for row in by_operator(events("\n".join(lines)))]
    running.shutdown()
    return rows


def events(printed: str) -> list[dict]:
    """The events of a profile among what a browser's console printed.

    Args:
        printed: holds one event in a line.

    Returns:
        The events, as ONNX Runtime names their parts.

    Raises:
        CourseError: there are none.
    """
    found = [json.loads(line) for line in re.findall(r'^\{"cat".*\}(?=,?\s*$)', printed, re.MULTILINE)]
    if not found:
        raise CourseError("ONNX Runtime printed no profile to the browser's console")
    return found


def by_operator(found: list[dict]) -> list[dict]:
    """The operators of all runs but the first, which reads the prompt.

    Args:
        found: from `events`.

    Returns:
        A row for each of the operators that take most, and one for the rest of a run: milliseconds a token
        and share.
    """
    runs = sorted((event for event in found if event["name"] == "model_run"), key=lambda run: run["ts"])[1:]
    first = runs[0]["ts"]
    spent = Counter()
    for event in found:
        if event["cat"] == "Node" and event["ts"] >= first and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    total = sum(run["dur"] for run in runs)
    most = dict(spent.most_common(SHOWN))
    most["all others, and between them"] = total - sum(most.values())
    return [{"operator": name, "milliseconds a token": each / 1e3 / len(runs), "share": each / total}
            for name, each in most.items()]
