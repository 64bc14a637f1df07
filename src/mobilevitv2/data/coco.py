"""Boxes in COCO's json, as COCO, Roboflow and most tools for labelling write it."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mobilevitv2.data.boxes import RawBoxes, RawSplit
from mobilevitv2.data.problems import Problem, inside, shortened
from mobilevitv2.data.sources import FilePictures, split_named
from mobilevitv2.errors import DataError

logger = logging.getLogger(__name__)

# What lies beside instances_*.json in COCO's own folder and holds no boxes of objects.
_OTHER_TASKS = ("captions", "person_keypoints", "image_info", "stuff", "panoptic", "lvis_v1_image_info")
_PROBED = 32
"""Pictures that are looked for in each folder that might hold them."""


def split_of_json(path: Path) -> str | None:
    """The split in a name such as instances_train2017.json or train/_annotations.coco.json."""
    words = [re.sub(r"\d+$", "", word) for word in re.split(r"[-_.]", path.stem)]
    named = [split for split in map(split_named, words) if split]
    return named[0] if named else split_named(re.sub(r"\d+$", "", path.parent.name))


def coco_files(root: Path) -> dict[str, Path]:
    """The json files that may hold boxes, by split; empty where there are none.

    Raises:
        DataError: two files for one split.
    """
    found = [
        path
        for pattern in ("*.json", "annotations/*.json", "Annotations/*.json", "*/_annotations.coco.json", "*/annotations.json")
        for path in sorted(root.glob(pattern))
        if not path.name.startswith(_OTHER_TASKS)
    ]
    found = list({os.path.realpath(path): path for path in found}.values())
    instances = [path for path in found if path.name.startswith("instances")]
    named = {path: split_of_json(path) for path in instances or found}
    by_split: dict[str, Path] = {}
    for path, split in named.items():
        if split is None:
            continue
        if split in by_split:
            raise DataError(
                f"{root} has two json files for the split {split!r}, {by_split[split].relative_to(root)} and "
                f"{path.relative_to(root)}: keep one, or name one of them alone"
            )
        by_split[split] = path
    if not by_split:
        unnamed = [path for path in named if _looks_like_coco(path)]
        if len(unnamed) > 1:
            listed = ", ".join(str(path.relative_to(root)) for path in unnamed[:5])
            raise DataError(f"{root} has several json files, none named after a split: {listed}; name one, or rename them")
        by_split = {"train": unnamed[0]} if unnamed else {}
    return by_split


def _looks_like_coco(path: Path) -> bool:
    with path.open("rb") as stream:
        start = stream.read(2**16)
    return b'"images"' in start or b'"annotations"' in start or b'"categories"' in start


def read_coco_folder(root: Path, files: Mapping[str, Path]) -> list[RawSplit]:
    """The splits of a folder whose json files `coco_files` found."""
    return [_read(path, split, root) for split, path in files.items()]


def read_coco_file(path: Path) -> list[RawSplit]:
    """One json file: the split that its name says, or "train"."""
    root = path.parent.parent if path.parent.name.lower() == "annotations" else path.parent
    return [_read(path, split_of_json(path) or "train", root)]


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(f"{path} cannot be read as json ({shortened(error, 100)}): write or download it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, not COCO's object with images, annotations and categories")
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if missing:
        raise DataError(f"{path} lacks COCO's list of {' and of '.join(missing)}; it has: {shortened(', '.join(content), 100)}")
    return content


@dataclass
class _Pictures:
    """The pictures of a file that are there, and where each id leads."""

    paths: list[str] = field(default_factory=list)
    ids: list[int | str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    numbers: dict[int | str, int | None] = field(default_factory=dict)
    """Id -> number of the picture, None where it was left out."""


def _read(path: Path, split: str, root: Path) -> RawSplit:
    content = _load(path)
    name = os.path.relpath(path, root)
    problems: list[Problem] = []
    names, category_ids = _categories(content, path)
    pictures = _pictures(content["images"], path, split, root, problems)
    boxes = _boxes(content["annotations"], name, split, pictures, {id_: at for at, id_ in enumerate(category_ids)}, problems)
    sizes = np.array(pictures.sizes, dtype=np.int64).reshape(-1, 2)
    files = FilePictures.of_paths(root, pictures.paths)
    return RawSplit(split, names, category_ids, files, tuple(pictures.ids), sizes, boxes, problems)


# ----------------------------------------------------------------------------------------------------------------------- categories


def _categories(content: Mapping[str, Any], path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and ids in the order of the ids; the same name twice is told apart by its id."""
    found: dict[int, str] = {}
    for category in content["categories"]:
        number = _id(category.get("id")) if isinstance(category, dict) else None
        if not isinstance(number, int):
            raise DataError(f"{path}: the category {shortened(category)} has no id that is a whole number")
        if number in found:
            raise DataError(f"{path}: two categories have the id {number}, {found[number]} and {shortened(category.get('name'))}")
        found[number] = str(category.get("name") or number)
    if not found:
        raise DataError(f"{path} has no categories: name the classes in it")
    unused = _roof(content, found)
    numbers = sorted(number for number in found if number != unused)
    texts = [found[number] for number in numbers]
    names = [text if texts.count(text) == 1 else f"{text} ({number})" for number, text in zip(numbers, texts, strict=True)]
    return tuple(names), tuple(numbers)


