"""Pictures to try an exported file on: the caller's own, scikit-image's photographs, or made ones with their spectrum."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mobilevitv2.errors import ConfigurationError, ImageError
from mobilevitv2.pictures import find_pictures, read_picture

Array = np.ndarray[Any, Any]
PHOTOGRAPHS = ("chelsea.png", "astronaut.png", "coffee.png", "rocket.jpg")
MADE_SIDE = 320
MADE = "mobilevitv2-made"
"""In the `info` of pictures that show nothing."""


def sample_pictures(given: Iterable[Any] | None = None, *, count: int = 8) -> list[Image.Image]:
    """At most `count` pictures; photographs first, made ones to fill up where none were given.

    Raises:
        ConfigurationError: pictures were given and none of them can be read.
    """
    if given is not None:
        return _readable(given, count)
    found = _photographs()[:count]
    return found + [made_picture(seed) for seed in range(count - len(found))]


def made_picture(seed: int) -> Image.Image:
    """Noise whose power falls with the square of the frequency, as that of photographs does, with a few edges: RGB."""
    generator = np.random.default_rng(seed)
    rows, columns = MADE_SIDE, MADE_SIDE + 16 * (seed % 5)
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None])
    frequency[0, 0] = 1 / max(rows, columns)
    phases = generator.uniform(0, 2 * np.pi, (3, *frequency.shape))
    waves = np.fft.irfft2(np.exp(1j * phases) / frequency, s=(rows, columns))
    light, colour = waves[:1], waves
    values = 0.8 * _unit(light) + 0.3 * _unit(colour)
    for _ in range(4):  # things with edges
        top, left = generator.integers(0, rows - 40), generator.integers(0, columns - 40)
        high, wide = generator.integers(20, 120, 2)
        values[:, top : top + high, left : left + wide] += generator.normal(0, 0.8, (3, 1, 1))
    pixels = np.clip(128 + 55 * values, 0, 255).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    picture.info[MADE] = True
    return picture


def _unit(values: Array) -> Array:
    scaled: Array = (values - values.mean()) / values.std()
    return scaled


def _photographs() -> list[Image.Image]:
    """scikit-image's, where it is installed; only those that lie in the package, nothing is downloaded."""
    place = find_spec("skimage")
    if place is None or place.origin is None:
        return []
    folder = Path(place.origin).parent / "data"
    return [read_picture(folder / name) for name in PHOTOGRAPHS if (folder / name).is_file()]


def _readable(given: Iterable[Any], count: int) -> list[Image.Image]:
    pictures: list[Image.Image] = []
    problem: ImageError | None = None
    sources: list[Any] = []
    for each in given:
        sources += find_pictures([each]) if isinstance(each, str | Path) else [each]
    for source in sources:
        if len(pictures) == count:
            break
        try:
            pictures.append(read_picture(source))
        except ImageError as error:
            problem = error
    if not pictures:
        raise ConfigurationError(
            f"none of the {len(sources)} pictures to verify with can be read; pass others as "
            f"pictures (--pictures). The last one: {problem}"
        )
    return pictures
