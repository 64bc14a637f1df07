// One colour for each class, the same as in the package's pictures (`mobilevitv2.colours`).

const FIRST = [
  [0, 114, 178], [230, 159, 0], [204, 121, 167], [0, 158, 115], [213, 94, 0], [86, 180, 233],
  [240, 228, 66], [136, 34, 85], [153, 153, 51], [170, 68, 153], [68, 170, 153], [221, 204, 119],
];
const BACKGROUND_NAMES = new Set(["background", "__background__", "_background_", "void", "unlabeled", "unlabelled"]);
const GOLDEN = 0.618034;

/** [red, green, blue] of a class. */
export function classColour(index) {
  if (index < FIRST.length) return FIRST[index];
  const step = index - FIRST.length;
  return fromHls((0.08 + step * GOLDEN) % 1, [0.55, 0.38, 0.7][step % 3], 0.75);
}

function fromHls(hue, light, saturation) {
  const upper = light <= 0.5 ? light * (1 + saturation) : light + saturation - light * saturation;
  const lower = 2 * light - upper;
  const part = (turned) => {
    const place = (turned + 1) % 1;
    if (place < 1 / 6) return lower + (upper - lower) * place * 6;
    if (place < 1 / 2) return upper;
    return place < 2 / 3 ? lower + (upper - lower) * (2 / 3 - place) * 6 : lower;
  };
  return [hue + 1 / 3, hue, hue - 1 / 3].map((place) => Math.round(255 * part(place)));
}

/** Whether a class is what is left over, which is not painted. */
export const isBackground = (index, name) => index === 0 && BACKGROUND_NAMES.has(name.trim().toLowerCase());

/** "black" or "white", whichever stands out more. */
export const readableOn = ([red, green, blue]) => (0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "black" : "white");

export const css = (colour) => `rgb(${colour.join(" ")})`;