def _roof(content: Mapping[str, Any], found: Mapping[int, str]) -> int | None:
    """The category that Roboflow adds as the parent of all others, and that no box has; None where there is none."""
    parents = {category.get("supercategory") for category in content["categories"] if _id(category["id"]) != 0}
    if len(found) < 2 or 0 not in found or parents != {found[0]}:
        return None
    used = any(isinstance(one, dict) and _id(one.get("category_id")) == 0 for one in content["annotations"])
    return None if used else 0


# ------------------------------------------------------------------------------------------------------------------------- pictures


def _pictures(images: Sequence[Any], path: Path, split: str, root: Path, problems: list[Problem]) -> _Pictures:
    found = _Pictures()
    folder = _folder_of(images, path, split, root)
    by_path: dict[str, int] = {}
    below = os.path.relpath(folder, root)
    name = os.path.relpath(path, root)
    for row, image in enumerate(images):
        image = image if isinstance(image, dict) else {}
        number, file = _id(image.get("id")), image.get("file_name")
        where = f"{name} image {number if number is not None else f'in row {row}'}"
        if number is None or not isinstance(file, str) or not file:
            problems.append(Problem(split, where, "image without id or file name", shortened(image)))
            continue
        if number in found.numbers:
            problems.append(Problem(split, where, "image id that is there twice", shortened(file)))
            continue
        where += f" ({shortened(file)})"
        place = inside(root, below, file)
        if place is None or not os.path.isfile(place):
            found.numbers[number] = None
            detail = f"no such file in {folder}" if place else f"outside {root}"
            problems.append(Problem(split, where, "image without file", detail))
        elif str(place) in by_path:
            found.numbers[number] = by_path[str(place)]
            detail = f"as image {found.ids[by_path[str(place)]]}"
            problems.append(Problem(split, where, "file of two images", detail, "their boxes joined"))
        else:
            found.numbers[number] = by_path[str(place)] = len(found.paths)
            found.paths.append(str(place))
            found.ids.append(number)
            found.sizes.append((_pixels(image.get("width")), _pixels(image.get("height"))))
    return found


