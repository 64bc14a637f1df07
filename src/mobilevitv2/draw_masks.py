"""Masks as pictures: each class in its colour over the photograph, with a legend; and a file of the classes themselves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from mobilevitv2.colours import BACKGROUND, class_colour, is_background, readable_on
from mobilevitv2.lettering import SMALLEST_FONT, SMALLEST_WIDTH, enlargement, shortened, writable

Array = np.ndarray[Any, Any]
AreaLike = tuple[str, float, int, int]

PANEL, TEXT = (22, 24, 29), (245, 246, 248)
BACKGROUND_SWATCH = (90, 94, 102)
SHORT_SIDE_OVER_LINE = 150
WIDTH_OVER_FONT = 42
LEGEND_ENTRIES = 24
WIDEST_NAME = 24
"""Letters."""


def draw_mask(
    picture: Image.Image,
    mask: Array,
    areas: Sequence[AreaLike],
    *,
    strength: float = 0.45,
    legend_rows: int | None = None,
) -> Image.Image:
    """A picture with its classes as colours, outlined, and a legend with their shares below.

    Args:
        picture: any mode; it is left as it is. One narrower than 320 pixels is enlarged, as by `draw_labels`.
        mask: (height, width) of the picture's size, indices of classes.
        areas: (label, share, pixels, index), as `Prediction.areas` has them; what is not among them is not painted. Nor is a class
            0 that is called background.
        strength: how much of the colour shows, 0 to 1.
        legend_rows: rows of the legend; as many as it takes where it is not given.
    """
    if mask.shape != (picture.height, picture.width):
        raise ValueError(f"the mask is {mask.shape[1]} x {mask.shape[0]}, the picture {picture.width} x {picture.height}")
    factor = enlargement(picture.size)
    size = (picture.width * factor, picture.height * factor)
    shown = picture.convert("RGB")
    if factor > 1:
        shown = shown.resize(size, Image.Resampling.NEAREST)
        mask = mask.repeat(factor, axis=0).repeat(factor, axis=1)
    painted = [area for area in areas if not is_background(area[3], area[0])]
    shown = _painted(shown, _compact(mask, painted), [class_colour(area[3]) for area in painted], strength)
    return _with_legend(shown, areas, legend_rows)


def _compact(mask: Array, painted: Sequence[AreaLike]) -> Array:
    """The mask with the painted classes as 1, 2, ... and all others as 0, in bytes."""
    table = np.zeros(int(mask.max(initial=0)) + 1, dtype=np.uint8)
    for place, (_, _, _, index) in enumerate(painted[:255], 1):
        if index < len(table):
            table[index] = place
    return table[mask]


def _painted(picture: Image.Image, places: Array, colours: list[tuple[int, int, int]], strength: float) -> Image.Image:
    """With each class's colour over it, and a line in the full colour along its border, on the inside."""
    layer = Image.fromarray(places)
    line = max(1, round(min(picture.size) / SHORT_SIDE_OVER_LINE))
    # Pillow's filters know odd sizes: a border of n pixels needs 2n + 1.
    inner = ImageChops.subtract(
        layer.filter(ImageFilter.MaxFilter(2 * line + 1)), layer.filter(ImageFilter.MinFilter(2 * line + 1))
    )
    edge, inside = inner.point(lambda v: 255 if v else 0), layer.point(lambda v: round(255 * strength) if v else 0)
    edge = ImageChops.darker(edge, layer.point(lambda v: 255 if v else 0))
    layer.putpalette([value for colour in (BACKGROUND, *colours[:255]) for value in colour])
    flat = layer.convert("RGB")
    return Image.composite(flat, Image.composite(flat, picture, inside), edge)


def _with_legend(picture: Image.Image, areas: Sequence[AreaLike], rows: int | None) -> Image.Image:
    width = max(picture.width, SMALLEST_WIDTH)
    size = max(SMALLEST_FONT, round(min(width, 2 * picture.height + SMALLEST_WIDTH) / WIDTH_OVER_FONT))
    row, pen = round(size * 1.7), ImageDraw.Draw(picture)
    lines = _lines(pen, areas[:LEGEND_ENTRIES], width - size, size)
    if len(areas) > LEGEND_ENTRIES and rows is None:
        lines.append([(f"and {len(areas) - LEGEND_ENTRIES} more", None)])
    count = len(lines) if rows is None else rows
    if count == 0:
        return picture
    sheet = Image.new("RGB", (width, picture.height + count * row + size // 2), PANEL)
    sheet.paste(picture, ((width - picture.width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines[:count]):
        left, middle = size / 2, picture.height + size // 4 + number * row + row / 2
        for text, colour in line:
            left += _draw_entry(pen, (left, middle), text, colour, size)
    return sheet


def _lines(
    pen: ImageDraw.ImageDraw, areas: Sequence[AreaLike], room: float, size: int
) -> list[list[tuple[str, tuple[int, int, int] | None]]]:
    """The entries of the legend, filled into lines of this width."""
    lines: list[list[tuple[str, tuple[int, int, int] | None]]] = []
    used = 0.0
    for label, share, _, index in areas:
        name = " ".join(label.split())
        name = name if len(name) <= WIDEST_NAME else name[: WIDEST_NAME - 3].rstrip() + "..."
        text = f"{name} {_percent(share)}"
        colour = BACKGROUND_SWATCH if is_background(index, label) else class_colour(index)
        wide = _entry_width(pen, text, size)
        if not lines or used + wide > room:
            lines.append([])
            used = 0.0
        lines[-1].append((shortened(pen, text, room - 2 * size, writable(text, size)[1]), colour))
        used += wide
    return lines


def _percent(share: float) -> str:
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def _entry_width(pen: ImageDraw.ImageDraw, text: str, size: int) -> float:
    plain, font = writable(text, size)
    return size * 1.4 + pen.textlength(plain, font=font) + size


def _draw_entry(
    pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, colour: tuple[int, int, int] | None, size: int
) -> float:
    left, middle = place
    if colour is not None:
        outline = readable_on(PANEL) if sum(colour) < 120 else colour
        pen.rectangle((left, middle - size / 2, left + size, middle + size / 2), fill=colour, outline=outline)
        left += size * 1.4
    plain, font = writable(text, size)
    pen.text((left, middle), plain, fill=TEXT, font=font, anchor="lm")
    return _entry_width(pen, text, size)


def mask_png(mask: Array, *, first_name: str = "") -> bytes:
    """A PNG file whose pixels are the classes themselves, with their colours as palette; 16 bits without one above 256 classes.

    `mobilevitv2.pictures.read_mask` reads it back. With a background's name as that of class 0 this is black.
    """
    if mask.dtype == np.uint8:
        picture = Image.fromarray(mask)
        colours = [BACKGROUND if is_background(index, first_name) else class_colour(index) for index in range(256)]
        picture.putpalette([value for colour in colours for value in colour])
    else:
        picture = Image.fromarray(mask.astype(np.uint16))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=False)
    return buffer.getvalue()


__all__ = ["draw_mask", "mask_png"]
