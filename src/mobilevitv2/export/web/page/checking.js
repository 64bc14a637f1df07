// Before its first answer every model is run on a pattern whose answer the export has written down: graphics drivers exist that
// calculate wrongly and say nothing.

/** The pattern (height, width, 3), the same as in `mobilevitv2.export.web.checking`. */
export function pattern(width, height) {
  const data = new Uint8Array(width * height * 3);
  for (let y = 0, place = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let channel = 0; channel < 3; channel++) {
        data[place++] = (((x >> 3) * 37) ^ ((y >> 3) * 59) ^ (x + y * (channel + 1))) + 67 * channel;
      }
    }
  }
  return { data, width, height };
}

/** How far the outputs are from what was written down, as a share of the largest value; of class maps the share that differs. */
export function departure(outputs, check) {
  const found = outputs[check.output].data, { indices, values } = check;
  if (check.integers) {
    return indices.filter((index, place) => Number(found[index]) !== values[place]).length / indices.length;
  }
  let difference = 0;
  indices.forEach((index, place) => {
    const apart = Math.abs(found[index] - values[place]);
    difference = Number.isFinite(apart) ? Math.max(difference, apart) : Infinity;
  });
  return difference / check.largest;
}
