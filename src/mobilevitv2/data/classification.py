"""Data sets for classification: pictures with one class each, in splits, whatever they lie in."""

from __future__ import annotations

import difflib
import glob
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mobilevitv2.data.folders import LAYOUTS, read_folders
from mobilevitv2.data.sources import IntArray, Labelled, PictureSource
from mobilevitv2.data.tables import read_hub, read_parquet, read_saved
from mobilevitv2.errors import ConfigurationError, DataError

if TYPE_CHECKING:
    from PIL import Image


ORDER: tuple[str, ...] = ("train", "validation", "test")
# (what to look for, the files it then is): shards side by side, or in folders named after their splits.
_PARQUET_LAYOUTS = (
    ("*.parquet", "*.parquet"),
    ("data/*.parquet", "data/*.parquet"),
    ("train/*.parquet", "*/*.parquet"),
    ("*/train/*.parquet", "*/*/*.parquet"),
)


class _NamedBytes(io.BytesIO):
    """A file in memory whose errors name where it came from."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


@dataclass(frozen=True, eq=False)
class PictureSplit:
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

        return read_picture(_NamedBytes(encoded, self.describe(index)), draft_size=draft_size)

    def encoded(self, index: int) -> bytes:
        """The file as it is, a JPEG say; ImageError where it cannot be had."""
        return self.pictures.encoded(index)

    def describe(self, index: int) -> str:
        """The picture's path, or file and row: "train-00000-of-00004.parquet row 17"."""
        return self.pictures.describe(index)

    def select(self, indices: Sequence[int] | NDArray[np.integer]) -> PictureSplit:
        """Some of the pictures, in the order given."""
        chosen = np.asarray(indices, dtype=np.int64)
        groups = None if self.groups is None else tuple(self.groups[index] for index in chosen)
        return replace(self, labels=self.labels[chosen], groups=groups, pictures=self.pictures.select(chosen))


@dataclass(frozen=True)
class ClassificationData:
    """A data set: its classes, and up to three splits."""

    source: str
    classes: tuple[str, ...]
    splits: dict[str, PictureSplit]

    @property
    def train(self) -> PictureSplit | None:
        """The pictures to learn from."""
        return self.splits.get("train")

    @property
    def validation(self) -> PictureSplit | None:
        """The pictures that choose the best weights."""
        return self.splits.get("validation")

    @property
    def test(self) -> PictureSplit | None:
        """The pictures that nothing is chosen by."""
        return self.splits.get("test")


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
    if not 0 <= validation_fraction < 1:
        raise ConfigurationError(f"validation_fraction={validation_fraction} is not in 0..1 (1 left out): 0.1 holds out a tenth")
    name = os.fspath(source)
    classes, splits = _united(_read(name))
    if validation_fraction > 0 and "train" in splits and "validation" not in splits:
        kept, held = _stratified(splits["train"].labels, validation_fraction, seed)
        if held.size:
            train = splits["train"]
            splits |= {"train": train.select(kept), "validation": replace(train.select(held), name="validation")}
    return ClassificationData(name, classes, {split: splits[split] for split in ORDER if split in splits})


def _read(source: str) -> dict[str, Labelled]:
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _read_folder(path)
        if path.is_file():
            if path.suffix.lower() != ".parquet":
                raise DataError(f"{path} is a file of a kind not known for data sets; unpack it first. Layouts known:\n{LAYOUTS}")
            return read_parquet([path])
    except PermissionError as error:
        raise DataError(f"{error.filename or path} may not be read: check its permissions") from error
    if glob.has_magic(source):
        files = [Path(file) for file in glob.glob(str(path), recursive=True) if file.lower().endswith(".parquet")]  # noqa: PTH207
        if not files:
            raise DataError(f"{source} matches no .parquet file (the current folder is {Path.cwd()})")
        return read_parquet(files)
    return _read_elsewhere(source, path)


def _read_folder(folder: Path) -> dict[str, Labelled]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return read_saved(folder)
    for sign, files in _PARQUET_LAYOUTS:
        if next(folder.glob(sign), None) is not None:
            return read_parquet(list(folder.glob(files)))
    return read_folders(folder)


def _read_elsewhere(source: str, path: Path) -> dict[str, Labelled]:
    """From the hub, if the name can be one of the hub's; the error speaks of both places."""
    missing = _missing(source, path)
    beside = path.parent.is_dir() and path.parent != Path()
    if beside or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?(:[\w.-]+)?", source):
        raise DataError(missing)
    try:
        return read_hub(source)
    except DataError as error:
        raise DataError(f"{missing}; and from the hub, {error}") from error


def _missing(source: str, path: Path) -> str:
    if not path.parent.is_dir():
        return f"{source} does not exist, nor does the folder {path.parent} (the current folder is {Path.cwd()})"
    names = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    if near:
        return f"{source} does not exist: did you mean {' or '.join(str(path.parent / name) for name in near)}?"
    return f"{source} does not exist (the current folder is {Path.cwd()})"


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


def _stratified(labels: IntArray, fraction: float, seed: int) -> tuple[IntArray, IntArray]:
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
