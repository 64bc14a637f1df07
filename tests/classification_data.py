"""Small classification data for tests: pictures of one colour and some noise, in the layouts that are read."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40), "white": (240, 240, 240)}


def picture(colour: str, number: int, *, size: tuple[int, int] = (40, 36), kind: str = "PNG") -> bytes:
    """An encoded picture, another one for each number."""
    noise = np.random.default_rng([number, *COLOURS[colour]]).integers(-30, 30, (size[1], size[0], 3))
    pixels = np.clip(noise + COLOURS[colour], 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def write_folder(root: Path, counts: Mapping[str, int], *, first: int = 0) -> Path:
    """`root/CLASS/N.png`, counting from `first`; colours that are unknown borrow red."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(first, first + count):
            (root / name / f"{number:03d}.png").write_bytes(picture(name if name in COLOURS else "red", number))
    return root
