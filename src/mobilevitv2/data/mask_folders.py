"""Folders of pictures and masks: which of the layouts for segmentation it is, and which mask belongs to which picture."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mobilevitv2.data.mask_codes import Palette, palette_in, voc_colours
from mobilevitv2.data.problems import Problem, shortened
from mobilevitv2.data.sources import FilePictures, PictureSource, split_named
from mobilevitv2.data.split_files import class_names_in, listed_name, read_lines, split_files
from mobilevitv2.errors import DataError
from mobilevitv2.picture_sources import SUFFIXES
from mobilevitv2.weights.class_names import class_names

LAYOUTS = """\
  ROOT/images and ROOT/masks, with train.txt, val.txt, ... (or masks_train.txt, ...), or without splits
  ROOT/train/images and ROOT/train/masks, ...; or ROOT/images/train and ROOT/masks/train (or labels, annotations), ...
  ROOT/JPEGImages, ROOT/SegmentationClass, ROOT/ImageSets/Segmentation                             PASCAL VOC
  ROOT/images/training, ROOT/annotations/training, ...                                             ADE20K
  ROOT/train-*.parquet, ... or what save_to_disk wrote, or OWNER/NAME of the Hugging Face hub      columns of pictures and masks"""

_PICTURES = ("images", "image", "imgs", "img", "JPEGImages", "pictures", "frames")
_MASKS = (
    "masks", "mask", "annotations", "annotation", "annots", "labels", "label", "segmentations", "ground_truth", "gt",
    "SegmentationClass",
)  # fmt: skip
_LISTS = ("", "splits", "ImageSets/Segmentation", "ImageSets", "ImageSets/Main")
_ENDINGS = re.compile(r"[-_.](masks?|labels?|labelIds|seg|segmentation|gt|L|trimap)$", re.IGNORECASE)


@dataclass(eq=False)
class RawMasks:
    """One split as a reader found it."""

    name: str
    pictures: PictureSource
    masks: PictureSource
    problems: list[Problem] = field(default_factory=list)


@dataclass(eq=False)
class MaskSet:
    """A data set as a reader found it."""

    splits: list[RawMasks]
    names: tuple[str, ...] | None = None
    """None where nothing says them."""
    palette: Palette | None = None
    reduce_labels: bool = False


def read_mask_folder(root: Path) -> MaskSet:
    """The splits of a folder in any of the layouts.

    Raises:
        DataError: none of the layouts; the message lists what is there.
    """
    splits = _splits(root)
    if splits is None:
        return read_mask_folder(_only_one_below(root))
    ade = (root / "objectInfo150.txt").is_file() or root.name.startswith("ADEChallengeData")
    voc = (root / "JPEGImages").is_dir() and not ade
    names = class_names_in(root)
    coloured = palette_in(root, names)
    if coloured:
        return MaskSet(splits, coloured[1], coloured[0], ade)
    if names is None and (ade or voc):
        names = class_names("segment", "ade20k" if ade else "voc")
    palette = Palette.of(voc_colours(len(names))) if voc and names else None
    return MaskSet(splits, names, palette, ade)


def _only_one_below(root: Path) -> Path:
    below = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]
    known = [folder for folder in below if _has_layout(folder)]
    if len(known) == 1:
        return known[0]
    if known:
        raise DataError(f"{root} holds several data sets, {', '.join(folder.name for folder in known)}: name one of them")
    entries = sorted(entry.name for entry in root.iterdir())
    listed = ", ".join(entries[:10]) + (f" and {len(entries) - 10} more" if len(entries) > 10 else "")
    raise DataError(
        f"{root} has no masks in a layout known; found: {listed or 'nothing'}. Layouts known for segmentation:\n{LAYOUTS}"
    )


def _has_layout(folder: Path) -> bool:
    return bool(_split_folders(folder)) or _voc_masks(folder) is not None or _pair_in(folder) is not None


def _splits(root: Path) -> list[RawMasks] | None:
    folders = _split_folders(root)
    if folders:
        return [_paired(split, root, pictures, masks) for split, (pictures, masks) in folders.items()]
    if _voc_masks(root) is not None:
        return list(_voc_splits(root))
    pair = _pair_in(root)
    if pair is None:
        return None
    lists = split_files(root, _LISTS, prefix="masks") or split_files(root, _LISTS)
    if not lists:
        return [_paired("train", root, *pair)]
    found = _by_stem(pair[0]), _masks_by_stem(pair[1])
    return [_listed(split, root, file, pair, found[0], found[1]) for split, file in lists.items()]


# -------------------------------------------------------------------------------------------------------------------------- layouts


def _child(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _pair_in(folder: Path) -> tuple[Path, Path] | None:
    """The folders of pictures and of masks in a folder."""
    pictures, masks = _child(folder, _PICTURES), _child(folder, _MASKS)
    return (pictures, masks) if pictures and masks and _has_pictures(masks) else None


def _has_pictures(folder: Path) -> bool:
    return any(_pictures_below(folder))


def _split_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """SPLIT/images and SPLIT/masks; images/SPLIT and masks/SPLIT; SPLIT and SPLIT_labels."""
    found: dict[str, tuple[Path, Path]] = {}

    def add(split: str | None, pair: tuple[Path, Path] | None) -> None:
        if split and pair:
            if split in found:
                raise DataError(f"{root} has two folders for the split {split!r}, {found[split][0]} and {pair[0]}: keep one")
            found[split] = pair

    below = [folder for folder in sorted(root.iterdir()) if folder.is_dir()]
    for folder in below:
        add(split_named(folder.name), _pair_in(folder))
    pair = _pair_in(root)
    if not found and pair:
        masks = {split_named(folder.name): folder for folder in sorted(pair[1].iterdir()) if folder.is_dir()}
        for folder in sorted(pair[0].iterdir()):
            split = split_named(folder.name)
            if split in masks and folder.is_dir():
                add(split, (folder, masks[split]))
    if not found:
        for folder in below:
            beside = [Path(f"{folder}{end}") for end in ("_labels", "_masks", "annot", "_annotations", "_mask", "_label")]
            add(split_named(folder.name), next(((folder, masks) for masks in beside if masks.is_dir()), None))
    return found


def _voc_masks(root: Path) -> list[Path] | None:
    """VOC's folders of masks, the augmented first; None in another layout."""
    folders = [root / name for name in ("SegmentationClassAug", "SegmentationClass") if (root / name).is_dir()]
    return folders if folders and (root / "JPEGImages").is_dir() else None


