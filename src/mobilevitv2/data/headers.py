"""Sizes of pictures from their headers, where the annotations do not say them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mobilevitv2.data.sources import FilePictures, IntArray, PictureSource
from mobilevitv2.data.splits import NamedBytes
from mobilevitv2.errors import ImageError


def size_at(pictures: PictureSource, index: int) -> tuple[int, int]:
    """Width and height of one picture, upright; ImageError where it has no header."""
    from mobilevitv2.pictures import picture_size

    if isinstance(pictures, FilePictures):  # only the first bytes of a file are needed
        return picture_size(pictures.describe(index))
    return picture_size(NamedBytes(pictures.encoded(index), pictures.describe(index)))


def filled_sizes(pictures: PictureSource, sizes: IntArray) -> IntArray:
    """The sizes, (n, 2), with zeros replaced by what the headers say; what cannot be read stays 0."""
    filled = sizes.copy()

    def fill(index: int) -> None:
        try:
            filled[index] = size_at(pictures, index)
        except ImageError:
            filled[index] = 0  # the checks name it

    unknown = np.flatnonzero((sizes <= 0).any(axis=1)).tolist()
    if unknown:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(fill, unknown))
    return filled
