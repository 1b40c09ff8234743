// ONNX Runtime in a thread of its own, so that the page stays responsive while the model computes.
// Messages in: {load: {threads, backend, graph, profile}}, {write: {prompt, newTokens, stop}}, {stop: true},
// {endProfiling: true}, after which ONNX Runtime prints its profile to the console.
// Messages out: {progress}, {loaded: {...}}, {token, milliseconds}, {done: {...}}, {error}.

import { generate } from "./decode.js";
import { load } from "./files.js";

let ort;
let session;
let stopped = false;

// Two graphs on the same file of weights, and the options that they need. WebAssembly's kernels know no packed
// 4-bit weights: MatMulNBits (packed) unpacks all of them for each token, which needs less memory and more
// time. The other graph unpacks the same integers once, when it is loaded: disable_quant_qdq allows that. Its
// products take FP32 numbers in the order in which they lie: prepacking would copy them.
const GRAPHS = {
  packed: ["model/model.onnx", {}],
  unpacked: ["model/unpacked.onnx", { disable_quant_qdq: "1", disable_prepacking: "1" }],
};

async function open({ threads, backend, graph, profile }) {
  ort = await import(backend === "webgpu" ? "./ort/ort.webgpu.min.mjs" : "./ort/ort.wasm.min.mjs");
  ort.env.wasm.wasmPaths = new URL("./ort/", self.location.href).href;
  ort.env.wasm.numThreads = threads;
  const wanted = graph ?? (backend === "webgpu" ? "packed" : "unpacked");
  if (!(wanted in GRAPHS)) throw new Error(`there is no graph ${wanted}: use ${Object.keys(GRAPHS).join(" or ")}`);
  const [name, options] = GRAPHS[wanted];
  const file = await load(name);
  const weights = await load("model/model.onnx.data", (progress) => postMessage({ progress }));
  const start = performance.now();
  session = await ort.InferenceSession.create(file, {
    executionProviders: [backend],
    externalData: [{ path: "model.onnx.data", data: weights }],
    enableProfiling: Boolean(profile),
    extra: { session: options },
  });
  postMessage({ loaded: { seconds: (performance.now() - start) / 1000, backend, threads } });
}

async function write({ prompt, newTokens, stop }) {
  stopped = false;
  let last = performance.now();
  for await (const token of generate(ort, session, prompt, newTokens, stop)) {
    const now = performance.now();
    postMessage({ token, milliseconds: now - last });
    last = now;
    await new Promise((resolve) => setTimeout(resolve)); // let a "stop" come in
    if (stopped) break;
  }
  postMessage({ done: { stopped } });
}

self.onmessage = async ({ data }) => {
  try {
    if (data.load) await open(data.load);
    if (data.write) await write(data.write);
    if (data.stop) stopped = true;
    if (data.endProfiling) {
      session.endProfiling();
      postMessage({ ended: true });
    }
  } catch (error) {
    postMessage({ error: explain(error) });
  }
};

function explain(error) {
  const text = String(error?.message ?? error);
  return /out of memory|allocat|bad_alloc|RangeError|Aborted|OOM/i.test(`${error?.name} ${text}`)
    ? `The phone's memory ran out (${text}). Close other pages and apps, then load this page again.`
    : text;
}
