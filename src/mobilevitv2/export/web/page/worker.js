// The model, off the page's own thread: opens files with ONNX Runtime Web and answers for pictures.

import { departure, pattern } from "./checking.js";
import { answerOf } from "./postprocessing.js";
import { asInput, bitmapSource, prepared } from "./preprocessing.js";

const MOST_THREADS = 8;
const MOST_SHOWN = 1280; // longest side of a class map
const BUNDLES = { webgpu: "./ort/ort.webgpu.bundle.min.mjs", wasm: "./ort/ort.wasm.bundle.min.mjs" };

let ort, backend, session, metadata;

/** "webgpu" where it is wanted or unspecified and there is a real one, or "wasm". */
async function chosenBackend(wanted) {
  if (wanted === "wasm") return "wasm";
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  const real = adapter && !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter);
  if (real || (adapter && wanted === "webgpu")) return "webgpu";
  if (wanted === "webgpu") throw new Error("this browser offers no WebGPU here");
  return "wasm";
}

async function start({ wanted }) {
  backend = await chosenBackend(wanted);
  ort = await import(BUNDLES[backend]);
  ort.env.logLevel = "fatal";
  ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
  const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS) : 1;
  ort.env.wasm.numThreads = threads;
  return { backend, threads };
}

async function open({ url, bytes, description, check }) {
  await session?.release();
  session = undefined;
  const content = await fetched(url, bytes);
  const before = performance.now();
  session = await ort.InferenceSession.create(content, { executionProviders: [backend], logSeverityLevel: 4 }).catch((error) => {
    throw new Error(`the model cannot be opened (${told(error)}); export the site again`);
  });
  metadata = description;
  const { width, height } = metadata.picture;
  const outputs = await run(asInput(pattern(width, height), metadata.picture, metadata.layout));
  return { loading: performance.now() - before, departure: check ? departure(outputs, check) : 0 };
}

/** A file, with messages of how much has come. */
async function fetched(url, bytes) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} cannot be loaded (${response.status} ${response.statusText})`);
  const content = new Uint8Array(bytes), reader = response.body.getReader();
  let length = 0, told = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (length + value.length > bytes) throw new Error(`${url} is longer than its description says; export the site again`);
    content.set(value, length);
    length += value.length;
    if (length - told > bytes / 50) postMessage({ progress: (told = length) / bytes });
  }
  if (length < bytes) throw new Error(`${url} ended after ${length} of ${bytes} bytes; load the page again`);
  return content;
}

async function run({ type, data, dims }) {
  return session.run({ [metadata.inputs[0].name]: new ort.Tensor(type, data, dims) });
}

async function answer({ picture }) {
  const start = performance.now();
  const bitmap = picture instanceof Blob ? await decoded(picture) : picture;
  const shown = fitted(bitmap);
  const input = asInput(prepared(bitmapSource(bitmap), metadata.picture), metadata.picture, metadata.layout);
  const ready = performance.now();
  const outputs = await run(input);
  const ran = performance.now();
  const found = answerOf(outputs, metadata, shown);
  const times = { prepare: ready - start, run: ran - ready, finish: performance.now() - ran };
  return { ...found, size: [bitmap.width, bitmap.height], bitmap, times };
}

/** Upright, and with the file's own colour values, as in training: no profile is applied. */
async function decoded(file) {
  try {
    return await createImageBitmap(file, { colorSpaceConversion: "none", imageOrientation: "from-image" });
  } catch {
    throw new Error(`${file.name || "this file"} cannot be read as a picture; this browser takes JPEG, PNG, WebP, GIF and the like`);
  }
}

function fitted({ width, height }) {
  const scale = Math.min(1, MOST_SHOWN / Math.max(width, height));
  return [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
}

function told(error) {
  return typeof error === "number" ? "the runtime ran out of memory" : String(error?.message ?? error).split("\n")[0].trim();
}

const ACTIONS = { start, open, answer };
let queue = Promise.resolve();

self.onmessage = ({ data: { id, action, ...values } }) => {
  queue = queue.then(async () => {
    try {
      const result = await ACTIONS[action](values);
      const moved = [result.bitmap, result.mask?.buffer, result.probabilities?.buffer].filter(Boolean);
      postMessage({ id, result }, moved);
    } catch (error) {
      postMessage({ id, error: told(error) });
    }
  });
};
