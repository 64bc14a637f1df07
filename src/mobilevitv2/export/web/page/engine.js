// The worker with its model, as promises.

/** Starts a worker; `progress` is called with 0..1 while a file comes. */
export class Engine {
  #worker;
  #waiting = new Map();
  #count = 0;

  constructor(progress) {
    this.#worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
    this.#worker.onmessage = ({ data }) => {
      if ("progress" in data) return progress(data.progress);
      const { resolve, reject } = this.#waiting.get(data.id);
      this.#waiting.delete(data.id);
      return "error" in data ? reject(new Error(data.error)) : resolve(data.result);
    };
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#fail(new Error(event.message || "the page's worker could not be started; the site may be incomplete"));
    };
  }

  #fail(error) {
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }

  #ask(action, values, moved = []) {
    const id = ++this.#count;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, action, ...values }, moved);
    });
  }

  /** What it calculates with: { backend, threads }. */
  start(wanted) {
    return this.#ask("start", { wanted });
  }

  /** Loads a model and runs it on the pattern: { loading, departure }. */
  open(url, { bytes, metadata, check }) {
    return this.#ask("open", { url, bytes, description: metadata, check });
  }

  /** The answer for a file or bitmap, with the bitmap to show. */
  answer(picture) {
    return this.#ask("answer", { picture }, picture instanceof ImageBitmap ? [picture] : []);
  }

  stop() {
    this.#worker.terminate();
    this.#fail(new Error("stopped"));
  }
}

let withoutGraphics = false; // once asked, so that each model need not ask again

/**
 * An engine with the model open, on the graphics unit where that works, else on the processor.
 * Gives { engine, backend, threads, loading, note }.
 */
export async function openedEngine(wanted, url, model, progress) {
  let note = "";
  for (const attempt of wanted === "auto" && !withoutGraphics ? ["auto", "wasm"] : [wanted === "auto" ? "wasm" : wanted]) {
    const engine = new Engine(progress);
    let started = { backend: attempt };
    try {
      started = await engine.start(attempt);
      withoutGraphics ||= attempt === "auto" && started.backend === "wasm";
      const opened = await engine.open(url, model);
      const wrong = model.check && !(opened.departure <= model.check.tolerance);
      if (!wrong) return { engine, ...started, ...opened, note };
      note = `${named(started.backend)} answers otherwise than it should (by ${(100 * opened.departure).toPrecision(2)} %)`;
      if (started.backend === "wasm") return { engine, ...started, ...opened, note: `Beware: ${note}.` };
    } catch (error) {
      note = `${named(started.backend)} cannot be used: ${error.message}`;
      if (started.backend === "wasm" || attempt === "wasm") {
        engine.stop();
        throw error;
      }
    }
    engine.stop();
    if (attempt !== "auto") throw new Error(`${note}; choose another way to calculate`);
    note += "; WebAssembly is used.";
  }
  throw new Error(note);
}

export const named = (backend) => ({ webgpu: "WebGPU", wasm: "WebAssembly" })[backend] ?? "The runtime";
