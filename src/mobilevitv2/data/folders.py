"""Image folders: one folder a class, below a folder for each split or without splits."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mobilevitv2.data.sources import FilePictures, Labelled, split_named
from mobilevitv2.errors import DataError, ImageError
from mobilevitv2.picture_sources import SUFFIXES, find_pictures

logger = logging.getLogger(__name__)

LAYOUTS = """\
  ROOT/train/CLASS/*.jpg, ROOT/validation/CLASS/*.jpg, ROOT/test/CLASS/*.jpg   image folder with splits (val and valid will do)
  ROOT/CLASS/*.jpg                                                            image folder without splits
  ROOT/train-*.parquet, ROOT/validation-*.parquet, ROOT/test-*.parquet        parquet, columns image and label
  ROOT/dataset_dict.json or ROOT/state.json                                   what save_to_disk of `datasets` writes
  OWNER/NAME or OWNER/NAME:CONFIG                                             a data set of the Hugging Face hub"""

# Folders by these names hold the parts of segmentation and detection data sets, never classes.
_PARTS = {"images", "masks", "labels", "annotations", "jpegimages", "imagesets", "segmentationclass", "segmentationobject"}


def read_folders(root: Path) -> dict[str, Labelled]:
    """The splits of an image folder; one without splits comes as "train" alone.

    Raises:
        DataError: no class folders with pictures, or folders that are those of another kind of data set.
    """
    splits = _split_folders(root)
    if not splits:
        classes = _classes_in(root)
        _check_flat(root, classes)
        return {"train": _labelled(root, classes)}
    others = [folder.name for folder in _folders_in(root) if folder not in splits.values()]
    if others:
        logger.warning("%s: left out the folders beside the splits: %s", root, ", ".join(others[:10]))
    found = {}
    for split, folder in splits.items():
        classes = _classes_in(folder)
        _check_parts(folder, classes)
        found[split] = _labelled(root, classes)
    if not any(len(labelled.labels) for labelled in found.values()):
        raise DataError(f"{root} has folders for {', '.join(splits)}, but no picture in the class folders below them")
    return found


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders named after splits, if at least one holds class folders; so a class may be called "test"."""
    found: dict[str, Path] = {}
    for folder in _folders_in(root):
        split = split_named(folder.name)
        if split is None or not _folders_in(folder):
            continue
        if split in found:
            raise DataError(f"{root} has two folders for the split {split!r}, {found[split].name} and {folder.name}: keep one")
        found[split] = folder
    return found


def _folders_in(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _classes_in(folder: Path) -> dict[str, list[str]]:
    """Class name -> its pictures, sorted; classes without pictures stay, so that the checks can name them."""
    return {entry.name: _pictures_in(entry) for entry in _folders_in(folder)}


def _pictures_in(folder: Path) -> list[str]:
    try:
        return find_pictures([folder])
    except ImageError:  # it has none
        return []


def _labelled(root: Path, classes: Mapping[str, list[str]]) -> Labelled:
    paths = [path for pictures in classes.values() for path in pictures]
    counts = np.array([len(pictures) for pictures in classes.values()], dtype=np.int64)
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    return Labelled(tuple(classes), labels, FilePictures.of_paths(root, paths))


def _check_flat(root: Path, classes: Mapping[str, list[str]]) -> None:
    if not any(classes.values()):
        raise DataError(_nothing_found(root))
    _check_parts(root, classes)
    filled = [name for name, pictures in classes.items() if pictures]
    if len(filled) == 1 and any(_pictures_in(folder) for folder in _folders_in(root / filled[0])):
        raise DataError(f"{root} holds one folder, {filled[0]}, which holds folders itself: name {root / filled[0]}")


def _check_parts(folder: Path, classes: Mapping[str, list[str]]) -> None:
    filled = {name.lower() for name, pictures in classes.items() if pictures}
    if filled and filled <= _PARTS:
        raise DataError(
            f"{folder} has the folders {', '.join(sorted(classes))}: that is a data set for segmentation or detection, not for "
            f"classification, where each folder is a class. Layouts known for classification:\n{LAYOUTS}"
        )


def _nothing_found(root: Path) -> str:
    entries = sorted(entry.name for entry in root.iterdir())
    if not entries:
        return f"{root} is empty: check the path, or put the data there in one of these layouts:\n{LAYOUTS}"
    pictures = [name for name in entries if Path(name).suffix.lower() in SUFFIXES]
    if pictures:
        return (
            f"{root} has {len(pictures)} pictures ({pictures[0]}, ...) but no class folders. Put the pictures of each class "
            f"into a folder named after it: {root}/cat/{pictures[0]}, {root}/dog/..."
        )
    listed = ", ".join(entries[:10]) + (f" and {len(entries) - 10} more" if len(entries) > 10 else "")
    return f"{root} has no data set in a layout known; found: {listed}. Layouts known:\n{LAYOUTS}"
