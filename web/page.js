// The page: loads an engine, turns the question into tokens, types the answer out, and says what it measured.

import { load } from "./files.js";

const NEW_TOKENS = 128;
const CONTEXT = 2048;
const parameters = new URLSearchParams(location.search);
const element = (id) => document.getElementById(id);

// What a test reads: the tokens of the last answer, and what was measured.
globalThis.measured = {};

// ---- what this browser can do -------------------------------------------------------------------------

/** Whether WebAssembly has 128-bit SIMD: a module that uses one such instruction is valid. */
function hasSimd() {
  return WebAssembly.validate(new Uint8Array([
    0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11]));
}

async function hasWebGpu() {
  try {
    const adapter = await navigator.gpu?.requestAdapter();
    return Boolean(adapter) && !adapter.info.isFallbackAdapter; // that one is software
  } catch {
    return false;
  }
}

function threads() {
  const asked = Number(parameters.get("threads"));
  if (!globalThis.crossOriginIsolated) return 1; // no shared memory, so no threads
  return asked || Math.min(navigator.hardwareConcurrency || 1, 4);
}

// ---- the tokenizer: the files of the model, read by Hugging Face's two small libraries --------------------

let tokenizer;
let template;
let names; // "<|im_end|>" and the like, by their role

async function openTokenizer() {
  if (tokenizer) return;
  const [{ Tokenizer }, { Template }] = await Promise.all([
    import("./tokenizer/tokenizers.min.mjs"), import("./tokenizer/jinja.js")]);
  const text = new TextDecoder();
  const [json, config, chat] = await Promise.all(["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    .map(async (name) => text.decode(await load(`model/tokenizer/${name}`))));
  names = JSON.parse(config);
  tokenizer = new Tokenizer(JSON.parse(json), names);
  template = new Template(chat);
}

/** The question as the model was trained to be asked. */
function asked(question) {
  return template.render({ messages: [{ role: "user", content: question }], add_generation_prompt: true,
    bos_token: names.bos_token, eos_token: names.eos_token });
}

// ---- the engines: each has open(progress), write(question, newTokens, onText), stop() and close() ----------

class Onnx {
  async open(progress) {
    this.backend = parameters.get("backend") ?? ((await hasWebGpu()) ? "webgpu" : "wasm");
    try {
      return await this.#start(this.backend, progress);
    } catch (error) {
      if (this.backend === "wasm") throw error;
      this.backend = "wasm"; // a GPU that cannot run this model
      return this.#start("wasm", progress);
    }
  }

  #start(backend, progress) {
    this.worker?.terminate();
    this.worker = new Worker("worker.js", { type: "module" });
    const loaded = this.#answer("loaded", ({ progress: share }) => share !== undefined && progress(share));
    this.worker.postMessage({ load: { threads: threads(), backend, graph: parameters.get("graph") || undefined } });
    return loaded.then(({ seconds }) => ({
      seconds, backend: backend === "webgpu" ? "ONNX Runtime, WebGPU"
        : `ONNX Runtime, WebAssembly, ${threads()} thread(s)` }));
  }

  /** Waits for one kind of message of the worker; hands all others to `other`. */
  #answer(kind, other) {
    return new Promise((resolve, reject) => {
      this.worker.onmessage = ({ data }) => {
        if (data.error) reject(new Error(data.error));
        else if (kind in data) resolve(data[kind]);
        else other(data);
      };
      this.worker.onerror = (event) => reject(new Error(event.message || "the worker could not be started"));
    });
  }

  async write(question, newTokens, onText) {
    const prompt = tokenizer.encode(asked(question), { add_special_tokens: false }).ids;
    const written = [];
    const times = [];
    const done = this.#answer("done", ({ token, milliseconds }) => {
      written.push(token);
      times.push(milliseconds);
      onText(tokenizer.decode(written, { skip_special_tokens: true }));
    });
    this.worker.postMessage({ write: { prompt, newTokens, stop: [tokenizer.token_to_id(names.eos_token)] } });
    await done;
    const [first, ...rest] = times;
    const spent = rest.reduce((sum, each) => sum + each, 0);
    return { prompt, tokens: written, promptTokens: prompt.length, promptRate: prompt.length / (first / 1000),
      rate: rest.length / (spent / 1000) };
  }

  stop() {
    this.worker.postMessage({ stop: true });
  }

  close() {
    this.worker?.terminate();
  }
}

class Wllama {
  async open(progress) {
    const { Wllama: Engine, LoggerWithoutDebug } = await import("./wllama/index.js");
    this.engine = new Engine({ default: "wllama/wllama.wasm" },
      { logger: LoggerWithoutDebug, suppressNativeLog: true });
    this.engine.setCompat(null); // it would be loaded from elsewhere
    const file = await load("model/model.gguf", progress);
    const start = performance.now();
    // On the processor, as the page says. Flash attention rounds otherwise: where two first tokens are nearly as
    // likely ("The" 0.15, "L" 0.14 for the capital of France) that is enough for another answer than FP32's.
    await this.engine.loadModel([new Blob([file])],
      { n_ctx: CONTEXT, n_threads: threads(), n_gpu_layers: 0, flash_attn: false });
    return { seconds: (performance.now() - start) / 1000,
      backend: `llama.cpp, WebAssembly, ${this.engine.getNumThreads()} thread(s)` };
  }

