"""Pictures with masks to training crops and to evaluation pictures, in worker processes: Pillow and numpy, bytes throughout. What
comes after the crop (blur, colours, rotation) happens on the device, in batches (`train/distortion.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ByteArray = NDArray[np.uint8]
IGNORED = 255
"""Mask value of pixels that are not of the picture."""
PIL_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class SegmentationCrop:
    """The first part of the official augmentation: a random part of a randomly resized picture and the same part of its mask.

    In this order: resize, mirror, crop (padded where the picture is smaller: black, and `IGNORED` in the mask).

    Args:
        size: (height, width) of the crop.
        short_side: range of the resized picture's short side.
        long_side: the resized picture's long side is at most this.
        stretch: width over height is changed by a random factor of 1 / stretch to stretch.
        flip: probability of mirroring.
        largest_class: a crop with more than this share of one class (of the labelled pixels) is drawn again.
        tries: crops drawn at most; the last one is taken as it is.
        interpolation: of the picture.
    """

    size: tuple[int, int]
    short_side: tuple[int, int] = (256, 768)
    long_side: int = 1024
    stretch: float = 1.0
    flip: float = 0.5
    largest_class: float = 0.75
    tries: int = 10
    interpolation: str = "bicubic"

    def __call__(self, picture: Image.Image, mask: ByteArray, random: np.random.Generator) -> tuple[ByteArray, ByteArray]:
        """(H, W) of any size -> (height, width, 3) and (height, width), uint8."""
        resized = self._resized(picture.size, random)
        labels = Image.fromarray(mask).resize(resized, Image.Resampling.NEAREST)
        mirrored = random.random() < self.flip
        if mirrored:
            labels = labels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        left, top, labels = self._crop(labels, random)
        picture = self._part(picture, resized, left, top, mirrored=mirrored)
        return np.asarray(picture), np.asarray(labels)

    def _resized(self, size: tuple[int, int], random: np.random.Generator) -> tuple[int, int]:
        """(width, height) that a picture of (width, height) is resized to."""
        short = random.integers(self.short_side[0], self.short_side[1] + 1)
        scale = min(short / min(size), self.long_side / max(size))
        stretch = np.exp(random.uniform(-1, 1) * np.log(self.stretch) / 2)
        return max(1, round(size[0] * scale * stretch)), max(1, round(size[1] * scale / stretch))

    def _crop(self, labels: Image.Image, random: np.random.Generator) -> tuple[int, int, Image.Image]:
        """Where the crop begins, left and top, and its mask."""
        height, width = self.size
        free = max(0, labels.width - width), max(0, labels.height - height)
        values = np.asarray(labels)
        for _ in range(self.tries if self.largest_class < 1 else 1):
            left, top = (int(random.integers(0, room + 1)) for room in free)
            # One byte value a class, so counting needs no sorting; every second row and column tell the share well enough.
            counts = np.bincount(values[top : top + height : 2, left : left + width : 2].ravel(), minlength=256)[:IGNORED]
            if counts.max() <= self.largest_class * counts.sum():
                break
        crop = np.full((height, width), IGNORED, dtype=np.uint8)
        part = values[top : top + height, left : left + width]
        crop[: part.shape[0], : part.shape[1]] = part
        return left, top, Image.fromarray(crop)

    def _part(self, picture: Image.Image, resized: tuple[int, int], left: int, top: int, *, mirrored: bool) -> Image.Image:
        """The crop of the resized and mirrored picture; only this part is ever resized."""
        height, width = min(self.size[0], resized[1]), min(self.size[1], resized[0])
        if mirrored:
            left = resized[0] - left - width
        x, y = picture.width / resized[0], picture.height / resized[1]  # pixels of the picture for one resized pixel
        box = (left * x, top * y, min(picture.width, (left + width) * x), min(picture.height, (top + height) * y))
        part = picture.resize((width, height), PIL_FILTERS[self.interpolation], box=box)
        if mirrored:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if part.size == (self.size[1], self.size[0]):
            return part
        canvas = Image.new("RGB", (self.size[1], self.size[0]))
        canvas.paste(part)
        return canvas


@dataclass(frozen=True)
class Stretched:
    """The whole picture at one size, whatever its proportions: what evaluation and the shipped processor do."""

    size: tuple[int, int]
    """(height, width)."""
    interpolation: str = "bicubic"

    def __call__(self, picture: Image.Image) -> NDArray[Any]:
        """(height, width, 3) uint8."""
        return np.asarray(picture.resize((self.size[1], self.size[0]), PIL_FILTERS[self.interpolation]))
