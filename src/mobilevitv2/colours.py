"""One colour for each class, the same on every picture; the first ones are told apart with every kind of colour vision."""

from __future__ import annotations

import colorsys
from functools import lru_cache

Colour = tuple[int, int, int]

# After Okabe and Ito, and Tol; those that follow each other in lists of classes lie far apart in hue and lightness.
FIRST: tuple[Colour, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (204, 121, 167),
    (0, 158, 115),
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
    (136, 34, 85),
    (153, 153, 51),
    (170, 68, 153),
    (68, 170, 153),
    (221, 204, 119),
)
BACKGROUND: Colour = (0, 0, 0)
BACKGROUND_NAMES = frozenset({"background", "__background__", "_background_", "void", "unlabeled", "unlabelled"})
GOLDEN = 0.618034


@lru_cache(maxsize=4096)
def class_colour(index: int) -> Colour:
    """The colour (red, green, blue) of a class."""
    if index < len(FIRST):
        return FIRST[index]
    step = index - len(FIRST)
    hue, light = (0.08 + step * GOLDEN) % 1.0, (0.55, 0.38, 0.7)[step % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, light, 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)


def is_background(index: int, name: str) -> bool:
    """Whether a class is what is left over, which is not painted: the first one under one of the usual names."""
    return index == 0 and name.strip().casefold() in BACKGROUND_NAMES


def readable_on(colour: Colour) -> Colour:
    """Black or white, whichever stands out more."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
