"""Pictures with masks to samples of bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mobilevitv2.data.batches import Sample, SampleBatches, channels_first, random_numbers
from mobilevitv2.data.decoded import DecodedMasks, DecodedPictures
from mobilevitv2.data.segmentation_transforms import SegmentationCrop, Stretched

if TYPE_CHECKING:
    from mobilevitv2.data.segmentation import SegmentationSplit


class MaskBatches(SampleBatches["SegmentationSplit"]):
    """Training crops: "pixel_values" (3, height, width) and "labels" (height, width), uint8.

    Args:
        split: pictures and masks.
        transform: cuts both.
        cache: both decoded, in memory.
    """

    def __init__(
        self, split: SegmentationSplit, transform: SegmentationCrop, *, cache: tuple[DecodedPictures, DecodedMasks] | None = None
    ) -> None:
        super().__init__(split)
        self.transform, self.cache = transform, cache

    def sample(self, index: int) -> Sample:
        """One crop."""
        if self.cache is None:
            picture, mask = self.split.read_pair(index)
        else:
            picture, mask = self.cache[0].read(index), self.cache[1].read(index)
        pixels, labels = self.transform(picture, mask, random_numbers())
        return {"pixel_values": channels_first(pixels), "labels": torch.from_numpy(np.array(labels))}


class WholeMaskBatches(SampleBatches["SegmentationSplit"]):
    """For evaluation: whole pictures at one size, "pixel_values" (3, height, width), and "mask" at the picture's own size."""

    def __init__(self, split: SegmentationSplit, transform: Stretched) -> None:
        super().__init__(split)
        self.transform = transform

    def sample(self, index: int) -> Sample:
        """One picture."""
        picture, mask = self.split.read_pair(index)
        return {"pixel_values": channels_first(self.transform(picture)), "mask": torch.from_numpy(np.ascontiguousarray(mask))}
