"""Data sets for classification: pictures with one class each, in splits, whatever they lie in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mobilevitv2.data.folders import LAYOUTS, read_folders
from mobilevitv2.data.opening import Readers, read_source
from mobilevitv2.data.sources import IntArray, Labelled, PictureSource
from mobilevitv2.data.splits import ORDER, InSplits, PictureReader, check_fraction, stratified
from mobilevitv2.data.tables import read_hub, read_parquet, read_saved
from mobilevitv2.errors import ConfigurationError

_READERS: Readers[dict[str, Labelled]] = Readers(read_folders, read_parquet, read_saved, read_hub, LAYOUTS)


@dataclass(frozen=True, eq=False)
class PictureSplit(PictureReader):
    """One split: pictures, and the class of each. Small to pickle; pictures are read when asked for."""

    name: str
    """"train", "validation" or "test"."""
    classes: tuple[str, ...]
    labels: IntArray
    """Indices into `classes`, (n,)."""
    groups: tuple[str, ...] | None
    """What metrics are also given by: the origin of each picture, say; None where the data have no such column."""
    pictures: PictureSource = field(repr=False)

    def __post_init__(self) -> None:
        count = len(self.pictures)
        if self.labels.shape != (count,) or (self.groups is not None and len(self.groups) != count):
            raise ConfigurationError(
                f"split {self.name!r}: {count} pictures, but labels of shape {self.labels.shape}"
                + ("" if self.groups is None else f" and {len(self.groups)} groups")
            )

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Sequence[int] | NDArray[np.integer]) -> PictureSplit:
        """Some of the pictures, in the order given."""
        chosen = np.asarray(indices, dtype=np.int64)
        groups = None if self.groups is None else tuple(self.groups[index] for index in chosen)
        return replace(self, labels=self.labels[chosen], groups=groups, pictures=self.pictures.select(chosen))


@dataclass(frozen=True)
class ClassificationData(InSplits[PictureSplit]):
    """A data set: its classes, and up to three splits."""

    source: str
    classes: tuple[str, ...]
    splits: dict[str, PictureSplit]


def open_classification_data(
    source: str | os.PathLike[str], *, validation_fraction: float = 0.1, seed: int = 0
) -> ClassificationData:
    """Find out what a data set is, and list its pictures; none is decoded yet.

    Args:
        source: an image folder (`ROOT/train/CLASS/*.jpg`, ... or `ROOT/CLASS/*.jpg`); a parquet file, a glob or a folder of them
            (`train-*.parquet`, ...); a folder written by `save_to_disk` of `datasets`; a data set of the hub ("owner/name" or
            "owner/name:config").
        validation_fraction: where there is no validation split, this part of the train split, of each class alike, becomes one;
            0 for none. The test split is never touched.
        seed: chooses which pictures that are; the same seed gives the same ones.

    Raises:
        DataError: nothing there, no layout known, columns of the wrong type, labels out of range; the message says what was found.
        ConfigurationError: validation_fraction outside 0..1.
        MissingDependency: tables need `datasets`.
    """
    check_fraction(validation_fraction)
    name = os.fspath(source)
    found = read_source(name, _READERS)
    classes, splits = _united(found)
    if validation_fraction > 0 and "train" in splits and "validation" not in splits:
        kept, held = stratified(splits["train"].labels, validation_fraction, seed)
        if held.size:
            train = splits["train"]
            splits |= {"train": train.select(kept), "validation": replace(train.select(held), name="validation")}
    return ClassificationData(name, classes, {split: splits[split] for split in ORDER if split in splits})


def _united(found: Mapping[str, Labelled]) -> tuple[tuple[str, ...], dict[str, PictureSplit]]:
    """One list of classes for all splits: those of the train split in its order, then what others add (the checks report it)."""
    order = [split for split in ORDER if split in found]
    index: dict[str, int] = {}
    for split in order:
        for name in found[split].names:
            index.setdefault(name, len(index))
    classes = tuple(index)
    splits = {}
    for split in order:
        labelled = found[split]
        to_common = np.array([index[name] for name in labelled.names], dtype=np.int64)
        splits[split] = PictureSplit(split, classes, to_common[labelled.labels], labelled.groups, labelled.pictures)
    return classes, splits
