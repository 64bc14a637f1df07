// What the file leaves undone, as in `mobilevitv2.runtime.postprocessing`: probabilities, class maps, suppression of boxes.

const IOU = 0.5, CANDIDATES = 400, DETECTIONS = 200;
export const LEAST_SCORE = 0.05; // of detections that are kept; the page shows those above its own threshold

/** Scores of classes as probabilities. */
export function probabilities(logits, activation) {
  if (activation === "sigmoid") return Float32Array.from(logits, (value) => 1 / (1 + Math.exp(-value)));
  let largest = -Infinity, sum = 0;
  for (const value of logits) largest = Math.max(largest, value);
  const powers = Float32Array.from(logits, (value) => Math.exp(value - largest));
  for (const value of powers) sum += value;
  return powers.map((value) => value / sum);
}

/** For each of `want` places on `have` values: the value before, the one after, and how far it lies towards the latter. */
function between(have, want) {
  const scale = Math.fround((have - 1) / Math.max(want - 1, 1));
  const before = new Int32Array(want), after = new Int32Array(want), share = new Float32Array(want);
  for (let index = 0; index < want; index++) {
    const place = Math.fround(index * scale);
    before[index] = Math.min(Math.trunc(place), have - 1);
    after[index] = Math.min(before[index] + 1, have - 1);
    share[index] = place - before[index];
  }
  return { before, after, share };
}

/** Logits (classes, rows, columns) to the class of each pixel (height, width): bilinear, corner pixels on corner pixels. */
export function classMap(logits, [classes, rows, columns], [width, height]) {
  const across = between(columns, width), down = between(rows, height);
  const wide = new Float32Array(classes * rows * width); // each row stretched
  for (let row = 0; row < classes * rows; row++) {
    for (let x = 0; x < width; x++) {
      const left = logits[row * columns + across.before[x]], right = logits[row * columns + across.after[x]];
      wide[row * width + x] = left + Math.fround(Math.fround(right - left) * across.share[x]);
    }
  }
  const mask = new Uint16Array(width * height), best = new Float32Array(width);
  for (let y = 0; y < height; y++) {
    const out = mask.subarray(y * width, (y + 1) * width), share = down.share[y];
    best.fill(-Infinity);
    for (let label = 0; label < classes; label++) {
      const upper = (label * rows + down.before[y]) * width, lower = (label * rows + down.after[y]) * width;
      for (let x = 0; x < width; x++) {
        const above = wide[upper + x];
        const value = Math.fround(above + Math.fround(Math.fround(wide[lower + x] - above) * share));
        if (value > best[x]) {
          best[x] = value;
          out[x] = label;
        }
      }
    }
  }
  return mask;
}

/** A finished class map at another size: of the nearest pixel, corner pixels on corner pixels. */
export function resizedMask(mask, [rows, columns], [width, height]) {
  const even = (value) => (value % 1 === 0.5 ? 2 * Math.round(value / 2) : Math.round(value)); // numpy rounds halves to even
  const places = (have, want) => Int32Array.from({ length: want }, (_, index) => even((index * (have - 1)) / Math.max(want - 1, 1)));
  const across = places(columns, width), down = places(rows, height), out = new Uint16Array(width * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) out[y * width + x] = Number(mask[down[y] * columns + across[x]]);
  }
  return out;
}

/** Indices of boxes, the surest first, that no surer one that stays overlaps by more than the limit. */
function survivors(order, boxes) {
  const stays = [];
  const area = (i) => Math.max(boxes[4 * i + 2] - boxes[4 * i], 0) * Math.max(boxes[4 * i + 3] - boxes[4 * i + 1], 0);
  const shared = (i, j) => {
    const wide = Math.min(boxes[4 * i + 2], boxes[4 * j + 2]) - Math.max(boxes[4 * i], boxes[4 * j]);
    const high = Math.min(boxes[4 * i + 3], boxes[4 * j + 3]) - Math.max(boxes[4 * i + 1], boxes[4 * j + 1]);
    return Math.max(wide, 0) * Math.max(high, 0);
  };
  for (const each of order) {
    const fits = stays.every((other) => {
      const common = shared(each, other);
      return common <= IOU * (area(each) + area(other) - common);
    });
    if (fits) stays.push(each);
  }
  return stays;
}

/** Detections { score, index, box: [left, top, right, bottom] in 0..1 } from scores (anchors, classes) and boxes (anchors, 4). */
export function suppressed(scores, classes, boxes) {
  const found = [], anchors = scores.length / classes;
  for (let label = 0; label < classes; label++) {
    const passing = [];
    for (let anchor = 0; anchor < anchors; anchor++) {
      if (scores[anchor * classes + label] > LEAST_SCORE) passing.push(anchor);
    }
    passing.sort((i, j) => scores[j * classes + label] - scores[i * classes + label]);
    for (const anchor of survivors(passing.slice(0, CANDIDATES), boxes)) {
      found.push({ score: scores[anchor * classes + label], index: label, box: corners(boxes, anchor) });
    }
  }
  return found.sort((one, other) => other.score - one.score).slice(0, DETECTIONS);
}

function corners(boxes, place) {
  return Array.from(boxes.subarray(4 * place, 4 * place + 4), (side) => Math.min(Math.max(side, 0), 1));
}

/** Detections of a file that has suppression inside. */
function listed(outputs) {
  const found = [];
  for (let place = 0; place < Number(outputs.count.data[0]); place++) {
    const score = outputs.scores.data[place];
    if (score > LEAST_SCORE) {
      found.push({ score, index: Number(outputs.labels.data[place]), box: corners(outputs.boxes.data, place) });
    }
  }
  return found;
}

/**
 * The file's outputs { name: { data, dims } } as an answer, for a picture shown at [width, height]:
 * { probabilities } or { mask, width, height } or { boxes }.
 */
export function answerOf(outputs, metadata, [width, height]) {
  if (metadata.task === "classify") {
    const { probabilities: shares, logits } = outputs;
    return { probabilities: shares ? Float32Array.from(shares.data) : probabilities(logits.data, metadata.activation) };
  }
  if (metadata.task === "segment") {
    const mask = outputs.mask
      ? resizedMask(outputs.mask.data, outputs.mask.dims.slice(-2), [width, height])
      : classMap(outputs.logits.data, outputs.logits.dims.slice(-3), [width, height]);
    return { mask, width, height };
  }
  if (outputs.count) return { boxes: listed(outputs) };
  return { boxes: suppressed(outputs.scores.data, outputs.scores.dims.at(-1), outputs.boxes.data) };
}
