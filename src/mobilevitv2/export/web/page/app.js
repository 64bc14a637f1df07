// The page: what was chosen, and what follows from it.
//
// Each answer is also sent as the event "answer" on the document, with all probabilities, the class map or the boxes.

import { Camera, hasCamera } from "./camera.js";
import { named, openedEngine } from "./engine.js";
import { clearAnswer, made, showAbout, showAnswer, showPicture, showTimes } from "./showing.js";

const $ = (id) => document.getElementById(id);
const TASKS = { classify: "Classify", segment: "Segment", detect: "Detect" };
const camera = new Camera();

let site, model, opened, opening, last, picture, starting, turn = 0, loading = false;

/** Says how it goes; what is `shown` below as well is for screen readers alone. */
function tell(text, { failed = false, shown = false } = {}) {
  $("status").className = failed ? "failed" : shown ? "shown" : "";
  if ($("status").textContent !== text) $("status").textContent = text;
}

function fail(error) {
  tell(`${error.message.replace(/\.$/, "")}.`, { failed: true });
}

async function json(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path} cannot be loaded (${response.status}); the site may be incomplete`);
  return response.json();
}

// ---- the model ------------------------------------------------------------------------------------------------------------------

/** Opens a model of the site; what was open before is closed. */
async function choose(entry) {
  const own = ++turn;
  loading = true;
  opened?.engine.stop();
  opened = last = undefined;
  clearAnswer();
  $("threshold-row").hidden = $("strength-row").hidden = true;
  $("backend-told").textContent = "";
  tell("Loading the model…");
  $("progress").hidden = false;
  $("progress").removeAttribute("value");
  try {
    const description = await json(`${entry.folder}/model.json`);
    const progress = (share) => own === turn && ($("progress").value = share);
    const result = await openedEngine($("backend").value, new URL(`${entry.folder}/model.onnx`, location.href).href, description, progress);
    if (own !== turn) return result.engine.stop();
    [model, opened] = [description, result];
    ready();
    return undefined;
  } catch (error) {
    if (own === turn) throw error;
    return undefined; // of a model that is not wanted any more
  } finally {
    if (own === turn) {
      loading = false;
      $("progress").hidden = true;
    }
  }
}

function ready() {
  const { backend, threads, note } = opened, { task } = model.metadata;
  const detail = backend === "wasm" ? `, ${threads} ${threads === 1 ? "thread" : "threads"}` : "";
  const alone = backend === "wasm" && !crossOriginIsolated ? " More threads need the headers of cross-origin isolation." : "";
  $("backend-told").textContent = `${named(backend)}${detail}.${alone} ${note}`.trim();
  $("threshold-row").hidden = task !== "detect";
  $("strength-row").hidden = task !== "segment";
  showAbout(model, `ONNX Runtime Web ${site.runtime}`);
  tell("Ready.");
}

function open(entry) {
  opening = choose(entry).then(() => (picture && opened && !camera.on ? look(picture) : undefined)).catch(fail); // never rejected: others wait for it
  return opening;
}

// ---- pictures -------------------------------------------------------------------------------------------------------------------

/** Answers for a file, or a bitmap of the camera. */
async function look(source) {
  const own = opened, live = source instanceof ImageBitmap;
  if (!own) return live ? source.close() : undefined;
  if (!live && !last) tell("Calculating…");
  const answer = await own.engine.answer(source).catch((error) => {
    if (own === opened) throw error; // else it was stopped, for another model
  });
  if (own !== opened || (live && !camera.on)) return answer?.bitmap.close();
  showPicture(answer.bitmap);
  answer.bitmap.close();
  last = answer;
  shown(live);
  showTimes(answer.times, own.loading);
  document.dispatchEvent(new CustomEvent("answer", { detail: { ...answer, name: source.name ?? "camera", task: model.metadata.task } }));
  return undefined;
}

function shown(live = false) {
  const told = showAnswer(last, model, $("threshold").value / 100);
  $("picture").setAttribute("aria-label", `The picture. ${told}`);
  tell(live ? "From the camera." : `${told}.`, { shown: $("answers").childElementCount > 0 }); // a voice that reads thirty answers a second helps nobody
}

async function take(file, button) {
  if (!file) return;
  stopCamera();
  for (const each of $("samples").children) each.setAttribute("aria-pressed", String(each === button));
  picture = file;
  await (loading ? opening : look(file).catch(fail)); // a model that is loading looks at the picture when it is ready
}

async function takeSample(sample, button) {
  const response = await fetch(sample.file);
  if (!response.ok) throw new Error(`${sample.file} cannot be loaded (${response.status})`);
  await take(new File([await response.blob()], sample.file.split("/").at(-1)), button);
}

const cameraWanted = () => camera.on || Boolean(starting);

function showCamera() {
  $("camera").setAttribute("aria-pressed", String(cameraWanted()));
  $("camera").textContent = cameraWanted() ? "Stop the camera" : "Use the camera";
}

function stopCamera() {
  starting = undefined;
  camera.stop();
  showCamera();
}

async function toggleCamera() {
  if (cameraWanted()) {
    stopCamera();
    return loading ? undefined : tell("The camera is off.");
  }
  const own = (starting = {});
  showCamera();
  do await opening;
  while (loading); // another model was chosen meanwhile
  if (own !== starting) return undefined; // not wanted any more
  if (!opened) return stopCamera(); // why, is told
  tell("Asking for the camera…");
  picture = undefined;
  for (const each of $("samples").children) each.setAttribute("aria-pressed", "false");
  starting = undefined;
  const started = camera.start(async (bitmap) => {
    await opening;
    await (camera.on ? look(bitmap) : bitmap.close());
  });
  showCamera();
  return started.finally(showCamera);
}

// ---- the page -------------------------------------------------------------------------------------------------------------------

function addModels() {
  const many = site.models.filter(({ task }, _, all) => all.filter((other) => other.task === task).length > 1).length > 0;
  site.models.forEach((entry, place) => {
    const radio = made("input", { type: "radio", name: "model", value: entry.name, checked: place === 0 });
    radio.addEventListener("change", () => open(entry));
    const title = many ? entry.name : TASKS[entry.task];
    $("models").append(made("label", {}, radio, made("span", { textContent: title }), made("small", { textContent: many ? TASKS[entry.task] : entry.name })));
  });
  $("models").hidden = site.models.length < 2;
}

function addSamples() {
  for (const sample of site.samples) {
    const image = made("img", { src: sample.file, alt: sample.label, loading: "lazy", width: 88, height: 66 });
    const button = made("button", { type: "button" }, image);
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => takeSample(sample, button).catch(fail));
    $("samples").append(button);
  }
  $("samples").hidden = !site.samples.length;
  $("credits").textContent = site.credits;
}

function listen() {
  $("file").addEventListener("change", () => {
    take($("file").files[0]);
    $("file").value = ""; // the same file may be chosen again
  });
  $("camera").hidden = !hasCamera();
  $("camera").addEventListener("click", () => toggleCamera().catch(fail));
  $("backend").addEventListener("change", () => open(chosenEntry()));
  $("threshold").addEventListener("input", () => {
    $("threshold-told").textContent = `${$("threshold").value} %`;
    if (last && opened) shown(camera.on);
  });
  $("strength").addEventListener("input", paintStrength);
  paintStrength();
  document.addEventListener("visibilitychange", () => document.hidden && cameraWanted() && toggleCamera().catch(fail));
  document.addEventListener("paste", (event) => take([...event.clipboardData.files].find(isPicture)));
  for (const kind of ["dragenter", "dragover"]) document.addEventListener(kind, (event) => dragged(event, true));
  for (const kind of ["dragleave", "drop"]) document.addEventListener(kind, (event) => dragged(event, false));
  document.addEventListener("drop", (event) => {
    const file = [...event.dataTransfer.files].find(isPicture);
    if (file) take(file);
    else tell("What was dropped is no picture.", { failed: true });
  });
}

const isPicture = (file) => file.type.startsWith("image/");
const chosenEntry = () => site.models[[...document.getElementsByName("model")].findIndex(({ checked }) => checked)];

function dragged(event, over) {
  event.preventDefault();
  $("frame").classList.toggle("over", over);
}

function paintStrength() {
  $("strength-told").textContent = `${$("strength").value} %`;
  $("mask").style.opacity = $("strength").value / 100;
}

async function main() {
  site = await json("site.json");
  addModels();
  addSamples();
  listen();
  await open(site.models[0]);
  if (!picture && !cameraWanted() && opened && site.samples.length) await takeSample(site.samples[0], $("samples").firstChild);
}

main().catch(fail);