  async write(question, newTokens, onText) {
    this.abort = new AbortController();
    let prompt = asked(question);
    if (this.engine.mustAddBosToken() && prompt.startsWith(names.bos_token)) {
      prompt = prompt.slice(names.bos_token.length); // llama.cpp puts it there once more
    }
    let text = "";
    let timings;
    try {
      const stream = await this.engine.createCompletion({ prompt, max_tokens: newTokens, temperature: 0,
        stream: true, abortSignal: this.abort.signal });
      for await (const chunk of stream) {
        text += chunk.choices[0]?.text ?? "";
        timings = chunk.timings ?? timings;
        onText(text);
      }
    } catch (error) {
      if (error.name !== "AbortError") throw error;
    }
    return { text, promptTokens: timings?.prompt_n, promptRate: timings?.prompt_per_second,
      rate: timings?.predicted_per_second, timings };
  }

  stop() {
    this.abort?.abort();
  }

  close() {
    return this.engine?.exit();
  }
}

// ---- the page -----------------------------------------------------------------------------------------

let engine;

function say(text) {
  element("status").textContent = text;
}

function fail(error) {
  const text = /memory|allocat|RangeError|Aborted/i.test(`${error.name} ${error.message}`)
    && !/Close other/.test(error.message)
    ? `The phone's memory ran out (${error.message}). Close other pages and apps, then load this page again.`
    : error.message;
  element("error").textContent = text;
  element("error").hidden = false;
  say("It did not work.");
  measured.error = text;
}

async function memory() {
  try {
    return (await performance.measureUserAgentSpecificMemory()).bytes;
  } catch {
    return performance.memory?.usedJSHeapSize; // Safari and Firefox have neither
  }
}

async function open(kind) {
  await engine?.close(); // its memory is needed
  engine = undefined;
  element("write").disabled = element("stop").disabled = true;
  element("progress").hidden = false;
  say("Loading the tokenizer ...");
  await openTokenizer();
  say("Loading the model ...");
  const start = performance.now();
  const found = kind === "onnx" ? new Onnx() : new Wllama();
  const { seconds, backend } = await found.open((share) => { element("progress").value = share; })
    .catch(async (error) => {
      await found.close(); // what it has taken of the memory is given back
      throw error;
    });
  engine = found;
  measured = { kind, backend, loadSeconds: (performance.now() - start) / 1000, startSeconds: seconds };
  element("backend").textContent = backend;
  element("loading").textContent = `${measured.loadSeconds.toFixed(1)} s`;
  element("progress").hidden = true;
  element("write").disabled = false;
  say("Loaded. Ask something.");
}

async function write(question) {
  if (!question.trim()) throw new Error("The question is empty: write one first.");
  element("write").disabled = true;
  element("stop").disabled = false;
  element("answer").textContent = "";
  say("Writing ...");
  try {
    const result = await engine.write(question, Number(parameters.get("tokens")) || NEW_TOKENS,
      (text) => { element("answer").textContent = text; });
    const rate = (value) => (Number.isFinite(value) ? `${value.toFixed(1)} tokens/s` : "-");
    element("prompt").textContent = `${result.promptTokens ?? "-"} tokens, ${rate(result.promptRate)}`;
    element("writing").textContent = rate(result.rate);
    Object.assign(measured, result, { text: element("answer").textContent, runs: (measured.runs ?? 0) + 1 });
    memory().then((bytes) => { // this may take a while: browsers wait for a moment that suits them
      measured.memory = bytes;
      element("memory").textContent = bytes ? `${Math.round(bytes / 1e6)} MB` : "this browser does not say";
    });
    say("Done.");
  } finally {
    element("stop").disabled = true;
    element("write").disabled = false;
  }
}

function submit(id, action) {
  element(id).addEventListener("submit", async (event) => {
    event.preventDefault();
    element("error").hidden = true;
    try {
      await action();
    } catch (error) {
      fail(error);
    }
  });
}

submit("start", () => open(new FormData(element("start")).get("engine")));
submit("chat", () => write(element("question").value));
element("stop").addEventListener("click", () => engine.stop());

if (!hasSimd()) {
  element("load").disabled = true;
  fail(new Error("This browser's WebAssembly has no SIMD instructions: use a browser of 2023 or later."));
} else if (!globalThis.crossOriginIsolated) {
  say("Nothing is loaded yet. This address gives one thread only: `course phone serve` says how to get more.");
}
if ("serviceWorker" in navigator) {
  navigator.serviceWorker.register("service-worker.js").catch(() => {}); // it only makes offline use possible
}
