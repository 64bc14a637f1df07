"""Answers as pictures: labels under a picture, score maps over it, all layers on one sheet.

Pillow and numpy alone, with the font that comes with Pillow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mobilevitv2.lettering import SMALLEST_FONT, SMALLEST_WIDTH, enlargement, font_of, shortened, writable

__all__ = [
    "PANEL",
    "QUIET_TEXT",
    "TEXT",
    "draw_heatmap",
    "draw_labels",
    "draw_score_maps",
    "fitted",
    "shortened",
    "writable",
]

Array = np.ndarray[Any, Any]
Box = tuple[int, int, int, int]

PANEL = (22, 24, 29)
BAR = (45, 92, 160)
FIRST_BAR = (28, 126, 214)
TEXT = (245, 246, 248)
QUIET_TEXT = (196, 201, 209)
PICTURE_WIDTH_OVER_FONT = 40

# From nothing to most, each a step brighter, so that the order survives print in grey. Positions are even.
HEAT = np.array([[18, 10, 60], [84, 24, 122], [176, 42, 110], [236, 92, 62], [253, 172, 50], [252, 248, 164]], dtype=np.float32)


def draw_labels(picture: Image.Image, labels: Sequence[tuple[str, float, int]]) -> Image.Image:
    """A picture with its labels in rows underneath, each with a bar as long as its probability.

    Args:
        picture: any size and mode; it is left as it is. One narrower than 320 pixels is enlarged, or centred where it is too long
            for that, so that the labels have room.
        labels: (label, probability 0..1, index), as `Prediction.labels` has them; most probable first.
    """
    shown = _enlarged(picture.convert("RGB"))
    width = max(shown.width, SMALLEST_WIDTH)
    size = max(SMALLEST_FONT, round(min(width, 2 * shown.height + SMALLEST_WIDTH) / PICTURE_WIDTH_OVER_FONT))
    row = round(size * 1.6)
    sheet = Image.new("RGB", (width, shown.height + row * len(labels)), PANEL)
    sheet.paste(shown, ((width - shown.width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    for index, (label, probability, _) in enumerate(labels):
        box = (0, shown.height + index * row, width, shown.height + (index + 1) * row)
        _draw_row(pen, box, label, probability, size=size, first=index == 0)
    return sheet


def _draw_row(pen: ImageDraw.ImageDraw, box: Box, label: str, probability: float, *, size: int, first: bool) -> None:
    left, top, right, bottom = box
    gap, middle = size // 2, (top + bottom) / 2
    share = min(max(probability, 0.0), 1.0)
    pen.rectangle((left, top + 1, left + round(share * (right - left)), bottom - 1), fill=FIRST_BAR if first else BAR)
    colour, percent = TEXT if first else QUIET_TEXT, f"{100 * share:.1f} %"
    room = right - left - 3 * gap - pen.textlength(percent, font=font_of(size))
    text, font = writable(" ".join(label.split()), size)  # a line break would leave the row
    pen.text((left + gap, middle), shortened(pen, text, room, font), fill=colour, font=font, anchor="lm")
    pen.text((right - gap, middle), percent, fill=colour, font=font_of(size), anchor="rm")


def _enlarged(picture: Image.Image) -> Image.Image:
    """A picture too narrow for text, a whole number of times as large; its pixels stay visible as such."""
    factor = enlargement(picture.size)
    return picture if factor == 1 else picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def draw_heatmap(picture: Image.Image, scores: Array, *, box: Box | None = None, strength: float = 0.7) -> Image.Image:
    """A picture with a score map over it: dark violet for the lowest scores, over red, to bright yellow for the highest.

    Args:
        picture: any size and mode; it is left as it is.
        scores: (height, width) of any range, stretched over the picture; the colours run from its smallest to its largest value.
        box: (left, top, right, bottom), in pixels, of the part that the scores belong to, where that is not the whole picture
            (`Prediction.seen`); it may reach over the sides. What lies outside turns dark and grey: the model did not see it.
        strength: how much of the colour the highest score shows, 0 to 1; the lowest shows a third of that.
    """
    photo = np.asarray(picture.convert("RGB"), dtype=np.float32)  # (H, W, 3)
    heat, seen = _laid_over(_between_zero_and_one(scores), picture.size, box or (0, 0, *picture.size))
    grey = photo.mean(axis=-1, keepdims=True)
    share = strength * (1 + 2 * heat[..., None]) / 3
    mixed = (1 - share) * (0.5 * photo + 0.5 * grey) + share * _coloured(heat)
    return Image.fromarray(np.where(seen[..., None], mixed, 0.35 * grey).clip(0, 255).astype(np.uint8))


def draw_score_maps(
    picture: Image.Image, maps: Sequence[tuple[str, Array]], *, box: Box | None = None, tile: int = 320
) -> Image.Image:
    """All score maps of a picture on one sheet, five in a row, the picture itself first, each with its layer's name.

    Args:
        picture: any size and mode.
        maps: (name, scores (height, width)), as `Prediction.attention` has them.
        box: as in `draw_heatmap`.
        tile: long side of each small picture, in pixels.
    """
    small, small_box = fitted(picture, tile, box=box)
    tiles = [("picture", small.convert("RGB")), *((name, draw_heatmap(small, scores, box=small_box)) for name, scores in maps)]
    columns, gap, caption = min(5, len(tiles)), 8, 26
    width, height = max(small.width, 110) + gap, small.height + caption + gap
    sheet = Image.new("RGB", (columns * width + gap, math.ceil(len(tiles) / columns) * height + gap), PANEL)
    pen = ImageDraw.Draw(sheet)
    for index, (name, shown) in enumerate(tiles):
        left, top = gap + index % columns * width, gap + index // columns * height
        sheet.paste(shown, (left + (width - gap - shown.width) // 2, top))
        middle = (left + (width - gap) / 2, top + shown.height + caption / 2)
        pen.text(middle, name.replace(".", ", "), fill=TEXT, font=font_of(15), anchor="mm")
    return sheet


def fitted(picture: Image.Image, side: int, *, box: Box | None = None) -> tuple[Image.Image, Box | None]:
    """A picture, and a box on it, made smaller until the long side is `side`; as they are where they are small enough."""
    scale = min(1.0, side / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    small = picture if size == picture.size else picture.resize(size, Image.Resampling.LANCZOS)
    if box is None:
        return small, None
    x, y = size[0] / picture.width, size[1] / picture.height
    return small, (round(box[0] * x), round(box[1] * y), round(box[2] * x), round(box[3] * y))


def _between_zero_and_one(scores: Array) -> Array:
    values = np.asarray(scores, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _laid_over(values: Array, size: tuple[int, int], box: Box) -> tuple[Array, Array]:
    """Values stretched over the box, on a map of the picture's size; and where that map is inside the box."""
    width, height = size
    left, top, right, bottom = box
    stretched = Image.fromarray(values).resize((max(1, right - left), max(1, bottom - top)), Image.Resampling.BICUBIC)
    whole = Image.new("F", size, -1.0)
    whole.paste(stretched, (left, top))
    seen = np.zeros((height, width), dtype=bool)
    seen[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = True
    return np.asarray(whole).clip(0.0, 1.0), seen


def _coloured(values: Array) -> Array:
    """(H, W) in 0..1 -> (H, W, 3) in 0..255."""
    positions = np.linspace(0.0, 1.0, len(HEAT))
    return np.stack([np.interp(values, positions, HEAT[:, channel]) for channel in range(3)], axis=-1).astype(np.float32)