def _voc_splits(root: Path) -> Iterator[RawMasks]:
    folders = _voc_masks(root) or []
    masks = {stem: path for folder in reversed(folders) for stem, path in _masks_by_stem(folder).items()}
    pair = root / "JPEGImages", folders[0]
    pictures = _by_stem(pair[0])
    lists = split_files(root, ("ImageSets/Segmentation", "ImageSets/SegmentationAug", "ImageSets/Main", ""))
    for name in ("train_aug.txt", "trainaug.txt"):
        path = next((root / place / name for place in _LISTS if (root / place / name).is_file()), None)
        if path and folders[0].name == "SegmentationClassAug":
            lists["train"] = path
    if not lists:
        yield _united("train", root, pair, {stem: path for stem, path in pictures.items() if stem in masks}, masks)
    for split, file in lists.items():
        yield _listed(split, root, file, pair, pictures, masks)


# ---------------------------------------------------------------------------------------------------------------------------- pairs


def _pictures_below(folder: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield str(Path(parent, name))


def _by_stem(folder: Path) -> dict[str, str]:
    """Path below the folder without suffix -> path."""
    return {os.path.relpath(path, folder).removesuffix(Path(path).suffix): path for path in _pictures_below(folder)}


def _masks_by_stem(folder: Path) -> dict[str, str]:
    """The same for masks; endings such as "_mask" do not count, unless without them two would be one."""
    found = _by_stem(folder)
    for stem, path in list(found.items()):
        found.setdefault(_ENDINGS.sub("", stem), path)
    return found


def _paired(split: str, root: Path, pictures: Path, masks: Path) -> RawMasks:
    return _united(split, root, (pictures, masks), _by_stem(pictures), _masks_by_stem(masks))


def _united(split: str, root: Path, folders: tuple[Path, Path], pictures: Mapping[str, str], masks: Mapping[str, str]) -> RawMasks:
    """All pictures that have a mask; what is left over on either side is remembered."""
    problems = []
    both = [stem for stem in pictures if stem in masks]
    for stem, path in pictures.items():
        if stem not in masks:
            detail = f"no {stem} in {os.path.relpath(folders[1], root)}"
            problems.append(Problem(split, os.path.relpath(path, root), "picture without mask", shortened(detail)))
    used = {masks[stem] for stem in both}
    for path in dict.fromkeys(masks.values()):
        if path not in used:
            detail = f"no {Path(path).stem} in {os.path.relpath(folders[0], root)}"
            problems.append(Problem(split, os.path.relpath(path, root), "mask without picture", shortened(detail)))
    return _raw(split, root, [pictures[stem] for stem in both], [masks[stem] for stem in both], problems)


def _listed(
    split: str, root: Path, file: Path, folders: tuple[Path, Path], pictures: Mapping[str, str], masks: Mapping[str, str]
) -> RawMasks:
    """The pictures that a list names."""
    problems: list[Problem] = []
    found: dict[str, None] = {}
    for line in read_lines(file):
        stem = listed_name(line, pictures)
        where = f"{os.path.relpath(file, root)} {shortened(stem)}"
        missing = [
            f"no {shortened(stem)} in {os.path.relpath(folder, root)}"
            for folder, known in zip(folders, (pictures, masks), strict=True)
            if stem not in known
        ]
        if stem in found:
            problems.append(Problem(split, where, "picture that is listed twice"))
        elif missing:
            what = "picture without mask" if stem in pictures else "mask without picture"
            problems.append(Problem(split, where, what if len(missing) == 1 else "no such picture", " and ".join(missing)))
        else:
            found[stem] = None
    return _raw(split, root, [pictures[stem] for stem in found], [masks[stem] for stem in found], problems)


def _raw(split: str, root: Path, pictures: list[str], masks: list[str], problems: list[Problem]) -> RawMasks:
    return RawMasks(split, FilePictures.of_paths(root, pictures), FilePictures.of_paths(root, masks), problems)
