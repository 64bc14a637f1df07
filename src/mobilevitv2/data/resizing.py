"""Arrays of bytes in other sizes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F


def resized(pixels: NDArray[np.uint8], size: tuple[int, int], *, interpolation: str) -> NDArray[np.uint8]:
    """A picture (H, W, 3) in another (height, width), with a filter as wide as the scale asks for.

    torch's kernel for bytes, which computes what Pillow's does (to 1 of 255) 5 to 7 times as fast where the processor has AVX2.

    Args:
        pixels: a whole picture; nothing beyond its edges is known to the filter.
        size: height and width.
        interpolation: "bicubic" or "bilinear".
    """
    if pixels.shape[:2] == size:
        return pixels
    whole = np.require(pixels, requirements=["C", "W"])  # torch warns of arrays that cannot be written to
    # Channels last by all its strides, that of the batch too: with another the kernel takes twice as long and gives planes.
    batch = torch.from_numpy(whole).view(1, *whole.shape).permute(0, 3, 1, 2)
    made = F.interpolate(batch, size, mode=interpolation, antialias=True, align_corners=False)
    array: NDArray[np.uint8] = made[0].permute(1, 2, 0).contiguous().numpy()
    return array
