"""Small segmentation data for tests: pictures of noise, and masks of columns of class numbers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from classification_data import picture
from PIL import Image

SIZE = (40, 36)


def columns(numbers: Sequence[int], size: tuple[int, int] = SIZE) -> np.ndarray:
    """A mask (height, width) cut into columns of one number each."""
    width, height = size
    return np.tile(np.array(numbers)[np.arange(width) * len(numbers) // width], (height, 1))


def encoded_mask(numbers: Sequence[int], size: tuple[int, int] = SIZE, *, kind: str = "L") -> bytes:
    """The mask as a greyscale or palette PNG ("P": with colours that have nothing to do with the numbers)."""
    mask = Image.fromarray(columns(numbers, size).astype(np.uint16 if kind == "I;16" else np.uint8))
    if kind == "P":
        mask.putpalette([255 - at // 3 for at in range(768)])
    stream = io.BytesIO()
    mask.save(stream, "PNG")
    return stream.getvalue()


def colour_mask(colours: Sequence[tuple[int, int, int]], size: tuple[int, int] = SIZE) -> bytes:
    pixels = np.array(colours, dtype=np.uint8)[columns(range(len(colours)), size)]
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_pairs(
    pictures: Path, masks: Path, stems: Sequence[str], numbers: Sequence[int] = (0, 1), *, first: int = 0, kind: str = "L"
) -> None:
    for at, stem in enumerate(stems):
        write(pictures / f"{stem}.jpg", picture("red", first + at, size=SIZE, kind="JPEG"))
        write(masks / f"{stem}.png", encoded_mask(numbers, kind=kind))
