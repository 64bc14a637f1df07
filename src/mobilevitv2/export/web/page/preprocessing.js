// Pictures into the model's input, as Pillow and numpy do it in `mobilevitv2.runtime.preprocessing`: bit for bit up to Pillow 12;
// Pillow 13 takes the rows of tall pictures first, which rounds some values the other way.
//
// A canvas resizes by rules of its own, which differ between browsers and from what the model was trained on; so this file has
// Pillow's antialiased filters with their fixed-point arithmetic: columns first, then rows, each pass rounded to 8 bits.

const PRECISION_BITS = 22;
const HALF = 2 ** (PRECISION_BITS - 1);
const ONE = 2 ** PRECISION_BITS;
const STRIP_PIXELS = 2 ** 22; // of a picture that are in memory at once; phones refuse canvases of more than 16 million

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

const FILTERS = {
  box: { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  hamming: {
    support: 1,
    weight: (x) => (Math.abs(x) >= 1 ? 0 : sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x))),
  },
  bicubic: {
    support: 2,
    weight: (value) => {
      const a = -0.5, x = Math.abs(value);
      if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
    },
  },
  lanczos: { support: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

/** [width, height] after the contract's resize. */
export function resizedSize([width, height], resize) {
  if (!resize) return [width, height];
  const edge = resize.shortest_edge;
  if (!edge) return [resize.width, resize.height];
  if (width <= height) return [edge, Math.max(1, Math.trunc((edge * height) / width))];
  return [Math.max(1, Math.trunc((edge * width) / height)), edge];
}

/** For outputs first..first+count of `want` made from `have` values: where their sources begin, and the weights, in fixed point. */
function coefficients(have, want, first, count, filter) {
  if (filter === "nearest") {
    const starts = new Int32Array(count), scale = have / want;
    let place = scale * 0.5; // added up as Pillow does it, with its rounding
    for (let index = 0; index < first + count; index++, place += scale) {
      if (index >= first) starts[index - first] = Math.min(Math.trunc(place), have - 1);
    }
    return { starts, lengths: new Int32Array(count).fill(1), weights: new Float64Array(count).fill(ONE), step: 1 };
  }
  const { support: reach, weight } = FILTERS[filter] ?? FILTERS.bicubic;
  const scale = have / want, stretch = Math.max(scale, 1), support = reach * stretch;
  const step = Math.ceil(support) * 2 + 1;
  const starts = new Int32Array(count), lengths = new Int32Array(count), weights = new Float64Array(count * step);
  for (let index = 0; index < count; index++) {
    const centre = (first + index + 0.5) * scale;
    const from = Math.max(0, Math.trunc(centre - support + 0.5));
    const length = Math.min(have, Math.trunc(centre + support + 0.5)) - from;
    const own = weights.subarray(index * step, index * step + length);
    let sum = 0;
    for (let x = 0; x < length; x++) sum += own[x] = weight((x + from - centre + 0.5) * (1 / stretch));
    for (let x = 0; x < length; x++) {
      const share = sum ? own[x] / sum : own[x];
      own[x] = Math.trunc(share * ONE + (share < 0 ? -0.5 : 0.5));
    }
    starts[index] = from;
    lengths[index] = length;
  }
  return { starts, lengths, weights, step };
}

const rounded = (sum) => {
  const value = (sum + HALF) >> PRECISION_BITS;
  return value < 0 ? 0 : value > 255 ? 255 : value;
};

/** Rows of RGBA (count, width) narrowed to RGB (count, columns), into `out` from the row `top` on. */
function narrowed(rgba, width, count, columns, out, top) {
  const { starts, lengths, weights, step } = columns, wide = starts.length;
  for (let y = 0; y < count; y++) {
    let place = (top + y) * wide * 3;
    for (let x = 0; x < wide; x++) {
      let source = (y * width + starts[x]) * 4, red = 0, green = 0, blue = 0;
      for (let k = x * step, end = k + lengths[x]; k < end; k++, source += 4) {
        const share = weights[k];
        red += rgba[source] * share;
        green += rgba[source + 1] * share;
        blue += rgba[source + 2] * share;
      }
      out[place++] = rounded(red);
      out[place++] = rounded(green);
      out[place++] = rounded(blue);
    }
  }
}

/** RGB (height, width) to as many rows as `rows` has; `above` is the number of the first row that is there. */
function shortened(rgb, width, rows, above) {
  const { starts, lengths, weights, step } = rows, row = width * 3;
  const out = new Uint8Array(starts.length * row);
  const sums = new Float64Array(row);
  for (let y = 0; y < starts.length; y++) {
    sums.fill(0);
    for (let k = 0; k < lengths[y]; k++) {
      const share = weights[y * step + k], source = (starts[y] + k - above) * row;
      for (let x = 0; x < row; x++) sums[x] += rgb[source + x] * share;
    }
    for (let x = 0; x < row; x++) out[y * row + x] = rounded(sums[x]);
  }
  return out;
}

/**
 * The part `window` = [left, top, width, height] of a picture resized to [wide, high], as RGB.
 * `source` has width, height and rows(top, count), which gives RGBA.
 */
export function resized(source, [wide, high], window, filter) {
  const [left, top, width, height] = window;
  const columns = coefficients(source.width, wide, left, width, filter);
  const rows = coefficients(source.height, high, top, height, filter);
  const above = rows.starts[0], below = rows.starts[height - 1] + rows.lengths[height - 1];
  const middle = new Uint8Array((below - above) * width * 3);
  const step = Math.max(1, Math.floor(STRIP_PIXELS / source.width));
  for (let row = above; row < below; row += step) {
    const count = Math.min(step, below - row);
    narrowed(source.rows(row, count), source.width, count, columns, middle, row - above);
  }
  return shortened(middle, width, rows, above);
}

/** A picture as the contract wants it: RGB, 8 bits, (picture.height, picture.width). */
export function prepared(source, picture) {
  const size = resizedSize([source.width, source.height], picture.resize);
  const crop = picture.crop ?? { width: size[0], height: size[1] };
  const left = Math.max(0, Math.floor((size[0] - crop.width) / 2)), top = Math.max(0, Math.floor((size[1] - crop.height) / 2));
  const width = Math.min(crop.width, size[0]), height = Math.min(crop.height, size[1]);
  const pixels = resized(source, size, [left, top, width, height], picture.interpolation);
  const data = width === crop.width && height === crop.height ? pixels : padded(pixels, [width, height], crop);
  return { data, width: crop.width, height: crop.height };
}

/** Black around a picture that is smaller than the crop. */
function padded(pixels, [width, height], crop) {
  const out = new Uint8Array(crop.width * crop.height * 3);
  const left = Math.floor((crop.width - width) / 2), top = Math.floor((crop.height - height) / 2);
  for (let y = 0; y < height; y++) {
    out.set(pixels.subarray(y * width * 3, (y + 1) * width * 3), ((top + y) * crop.width + left) * 3);
  }
  return out;
}

/** Prepared pixels as the file takes them: { type, data, dims }. */
export function asInput({ data, width, height }, picture, layout) {
  if (picture.inside) return { type: "uint8", data, dims: [1, height, width, 3] };
  const pixels = width * height, values = new Float32Array(3 * pixels), first = layout !== "NHWC";
  const scale = Math.fround(picture.scale);
  for (let channel = 0; channel < 3; channel++) {
    const source = picture.channel_order === "BGR" ? 2 - channel : channel;
    const mean = Math.fround(picture.mean?.[channel] ?? 0), deviation = Math.fround(picture.std?.[channel] ?? 1);
    for (let index = 0; index < pixels; index++) {
      const scaled = Math.fround(data[index * 3 + source] * scale);
      values[first ? channel * pixels + index : index * 3 + channel] = Math.fround(scaled - mean) / deviation;
    }
  }
  return { type: "float32", data: values, dims: first ? [1, 3, height, width] : [1, height, width, 3] };
}

/** The rows of a bitmap, a strip at a time; what is transparent is seen over white. */
export function bitmapSource(bitmap) {
  const { width, height } = bitmap;
  const strip = Math.min(height, Math.max(1, Math.floor(STRIP_PIXELS / width)));
  const canvas = new OffscreenCanvas(width, strip);
  const pen = canvas.getContext("2d", { willReadFrequently: true, alpha: false });
  return {
    width,
    height,
    rows(top, count) {
      pen.fillStyle = "#fff";
      pen.fillRect(0, 0, width, count);
      pen.drawImage(bitmap, 0, top, width, count, 0, 0, width, count);
      return pen.getImageData(0, 0, width, count).data;
    },
  };
}
