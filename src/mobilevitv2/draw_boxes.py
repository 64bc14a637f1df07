"""Boxes on pictures, with labels that stay on the picture and out of each other's way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from mobilevitv2.colours import class_colour, readable_on
from mobilevitv2.lettering import enlargement, shortened, writable

Corners = tuple[float, float, float, float]
BoxLike = tuple[str, float, int, Corners]

SMALLEST_FONT, LARGEST_FONT = 12, 96
SIDE_OVER_FONT, SIDE_OVER_LINE = 38, 240
"""A side here is the square root of width times height."""
FEW = 5
"""Labels that are drawn however small the picture is."""
CROWDED = 30
"""Boxes from which labels are smaller."""
MOST_LETTERED = 0.25
"""Part of the picture that labels may cover; boxes beyond, the least sure, show their colour alone."""
MOST_COVERED = 0.35
"""Of a label by labels of surer boxes; one that would be covered more is left out, the colour still tells the class."""


class _Tag(NamedTuple):
    """A label with its place."""

    text: str
    font: Any
    place: tuple[float, float, float, float]
    colour: tuple[int, int, int]


def draw_boxes(picture: Image.Image, boxes: Sequence[BoxLike]) -> Image.Image:
    """A picture with boxes, each in the colour of its class with name and score beside it.

    Args:
        picture: any mode; it is left as it is. One narrower than 320 pixels is enlarged.
        boxes: (label, score 0..1, index, (left, top, right, bottom) in pixels), as `Prediction.boxes` has them; surest first.
    """
    factor = enlargement(picture.size)
    shown = picture.convert("RGB")
    if factor > 1:
        shown = shown.resize((shown.width * factor, shown.height * factor), Image.Resampling.NEAREST)
    elif shown is picture:
        shown = picture.copy()
    pen = ImageDraw.Draw(shown)
    side = math.sqrt(shown.width * shown.height)
    line = max(1, round(side / SIDE_OVER_LINE))
    scaled = [(label, score, index, _inside(box, factor, shown.size)) for label, score, index, box in boxes]
    for _, _, index, box in reversed(scaled):
        _draw_frame(pen, box, class_colour(index), line)
    crowd = 0.7 if len(boxes) >= CROWDED else 1.0
    size = min(LARGEST_FONT, max(SMALLEST_FONT, round(crowd * min(side, 2.5 * min(shown.size)) / SIDE_OVER_FONT)))
    for tag in reversed(_placed(pen, scaled, shown.size, size, line)):
        _draw_tag(pen, tag)
    return shown


def _inside(box: Corners, factor: int, size: tuple[int, int]) -> Corners:
    """In pixels of the shown picture, and on it."""
    left, top, right, bottom = (value * factor if math.isfinite(value) else 0.0 for value in box)
    x = (min(max(left, 0), size[0] - 1), min(max(right - 1, 0), size[0] - 1))
    y = (min(max(top, 0), size[1] - 1), min(max(bottom - 1, 0), size[1] - 1))
    return min(x), min(y), max(x), max(y)


def _draw_frame(pen: ImageDraw.ImageDraw, box: Corners, colour: tuple[int, int, int], line: int) -> None:
    """A frame with a thin contrasting edge, so that it shows on grounds of its own colour."""
    left, top, right, bottom = (round(value) for value in box)
    if min(right - left, bottom - top) > 4 * line:
        edge = readable_on(colour)
        inner = (left + line, top + line, right - line, bottom - line)
        pen.rectangle(inner, outline=edge, width=max(1, line // 3))
    pen.rectangle((left, top, right, bottom), outline=colour, width=line)


def _placed(pen: ImageDraw.ImageDraw, boxes: Sequence[BoxLike], size: tuple[int, int], font_size: int, line: int) -> list[_Tag]:
    """Labels, each in the first of its possible places where no other one is, or where least of it would be covered."""
    tags: list[_Tag] = []
    room = MOST_LETTERED * size[0] * size[1]
    for label, score, index, box in boxes:
        text = f"{' '.join(label.split())} {100 * score:.0f} %"
        text, font = writable(text, font_size)
        pad = max(2, font_size // 4)
        text = shortened(pen, text, max(0.6 * size[0], 8 * font_size) - 2 * pad, font)
        wide, high = pen.textlength(text, font=font) + 2 * pad, font_size + 2 * (pad // 2) + 2
        room -= wide * high
        if room < 0 and len(tags) >= FEW:
            break
        best, covered = None, math.inf
        for place in _places(box, wide, high, size, line):
            share = sum(_shared(place, tag.place) for tag in tags) / (wide * high)
            if share < covered - 1e-6:
                best, covered = place, share
            if share == 0:
                break
        if best is not None and (covered <= MOST_COVERED or not tags):
            tags.append(_Tag(text, font, best, class_colour(index)))
    return tags


def _places(box: Corners, wide: float, high: float, size: tuple[int, int], line: int) -> list[Corners]:
    """Above, below, inside and beside a box, as far as they are on the picture."""
    left, top, right, bottom = box
    corners = [
        (left, top - high),
        (right - wide, top - high),
        (left, bottom + 1),
        (right - wide, bottom + 1),
        (left + line, top + line),
        (right - wide - line, top + line),
        (left + line, bottom - high - line),
        (right - wide - line, bottom - high - line),
        (right + 1, top),
        (left - wide, top),
    ]
    # Labels wider than their box slide along its edge before they leave the picture.
    slid = [(min(max(x, 0), size[0] - wide), y) for x, y in corners[:4]]
    places = [(x, y, x + wide, y + high) for x, y in [*slid, *corners[4:]]]
    on_it = [p for p in places if p[0] >= 0 and p[1] >= 0 and p[2] <= size[0] and p[3] <= size[1]]
    if on_it:
        return on_it
    x, y = max(0, min(left, size[0] - wide)), max(0, min(top, size[1] - high))
    return [(x, y, x + wide, y + high)]


def _shared(a: Corners, b: Corners) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _draw_tag(pen: ImageDraw.ImageDraw, tag: _Tag) -> None:
    left, top, right, bottom = tag.place
    pen.rectangle((round(left), round(top), round(right) - 1, round(bottom) - 1), fill=tag.colour)
    pen.text(((left + right) / 2, (top + bottom) / 2), tag.text, fill=readable_on(tag.colour), font=tag.font, anchor="mm")
