"""Pictures with boxes to samples of bytes and relative boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mobilevitv2.data.batches import Sample, SampleBatches, channels_first, random_numbers
from mobilevitv2.data.decoded import DecodedPictures
from mobilevitv2.data.detection_transforms import DetectionCrop
from mobilevitv2.data.segmentation_transforms import Stretched

if TYPE_CHECKING:
    from mobilevitv2.data.detection import DetectionSplit


class BoxBatches(SampleBatches["DetectionSplit"]):
    """Training pictures: "pixel_values" (3, height, width) uint8; "boxes" (n, 4), centre x, centre y, width, height in units of the
    picture, float32, and "class_labels" (n,), int64, as arrays of numpy. Crowds are left out: they are no objects to learn.

    Args:
        split: pictures and boxes.
        transform: cuts and stretches both.
        cache: decoded pictures in memory.
    """

    def __init__(self, split: DetectionSplit, transform: DetectionCrop, *, cache: DecodedPictures | None = None) -> None:
        super().__init__(split)
        self.transform, self.cache = transform, cache

    def sample(self, index: int) -> Sample:
        """One picture."""
        objects = ~np.asarray(self.split.crowd(index), dtype=bool)
        boxes = np.asarray(self.split.boxes(index), dtype=np.float32).reshape(-1, 4)[objects]
        labels = np.asarray(self.split.labels(index), dtype=np.int64)[objects]
        if self.cache is None:
            picture = self.split.read(index)
        else:
            picture = self.cache.read(index)
            boxes = boxes * np.tile(self.cache.scale(index), 2)
        pixels, boxes, labels = self.transform(picture, boxes, labels, random_numbers())
        boxes, with_area = relative(boxes, self.transform.size)
        return {"pixel_values": channels_first(pixels), "boxes": boxes, "class_labels": labels[with_area]}


class WholeBoxBatches(SampleBatches["DetectionSplit"]):
    """For evaluation: whole pictures at one size, "pixel_values" (3, height, width), and their own "size" (height, width)."""

    def __init__(self, split: DetectionSplit, transform: Stretched) -> None:
        super().__init__(split)
        self.transform = transform

    def sample(self, index: int) -> Sample:
        """One picture."""
        picture = self.split.read(index)
        return {"pixel_values": channels_first(self.transform(picture)), "size": (picture.height, picture.width)}


def relative(boxes: NDArray[np.float32], size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Corners in pixels of a picture of (height, width) -> (m, 4) centre x, centre y, width, height in its units, of those boxes
    that have an area; and which ones these are, (n,)."""
    height, width = size
    shares = (boxes / np.array([width, height, width, height], dtype=np.float32)).reshape(-1, 4)
    start, end = shares[:, :2], shares[:, 2:]
    with_area: NDArray[np.bool_] = np.all(end > start, axis=1)
    centred = np.concatenate([(start + end) / 2, end - start], axis=1)[with_area]
    return centred.astype(np.float32), with_area
