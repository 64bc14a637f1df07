"""Pictures and masks decoded once, in memory that all forked workers share."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mobilevitv2.data.decoding import ByteArray, EncodedPicture
from mobilevitv2.data.resizing import resized
from mobilevitv2.errors import ImageError


class Readable(Protocol):
    """A split whose pictures can be read."""

    def __len__(self) -> int: ...

    def picture(self, index: int) -> EncodedPicture:
        """The file. Raises ImageError where it cannot be had."""


class Masked(Readable, Protocol):
    """A split with masks."""

    def read_mask(self, index: int) -> NDArray[Any]:
        """(H, W) class indices of the picture by that number. Raises ImageError."""


class _Block:
    """Arrays of bytes of any shapes, one behind the other in one block of memory, which forked workers share without copies."""

    def __init__(self, count: int, make: Callable[[int], ByteArray], *, threads: int) -> None:
        self.errors: dict[int, str] = {}

        def made(index: int) -> ByteArray:
            try:
                return make(index)
            except ImageError as error:
                self.errors[index] = str(error)
                return np.zeros(0, dtype=np.uint8)

        with ThreadPoolExecutor(threads) as pool:
            arrays = list(pool.map(made, range(count)))
        self._shapes = [array.shape for array in arrays]
        self._offsets = np.concatenate([[0], np.cumsum([array.size for array in arrays], dtype=np.int64)])
        self.content = np.empty(int(self._offsets[-1]), dtype=np.uint8)
        arrays.reverse()
        for index in range(count):  # each is given up as it is moved: all of them twice might be more than there is
            self.content[self._offsets[index] : self._offsets[index + 1]] = arrays.pop().reshape(-1)

    def __getitem__(self, index: int) -> ByteArray:
        if index in self.errors:
            raise ImageError(self.errors[index])
        return self.content[self._offsets[index] : self._offsets[index + 1]].reshape(self._shapes[index])


class DecodedPictures:
    """All pictures of a split, decoded once into one block of memory.

    Pictures whose short side exceeds `short_side` are made smaller first: nothing finer than the crop's own size is ever needed.
    """

    def __init__(self, split: Readable, *, short_side: int, threads: int = 8) -> None:
        self._split, self._short_side = split, short_side
        self._scales = np.ones((len(split), 2), dtype=np.float32)
        self._block = _Block(len(split), self._decode, threads=threads)

    @property
    def nbytes(self) -> int:
        """Memory taken by the pixels."""
        return int(self._block.content.nbytes)

    def pixels(self, index: int) -> ByteArray:
        """One picture, (H, W, 3), in place.

        Raises:
            ImageError: it could not be read when the block was filled.
        """
        return self._block[index]

    def read(self, index: int) -> Image.Image:
        """One picture, copied. Raises ImageError as `pixels`."""
        return Image.fromarray(self._block[index])

    def scale(self, index: int) -> NDArray[np.float32]:
        """Width and height of the kept picture over those of the original, (2,)."""
        scale: NDArray[np.float32] = self._scales[index]
        return scale

    def _decode(self, index: int) -> ByteArray:
        picture = self._split.picture(index)
        pixels = picture.pixels(short_side=2 * self._short_side)  # the last halving by the filter here, not by the decoder
        height, width = pixels.shape[:2]
        size = picture.size() if picture.shrinks else (width, height)
        scale = self._short_side / min(size)
        if scale >= 1:
            return pixels
        wanted = tuple(max(1, round(side * scale)) for side in size)
        self._scales[index] = wanted[0] / size[0], wanted[1] / size[1]
        return resized(pixels, (wanted[1], wanted[0]), interpolation="bicubic")


def expected_pixels(split: Readable, *, short_side: int, looked_at: int = 24) -> float:
    """Pixels that `DecodedPictures` would keep, told from some of the pictures."""
    kept = []
    for index in np.unique(np.linspace(0, len(split) - 1, min(looked_at, len(split))).astype(int)).tolist():
        try:
            width, height = split.picture(index).size()
        except ImageError:
            continue
        kept.append(width * height * min(1.0, short_side / min(width, height)) ** 2)
    return len(split) * sum(kept) / max(1, len(kept))


class DecodedMasks:
    """The masks of a split, in the sizes that `DecodedPictures` kept the pictures in."""

    def __init__(self, split: Masked, pictures: DecodedPictures, *, threads: int = 8) -> None:
        self._split, self._pictures = split, pictures
        self._block = _Block(len(split), self._decode, threads=threads)

    @property
    def nbytes(self) -> int:
        """Memory taken by the pixels."""
        return int(self._block.content.nbytes)

    def read(self, index: int) -> ByteArray:
        """One mask, (H, W). Raises ImageError as `DecodedPictures.read`."""
        return self._block[index]

    def _decode(self, index: int) -> ByteArray:
        mask = self._split.read_mask(index).astype(np.uint8)
        size = self._pictures.read(index).size
        if (mask.shape[1], mask.shape[0]) == size:
            return mask
        return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
