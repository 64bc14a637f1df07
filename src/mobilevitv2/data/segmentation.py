"""Data sets for semantic segmentation: pictures with a class for each pixel, in splits, whatever they lie in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mobilevitv2.data.headers import size_at
from mobilevitv2.data.mask_codes import IGNORED, MaskCode, Values
from mobilevitv2.data.mask_folders import LAYOUTS, MaskSet, read_mask_folder
from mobilevitv2.data.mask_tables import read_mask_hub, read_mask_parquet, read_saved_masks
from mobilevitv2.data.opening import Readers, read_source
from mobilevitv2.data.problems import Problem
from mobilevitv2.data.sources import IntArray, PictureSource
from mobilevitv2.data.splits import ORDER, InSplits, PictureReader, check_fraction, stratified
from mobilevitv2.errors import ConfigurationError, DataError, ImageError

if TYPE_CHECKING:
    from PIL import Image

Mask: TypeAlias = NDArray[np.uint8]

_READERS: Readers[MaskSet] = Readers(read_mask_folder, read_mask_parquet, read_saved_masks, read_mask_hub, LAYOUTS)
_READ_TO_STRATIFY = 2000
"""Masks that are read so that a validation split has some pictures of each class; beyond, chance sees to it."""


@dataclass(frozen=True, eq=False)
class SegmentationSplit(PictureReader):
    """One split: pictures, and a mask for each. Small to pickle; both are read when asked for."""

    name: str
    """"train", "validation" or "test"."""
    classes: tuple[str, ...]
    pictures: PictureSource = field(repr=False)
    masks: PictureSource = field(repr=False)
    code: MaskCode = field(default_factory=MaskCode, repr=False)
    """How the files of the masks are read."""

    def __post_init__(self) -> None:
        if len(self.pictures) != len(self.masks):
            raise ConfigurationError(f"split {self.name!r}: {len(self.pictures)} pictures, but {len(self.masks)} masks")

    def __len__(self) -> int:
        return len(self.pictures)

    def read_mask(self, index: int) -> Mask:
        """The class of each pixel, (height, width): 0..N - 1, and 255 for those to ignore, among them numbers of no class.

        Raises:
            ImageError: it cannot be read, or is of another size than its picture; the message names it.
        """
        mask = self.known(self.mask_values(index))
        self._check_size(index, mask, size_at(self.pictures, index))
        return mask

    def read_pair(self, index: int) -> tuple[Image.Image, Mask]:
        """`read` and `read_mask` in one, which reads the picture's file once."""
        picture = self.read(index)
        mask = self.known(self.mask_values(index))
        self._check_size(index, mask, picture.size)
        return picture, mask

    def mask_values(self, index: int) -> Values:
        """A mask with whatever its file has, numbers of no class too, (height, width); ignored pixels are 255.

        A colour that is in no palette is -1 - (red * 65536 + green * 256 + blue).
        """
        return self.code.values(self.masks.encoded(index), self.describe_mask(index))

    def known(self, values: Values) -> Mask:
        """The values with numbers of no class as 255."""
        return np.where((values >= 0) & (values < len(self.classes)), values, IGNORED).astype(np.uint8)

    def describe_mask(self, index: int) -> str:
        """The mask's path, or file and row."""
        here = self.masks.describe(index)
        return here if here != self.describe(index) else f"{here} (mask)"

    def select(self, indices: Sequence[int] | NDArray[np.integer]) -> SegmentationSplit:
        """Some of the pictures, in the order given."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(self, pictures=self.pictures.select(chosen), masks=self.masks.select(chosen))

    def _check_size(self, index: int, mask: Mask, size: tuple[int, int]) -> None:
        height, width = mask.shape
        if (width, height) != size:
            raise ImageError(
                f"{self.describe_mask(index)} is {width} x {height}, but its picture {self.describe(index)} is {size[0]} x "
                f"{size[1]}: make them the same size (masks are resized with nearest neighbours)"
            )


@dataclass(frozen=True)
class SegmentationData(InSplits[SegmentationSplit]):
    """A data set: its classes, and up to three splits."""

    source: str
    classes: tuple[str, ...]
    splits: dict[str, SegmentationSplit]
    problems: tuple[Problem, ...] = field(default=(), repr=False)
    """What was left out when the data were opened; `check_segmentation_data` reports it."""


def open_segmentation_data(
    source: str | os.PathLike[str],
    *,
    validation_fraction: float = 0.1,
    seed: int = 0,
    ignore_index: int | None = None,
    reduce_labels: bool | None = None,
) -> SegmentationData:
    """Find out what a data set is, and list its pictures and masks.

    Nothing is decoded yet, with two exceptions: masks without class names are read for the numbers in them, and up to 2,000 masks
    to hold out a validation split with every class in it. Pictures without mask and masks without picture are left out, and
    remembered in `problems`.

    Args:
        source: a folder with `images` and `masks` (and lists or folders for the splits), or of PASCAL VOC's or ADE20K's layout;
            parquet files, a folder written by `save_to_disk` of `datasets`, or a data set of the hub ("owner/name" or
            "owner/name:config") with columns of pictures and masks.
        validation_fraction: where there is no validation split, this part of the train split becomes one; 0 for none. The test
            split is never touched.
        seed: chooses which pictures that are; the same seed gives the same ones.
        ignore_index: a number in the masks that is to be ignored besides 255.
        reduce_labels: whether 0 in the masks is to be ignored and classes count from 1; None does so for ADE20K alone.

    Raises:
        DataError: nothing there, no layout known, or nothing usable in it; the message says what was found.
        ConfigurationError: validation_fraction outside 0..1, or ignore_index that is no number a mask can have.
        MissingDependency: tables need `datasets`.
    """
    check_fraction(validation_fraction)
    if ignore_index is not None and not 0 <= ignore_index < 2**31:
        raise ConfigurationError(f"ignore_index={ignore_index} is no number a mask can have; give 0 or more, or None")
    name = os.fspath(source)
    found = read_source(name, _READERS)
    code = MaskCode(ignore_index, found.reduce_labels if reduce_labels is None else reduce_labels, found.palette)
    raw = {split.name: split for split in found.splits}
    problems = tuple(problem for split in found.splits for problem in split.problems)
    if not any(len(split.pictures) for split in found.splits):
        listed = "; ".join(str(problem) for problem in problems[:3])
        raise DataError(f"{name} has no picture with a mask" + (f": {listed}" if listed else ""))
    splits = {key: SegmentationSplit(key, (), raw[key].pictures, raw[key].masks, code) for key in ORDER if key in raw}
    classes = found.names or _names_seen(splits, name)
    if len(classes) > IGNORED:
        raise DataError(
            f"{name} has {len(classes)} classes; up to {IGNORED} can be told apart, for {IGNORED} is the number to ignore"
        )
    splits = {key: replace(split, classes=classes) for key, split in splits.items()}
    if validation_fraction > 0 and "train" in splits and "validation" not in splits:
        splits |= _held_out(splits["train"], validation_fraction, seed)
    return SegmentationData(name, classes, {key: splits[key] for key in ORDER if key in splits}, problems)


def _names_seen(splits: dict[str, SegmentationSplit], name: str) -> tuple[str, ...]:
    """The numbers in the masks as names, 0 up to the highest."""
    highest = max((max(numbers, default=-1) for split in splits.values() for numbers in _numbers_seen(split)), default=-1)
    if highest < 0:
        split = next(split for split in splits.values() if len(split))
        split.mask_values(0)  # raises if that is why
        raise DataError(f"{name}: no mask has a class number, only pixels to ignore")
    if highest >= IGNORED:
        raise DataError(
            f"{name}: the masks have numbers up to {highest}, but nothing names the classes; write id2label.json "
            '({"0": "background", ...}), and numbers from 0 in the masks'
        )
    return tuple(map(str, range(highest + 1)))


def _numbers_seen(split: SegmentationSplit) -> list[list[int]]:
    """The numbers in each mask of a split without those ignored; none for what cannot be read."""

    def numbers(index: int) -> list[int]:
        try:
            values = split.mask_values(index)
        except ImageError:
            return []  # the checks name it
        return [number for number in np.unique(values).tolist() if number >= 0 and number != IGNORED]

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(numbers, range(len(split))))


def _held_out(train: SegmentationSplit, fraction: float, seed: int) -> dict[str, SegmentationSplit]:
    """The train split without some pictures, and those; of each class some, where the masks are few enough to be read."""
    groups: IntArray = np.zeros(len(train), dtype=np.int64)
    if len(train) <= _READ_TO_STRATIFY:
        present = np.zeros((len(train), len(train.classes) + 1), dtype=bool)
        for index, numbers in enumerate(_numbers_seen(train)):
            present[index, [number for number in numbers if number < len(train.classes)]] = True
        present[:, -1] = True  # for pictures of no class
        rarity = np.append(present[:, :-1].sum(axis=0), len(train) + 1)
        groups = np.where(present, rarity, len(train) + 2).argmin(axis=1).astype(np.int64)
    kept, held = stratified(groups, fraction, seed)
    if not held.size:
        return {}
    return {"train": train.select(kept), "validation": replace(train.select(held), name="validation")}
