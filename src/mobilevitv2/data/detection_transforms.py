"""Pictures with boxes to training pictures of one size, in worker processes: Pillow and numpy, bytes throughout. The colours are
changed on the device, in batches (`train/distortion.py`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ByteArray = NDArray[np.uint8]
FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
PIL_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

LEAST_OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
"""Overlap that some box must have with SSD's crop; 0 leaves the picture alone."""
TRIALS = 40
DRAWS = 50
"""Of an overlap, each with `TRIALS` crops; the official code goes on without end, which some small pictures would make it do."""
CANVAS = (114, 114, 114)


@dataclass(frozen=True)
class DetectionCrop:
    """The official augmentation but for its photometric distortion: SSD's crop, mirroring, and everything stretched to one size.

    Args:
        size: (height, width) of the outcome.
        iou_crop: probability of SSD's crop.
        minimum_crop: sides of a crop in pixels, at least.
        zoom_out: probability of a picture laid on a larger grey canvas instead of a crop.
        zoom_out_most: sides of the canvas over those of the picture, at most.
        flip: probability of mirroring.
        interpolation: of the last step.
    """

    size: tuple[int, int]
    iou_crop: float = 1.0
    minimum_crop: int = 100
    zoom_out: float = 0.0
    zoom_out_most: float = 3.0
    flip: float = 0.5
    interpolation: str = "bicubic"

    def __call__(
        self, picture: Image.Image, boxes: FloatArray, labels: IntArray, random: np.random.Generator
    ) -> tuple[ByteArray, FloatArray, IntArray]:
        """One picture.

        Args:
            picture: 8-bit RGB of any size.
            boxes: (n, 4), left, top, right, bottom in its pixels.
            labels: (n,).
            random: draws everything.

        Returns:
            Pixels (height, width, 3); boxes (m, 4) in pixels of the outcome, within it; labels (m,). m may be less than n, and 0.
        """
        zooms_out = random.random() < self.zoom_out
        if not zooms_out and random.random() < self.iou_crop:
            part = ssd_crop(picture.size, boxes, random, minimum=self.minimum_crop)
            if part is not None:
                picture, (boxes, labels) = picture.crop(part), cropped(boxes, labels, part)
        if random.random() < self.flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            boxes = mirrored(boxes, picture.width)
        return *self._placed(picture, boxes, self._place(random) if zooms_out else None), labels

    def _place(self, random: np.random.Generator) -> tuple[int, int, int, int]:
        """Where the picture lies on the outcome: left, top, right, bottom."""
        height, width = self.size
        zoom = random.uniform(1, self.zoom_out_most)
        inner_width, inner_height = max(1, round(width / zoom)), max(1, round(height / zoom))
        left, top = int(random.integers(0, width - inner_width + 1)), int(random.integers(0, height - inner_height + 1))
        return left, top, left + inner_width, top + inner_height

    def _placed(
        self, picture: Image.Image, boxes: FloatArray, place: tuple[int, int, int, int] | None
    ) -> tuple[ByteArray, FloatArray]:
        """The picture and its boxes stretched to the outcome, or to a place on it."""
        height, width = self.size
        left, top, right, bottom = place or (0, 0, width, height)
        scale = np.array([(right - left) / picture.width, (bottom - top) / picture.height] * 2, dtype=np.float32)
        # Cut again: rounding may put a side a millionth of a pixel outside.
        boxes = np.clip(boxes * scale + np.array([left, top] * 2, dtype=np.float32), 0, np.array([width, height] * 2, np.float32))
        inner = picture.resize((right - left, bottom - top), PIL_FILTERS[self.interpolation])
        if place is None:
            return np.asarray(inner), boxes
        canvas = Image.new("RGB", (width, height), CANVAS)
        canvas.paste(inner, (left, top))
        return np.asarray(canvas), boxes


def ssd_crop(
    size: tuple[int, int], boxes: FloatArray, random: np.random.Generator, *, minimum: int = 100
) -> tuple[int, int, int, int] | None:
    """SSD's random crop (arXiv 1512.02325, section 2.2): left, top, right, bottom in pixels; None leaves the picture alone.

    An overlap is drawn from `LEAST_OVERLAPS`; up to 40 crops with sides of .3 to 1 of the picture's and proportions of .5 to 2 are
    tried for one that some box overlaps that much (intersection over union) and in which the centre of some box lies; then another
    overlap is drawn.
    """
    for _ in range(DRAWS if len(boxes) else 0):
        least = random.choice(LEAST_OVERLAPS)
        if least == 0:
            return None
        sides = np.floor(random.uniform(0.3, 1, (TRIALS, 2)) * size)  # width, height
        start = np.floor(random.random((TRIALS, 2)) * (np.array(size) - sides))
        crops = np.concatenate([start, start + sides], axis=1)  # (TRIALS, 4)
        ratio = sides[:, 1] / np.maximum(1, sides[:, 0])
        good = (sides >= max(1, minimum)).all(1) & (ratio >= 0.5) & (ratio <= 2)
        good &= _overlaps(crops, boxes).max(axis=1) >= least
        good &= _centred_in(boxes, crops).any(axis=1)
        if good.any():
            left, top, right, bottom = crops[good.argmax()].astype(int).tolist()
            return left, top, right, bottom
    return None


def cropped(boxes: FloatArray, labels: IntArray, part: tuple[int, int, int, int]) -> tuple[FloatArray, IntArray]:
    """Boxes whose centre lies in a part of the picture, cut to that part, in its pixels; and their labels."""
    kept = _centred_in(boxes, np.array([part], dtype=np.float32))[0]
    left, top, right, bottom = part
    limits = np.array([right - left, bottom - top] * 2, dtype=np.float32)
    inside = np.clip(boxes[kept] - np.array([left, top, left, top], dtype=np.float32), 0, limits)
    return inside.astype(np.float32), labels[kept]


def mirrored(boxes: FloatArray, width: int) -> FloatArray:
    """Boxes of a mirrored picture of that width."""
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def _centred_in(boxes: FloatArray, crops: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(crops, boxes): whether the box's centre lies in the crop."""
    centre = (boxes[None, :, :2] + boxes[None, :, 2:]) / 2
    inside: NDArray[np.bool_] = np.all((centre > crops[:, None, :2]) & (centre < crops[:, None, 2:]), axis=-1)
    return inside


def _overlaps(crops: NDArray[np.floating], boxes: FloatArray) -> NDArray[np.floating]:
    """(crops, boxes): intersection over union."""
    start = np.maximum(crops[:, None, :2], boxes[None, :, :2])
    end = np.minimum(crops[:, None, 2:], boxes[None, :, 2:])
    shared = np.clip(end - start, 0, None).prod(-1)
    areas = (crops[:, 2:] - crops[:, :2]).prod(-1)[:, None] + (boxes[:, 2:] - boxes[:, :2]).prod(-1)[None]
    result: NDArray[np.floating] = shared / np.maximum(areas - shared, 1e-9)
    return result
