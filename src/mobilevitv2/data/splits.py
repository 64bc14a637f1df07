"""What the data sets of all tasks share: pictures in splits, and how a split is held out of another."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from mobilevitv2.data.sources import IntArray, PictureSource
from mobilevitv2.errors import ConfigurationError

if TYPE_CHECKING:
    from PIL import Image

    from mobilevitv2.data.decoding import EncodedPicture

ORDER: tuple[str, ...] = ("train", "validation", "test")


class NamedBytes(io.BytesIO):
    """A file in memory whose errors name where it came from."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


class PictureReader:
    """Reading the pictures of a split, by number."""

    pictures: PictureSource

    def read(self, index: int, *, draft_size: int | None = None) -> Image.Image:
        """The picture as 8-bit RGB, upright.

        Args:
            index: 0..n - 1.
            draft_size: short side that is enough; large JPEGs are then decoded at a fraction of their size, which is faster.

        Raises:
            ImageError: it cannot be read; the message names it and the reason.
        """
        return self.decode(index, self.encoded(index), draft_size=draft_size)

    def decode(self, index: int, encoded: bytes, *, draft_size: int | None = None) -> Image.Image:
        """`read` for someone who has the bytes already."""
        from mobilevitv2.pictures import read_picture

        return read_picture(NamedBytes(encoded, self.describe(index)), draft_size=draft_size)

    def encoded(self, index: int) -> bytes:
        """The file as it is, a JPEG say; ImageError where it cannot be had."""
        return self.pictures.encoded(index)

    def picture(self, index: int) -> EncodedPicture:
        """The file as `decoding.py` takes it: its size, and its pixels by the fastest decoder. Raises ImageError as `encoded`."""
        from mobilevitv2.data.decoding import EncodedPicture

        return EncodedPicture(self.encoded(index), self.describe(index))

    def describe(self, index: int) -> str:
        """The picture's path, or file and row: "train-00000-of-00004.parquet row 17"."""
        return self.pictures.describe(index)


SplitT = TypeVar("SplitT")


class InSplits(Generic[SplitT]):
    """Up to three splits by name."""

    splits: dict[str, SplitT]

    @property
    def train(self) -> SplitT | None:
        """The pictures to learn from."""
        return self.splits.get("train")

    @property
    def validation(self) -> SplitT | None:
        """The pictures that choose the best weights."""
        return self.splits.get("validation")

    @property
    def test(self) -> SplitT | None:
        """The pictures that nothing is chosen by."""
        return self.splits.get("test")


def check_fraction(validation_fraction: float) -> None:
    """Raise ConfigurationError for a fraction outside 0..1."""
    if not 0 <= validation_fraction < 1:
        raise ConfigurationError(f"validation_fraction={validation_fraction} is not in 0..1 (1 left out): 0.1 holds out a tenth")


def stratified(labels: IntArray, fraction: float, seed: int) -> tuple[IntArray, IntArray]:
    """Indices kept and held out, sorted; of each class the fraction, at least one and never all (single pictures are kept)."""
    random = np.random.default_rng(seed)
    held = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(len(members) * fraction)), len(members) - 1)
        held.append(random.permutation(members)[:count])
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[np.concatenate(held) if held else []] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
