// Answers on the page: bars, colours over the picture, boxes, and the words for those who listen.

import { classColour, css, isBackground, readableOn } from "./colours.js";

const TOP = 5, MOST_BOXES = 50, MOST_LISTED = 12;
const $ = (id) => document.getElementById(id);
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const length = (share) => `${(100 * share).toFixed(3)}%`; // style sheets want no space

/** A new element with properties and children. */
export function made(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** The picture itself; a canvas no larger than `most` pixels a side. */
export function showPicture(bitmap, most = 1280) {
  const scale = Math.min(1, most / Math.max(bitmap.width, bitmap.height)), canvas = $("picture");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  $("sheet").style.setProperty("--ratio", canvas.width / canvas.height);
  $("sheet").hidden = false;
  $("hint").hidden = true;
}

export function clearAnswer() {
  $("answers").replaceChildren();
  $("boxes").replaceChildren();
  $("mask").hidden = true;
  $("times").replaceChildren();
}

/** Shows an answer; gives the sentence that sums it up. */
export function showAnswer(answer, model, threshold) {
  const { task, labels } = model.metadata;
  const name = (index) => labels[index] ?? `class ${index}`;
  $("boxes").replaceChildren();
  $("mask").hidden = task !== "segment";
  if (task === "classify") return showLabels(answer, name);
  return task === "segment" ? showMask(answer, name) : showBoxes(answer, name, threshold);
}

function row({ label, share, value, colour }) {
  const fill = made("div", { className: "fill" });
  fill.style.width = length(share);
  const parts = [made("span", { className: "name", textContent: label }), made("span", { className: "value", textContent: value })];
  if (colour) {
    const swatch = made("span", { className: "swatch" });
    swatch.style.background = fill.style.background = colour;
    if (colour === "transparent") fill.style.background = ""; // as the bars of a classifier
    parts.unshift(swatch);
  }
  const track = made("div", { className: "track" }, fill);
  track.setAttribute("aria-hidden", "true");
  return made("li", {}, ...parts, track);
}

/** Rows into the list; those that are there already are changed in place, so that bars glide. */
function showRows(rows) {
  const list = $("answers"), fresh = rows.map(row);
  if (list.children.length !== fresh.length) return list.replaceChildren(...fresh);
  return fresh.forEach((element, place) => {
    const old = list.children[place], fill = old.querySelector(".fill"), width = element.querySelector(".fill").style.width;
    if (old.childElementCount !== element.childElementCount || old.querySelector(".swatch")) return old.replaceWith(element);
    for (const part of [".name", ".value"]) old.querySelector(part).textContent = element.querySelector(part).textContent;
    return (fill.style.width = width);
  });
}

function showLabels({ probabilities }, name) {
  const order = Array.from(probabilities.keys()).sort((i, j) => probabilities[j] - probabilities[i]).slice(0, TOP);
  showRows(order.map((index) => ({ label: name(index), share: probabilities[index], value: percent(probabilities[index]) })));
  return `${name(order[0])}, ${percent(probabilities[order[0]])}`;
}

function showMask({ mask, width, height }, name) {
  const counts = new Map();
  for (const index of mask) counts.set(index, (counts.get(index) ?? 0) + 1);
  const shares = [...counts].sort((one, other) => other[1] - one[1]).map(([index, count]) => ({ index, share: count / mask.length }));
  showRows(
    shares.slice(0, MOST_LISTED).map(({ index, share }) => ({
      label: name(index), share, value: percent(share), colour: isBackground(index, name(index)) ? "transparent" : css(classColour(index)),
    })),
  );
  const canvas = $("mask");
  Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(painted(mask, width, height, name), 0, 0);
  return shares.slice(0, 3).map(({ index, share }) => `${name(index)} ${percent(share, 0)}`).join(", ");
}

/** Classes as colours, borders between them white; the background clear. */
function painted(mask, width, height, name) {
  const image = new ImageData(width, height), colours = new Map();
  const values = new Uint32Array(image.data.buffer);
  const packed = ([red, green, blue]) => (255 << 24) | (blue << 16) | (green << 8) | red;
  const reach = Math.max(1, Math.round(Math.min(width, height) / 300));
  for (let y = 0, place = 0; y < height; y++) {
    for (let x = 0; x < width; x++, place++) {
      const label = mask[place];
      if (!colours.has(label)) colours.set(label, isBackground(label, name(label)) ? 0 : packed(classColour(label)));
      const edge = (x >= reach && mask[place - reach] !== label) || (y >= reach && mask[place - reach * width] !== label);
      values[place] = edge ? 0xffffffff : colours.get(label);
    }
  }
  return image;
}

function showBoxes({ boxes }, name, threshold) {
  const shown = boxes.filter(({ score }) => score > threshold).slice(0, MOST_BOXES);
  $("boxes").replaceChildren(...shown.map((found) => frame(found, name)).reverse()); // the surest on top
  showRows(
    shown.slice(0, MOST_LISTED).map(({ score, index }) => ({
      label: name(index), share: score, value: percent(score, 0), colour: css(classColour(index)),
    })),
  );
  if (!shown.length) return "Nothing found above the least score";
  const counts = new Map();
  for (const { index } of shown) counts.set(name(index), (counts.get(name(index)) ?? 0) + 1);
  return `Found: ${[...counts].map(([label, count]) => (count > 1 ? `${count} × ${label}` : label)).join(", ")}`;
}

function frame({ score, index, box: [left, top, right, bottom] }, name) {
  const colour = classColour(index), label = made("span", { textContent: `${name(index)} ${percent(score, 0)}` });
  label.style.background = css(colour);
  label.style.color = readableOn(colour);
  const element = made("div", { className: `box${top < 0.1 ? " low" : ""}${left > 0.6 ? " right" : ""}` }, label);
  element.style.borderColor = css(colour);
  Object.assign(element.style, {
    left: length(left), top: length(top), width: length(right - left), height: length(bottom - top),
  });
  return element;
}

const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

export function showFacts(id, pairs) {
  $(id).replaceChildren(...pairs.flatMap(([term, fact]) => [made("dt", { textContent: term }), made("dd", { textContent: fact })]));
}

export function showTimes({ prepare, run, finish }, loading) {
  showFacts("times", [
    ["Reading and resizing", milliseconds(prepare)],
    ["Model", milliseconds(run)],
    ["Reading the answer", milliseconds(finish)],
    ["Model made ready", milliseconds(loading)],
  ]);
}

export function showAbout({ metadata, bytes }, runtime) {
  const { picture } = metadata;
  const steps = [
    picture.resize && `resized to ${picture.resize.shortest_edge ? `short side ${picture.resize.shortest_edge}` : `${picture.resize.height} × ${picture.resize.width}`} (${picture.interpolation})`,
    picture.crop && `centre of ${picture.crop.height} × ${picture.crop.width}`,
  ];
  showFacts("about", [
    ["Weights", metadata.source],
    ["Task", `${metadata.task}, ${metadata.labels.length} classes`],
    ["File", `${(bytes / 1e6).toFixed(1)} MB, ${metadata.precision}`],
    ["Input", steps.filter(Boolean).join(", ") || `${picture.height} × ${picture.width}`],
    ["Licence", metadata.licence],
    ["Checksum", metadata.weights_sha256.slice(0, 16) || "none"],
    ["Runtime", runtime],
  ]);
}