def _folder_of(images: Sequence[Any], path: Path, split: str, root: Path) -> Path:
    """The folder that holds most of the file names: named after the json file, its split, `images`, or beside the json."""
    files = [image["file_name"] for image in images if isinstance(image, dict) and isinstance(image.get("file_name"), str)]
    probes = files[:: max(1, len(files) // _PROBED)]
    title = re.sub(r"^(instances|annotations?)[-_.]?", "", path.stem) or split
    words = list(dict.fromkeys([title, split, *(word for word in ("train", "val", "valid", "test") if split_named(word) == split)]))
    folders = [root / word for word in words]
    folders += [root / "images" / word for word in words] + [root / word / "images" for word in words]
    folders += [path.parent, path.parent / "images", root / "images", root / "JPEGImages", root]
    counts = [sum(_is_there(folder, file) for file in probes) for folder in folders]
    if not any(counts):
        return next((folder for folder in folders if folder.is_dir() and folder != path.parent), root)
    return folders[counts.index(max(counts))]


def _is_there(folder: Path, file: str) -> bool:
    place = inside(folder, file)
    try:
        return place is not None and os.path.isfile(place)
    except (OSError, ValueError):
        return False


# ---------------------------------------------------------------------------------------------------------------------------- boxes


def _boxes(
    annotations: Sequence[Any],
    name: str,
    split: str,
    pictures: _Pictures,
    classes: Mapping[int, int],
    problems: list[Problem],
) -> RawBoxes:
    rows: list[tuple[int, int]] = []  # (number of the picture, class)
    corners: list[list[float]] = []
    others: list[tuple[float, bool]] = []  # (area, crowd)
    ids: list[object] = []
    unknown: dict[int, str] = {}
    orphans: dict[str, list[str]] = {}
    for row, annotation in enumerate(annotations):
        annotation = annotation if isinstance(annotation, dict) else {}
        image = _id(annotation.get("image_id"))
        id_ = annotation.get("id")
        where = id_ if isinstance(id_, int) else f"in row {row}"
        picture = None if image is None else pictures.numbers.get(image, -1)
        if picture is None and image is not None:
            continue  # its picture was left out, and that is remembered
        if picture is None or picture < 0:
            orphans.setdefault(f"image_id {shortened(image)}", []).append(str(where))
            continue
        box = annotation.get("bbox")
        if not box and annotation.get("segmentation"):
            problems.append(Problem(split, f"{name} annotation {where}", "outline without a box"))
            continue
        category = _id(annotation.get("category_id"))
        label = classes.get(category, -1) if isinstance(category, int) else -1
        if label < 0:
            unknown[len(rows)] = f"category_id {shortened(annotation.get('category_id'))}"
        ids.append(where)
        rows.append((picture, label))
        corners.append(_numbers(box))
        others.append((_number(annotation.get("area")), annotation.get("iscrowd") in (1, True)))
    for image_text, places in orphans.items():
        what = "annotation of an image that is not listed"
        problems += [Problem(split, f"{name} annotation {place}", what, image_text) for place in places]
    numbers, edges = np.array(rows, dtype=np.int64).reshape(-1, 2), np.array(corners, dtype=np.float64).reshape(-1, 4)
    with np.errstate(all="ignore"):  # numbers beyond all measure are dropped later
        edges[:, 2:] += edges[:, :2]
    extra = np.array(others, dtype=np.float64).reshape(-1, 2)
    return RawBoxes(
        picture=numbers[:, 0],
        corners=edges,
        labels=numbers[:, 1],
        where=lambda row: f"{name} annotation {ids[row]} (image {pictures.ids[rows[row][0]]})",
        unknown=unknown,
        areas=extra[:, 0],
        crowd=extra[:, 1] != 0,
    )


def _numbers(box: object) -> list[float]:
    """Four numbers; NaN where there are none."""
    values = [_number(value) for value in box] if isinstance(box, list) and len(box) == 4 else []
    return values or [math.nan] * 4


def _number(value: object) -> float:
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _pixels(value: object) -> int:
    """A side in pixels; 0 for what cannot be one."""
    number = _number(value)
    return round(number) if 0 < number < 2**31 else 0


def _id(value: object) -> int | str | None:
    """An id: a whole number (one in quotes too) or a word."""
    if type(value) is int:
        return value
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"-?\d{1,18}", value) else value
    return value if isinstance(value, int) else None
