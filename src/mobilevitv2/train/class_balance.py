"""Weights of classes in a loss, after how rare their pixels are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from mobilevitv2.data.segmentation import SegmentationSplit
from mobilevitv2.errors import ImageError


def class_pixels(split: SegmentationSplit) -> NDArray[np.int64]:
    """Pixels of each class, (classes,); masks that cannot be read are left out, as they are of training."""
    classes = len(split.classes)

    def counted(index: int) -> NDArray[np.int64]:
        try:
            mask = split.read_mask(index)
        except ImageError:
            return np.zeros(classes, dtype=np.int64)
        return np.bincount(mask.ravel(), minlength=256)[:classes]

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return sum(pool.map(counted, range(len(split))), np.zeros(classes, dtype=np.int64))


def balanced_weights(pixels: Sequence[int] | NDArray[np.int64], *, power: float) -> list[float]:
    """Rarity to a power, scaled so that the mean weight of a pixel is 1; a class without pixels weighs as much as the rarest one.

    Args:
        pixels: of each class.
        power: 0 gives every pixel the same weight, 1 every class the same share in the loss.
    """
    counts = np.asarray(pixels, dtype=np.float64)
    if not counts.any():
        return [1.0] * len(counts)
    rare = np.maximum(counts, counts[counts > 0].min())
    weights = rare**-power
    scale = counts.sum() / (counts * weights).sum()
    return [float(weight) for weight in weights * scale]
