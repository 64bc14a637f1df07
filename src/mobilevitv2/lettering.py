"""Letters on pictures: a font that has them, text cut to the room there is, pictures too small for any."""

from __future__ import annotations

import math
import unicodedata
from functools import lru_cache
from typing import Any

from PIL import ImageDraw, ImageFont

SMALLEST_FONT, SMALLEST_WIDTH = 14, 320
"""Pixels below which nobody can read; smaller pictures get a wider sheet to stand on."""
LARGEST_ENLARGED_SIDE = 640
# For labels beyond ASCII, those with the most letters first.
SYSTEM_FONTS = ("NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msyh.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf", "arial.ttf")


def enlargement(size: tuple[int, int]) -> int:
    """How many times as large a picture (width, height) should be shown that is too narrow for text; 1 for most."""
    return max(1, min(math.ceil(SMALLEST_WIDTH / size[0]), LARGEST_ENLARGED_SIDE // max(size)))


def shortened(pen: ImageDraw.ImageDraw, text: str, room: float, font: Any) -> str:
    """The text, or as much of its start as fits into so many pixels."""
    if pen.textlength(text, font=font) <= room:
        return text
    while text and pen.textlength(text + "...", font=font) > room:
        text = text[:-1]
    return text.rstrip() + "..."


def writable(text: str, size: int) -> tuple[str, Any]:
    """A text and a font that has its letters: Pillow's own has ASCII; others need one of the system, or lose their accents."""
    if text.isascii():
        return text, font_of(size)
    font = _system_font(size)
    if font is not None:
        return text, font
    plain = unicodedata.normalize("NFKD", text)
    return "".join(c if c.isascii() else "?" for c in plain if not unicodedata.combining(c)), font_of(size)


@lru_cache(maxsize=8)
def font_of(size: int) -> Any:
    """Pillow's own font."""
    return ImageFont.load_default(size)


@lru_cache(maxsize=8)
def _system_font(size: int) -> Any:
    for name in SYSTEM_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return None
