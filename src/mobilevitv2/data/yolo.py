"""Boxes in YOLO's text files: a line "class centre-x centre-y width height" each, in shares of the picture's width and height."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mobilevitv2.data.boxes import RawBoxes, RawSplit
from mobilevitv2.data.problems import Problem, inside, shortened
from mobilevitv2.data.sources import FilePictures, split_named
from mobilevitv2.data.split_files import class_names_in, listed_name, pictures_by_stem, read_lines, read_text, split_files
from mobilevitv2.errors import DataError
from mobilevitv2.picture_sources import SUFFIXES

_YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_KEYS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


@dataclass
class _Found:
    """The pictures and lines of one split."""

    paths: list[str] = field(default_factory=list)
    picture: list[int] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    corners: list[list[float]] = field(default_factory=list)
    where: list[str] = field(default_factory=list)
    unknown: dict[int, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def is_yolo(root: Path) -> bool:
    """Whether a folder has a data.yaml of YOLO's, or folders of pictures and of text files."""
    return any((root / name).is_file() for name in _YAML_NAMES) or bool(_split_folders(root))


def read_yolo_folder(root: Path) -> list[RawSplit]:
    """The splits that data.yaml names, or else those of folders named after them."""
    for name in _YAML_NAMES:
        if (root / name).is_file():
            return _read_yaml(root / name, root, trusted=False)
    folders = [(split, [folder]) for split, folder in _split_folders(root).items()]
    return _read_splits(root, folders, class_names_in(root))


def read_yolo_file(path: Path) -> list[RawSplit]:
    """The data set that a yaml file describes; one that is named outright may lead to another folder by its `path`."""
    return _read_yaml(path, path.parent, trusted=True)


def _read_yaml(path: Path, root: Path, *, trusted: bool) -> list[RawSplit]:
    import yaml

    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{path} cannot be read as yaml ({shortened(error, 100)})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is no description of a data set: it should have names, train and val")
    base = root
    if isinstance(content.get("path"), str) and content["path"]:
        named = Path(os.path.normpath(root / Path(content["path"]).expanduser()))
        if trusted and named.is_dir():
            root = base = named
        elif named.is_dir() and inside(root, str(named)):
            base = named
    parts: list[tuple[str, list[Path]]] = []
    for key, split in _KEYS.items():
        value = content.get(key)
        entries = [entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, str) and entry]
        if entries and split not in dict(parts):
            parts.append((split, [_place(root, base, entry, path, key) for entry in entries]))
    if not parts:
        raise DataError(f"{path} names no pictures: give it train, val or test, each a folder below {base}")
    return _read_splits(root, [(split, [place for place in places if place]) for split, places in parts], _names(content, path))


def _place(root: Path, base: Path, entry: str, path: Path, key: str) -> Path:
    """The folder or list of pictures that an entry names; Roboflow's "../train/images" is meant from the folder above."""
    parts = [part for part in entry.replace("\\", "/").split("/") if part not in (".", "..", "")]
    for folder in (base, root):
        for text in (entry, "/".join(parts)):
            place = inside(root, os.path.relpath(folder, root), text)
            if place is not None and place.exists():
                return place
    raise DataError(f"{path}: {key} names {shortened(entry)}, which is not there below {root}; put it there or correct {key}")


def _names(content: Mapping[str, Any], path: Path) -> tuple[str, ...] | None:
    names = content.get("names")
    if isinstance(names, dict):
        if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
            raise DataError(f"{path}: the class numbers in names are {shortened(list(names))}; they count from 0 without gaps")
        texts = {str(key): str(name) for key, name in names.items()}
        names = [texts[str(number)] for number in range(len(texts))]
    if not isinstance(names, list) or not names:
        count = content.get("nc")
        return tuple(map(str, range(count))) if isinstance(count, int) and 0 < count < 100_000 else class_names_in(path.parent)
    listed = [str(name) for name in names]
    return tuple(name if listed.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(listed))


def _split_folders(root: Path) -> dict[str, Path]:
    """images/SPLIT or SPLIT/images with labels likewise; or images and labels without splits."""
    found: dict[str, Path] = {}
    for folder in sorted([*root.glob("images/*"), *root.glob("*/images")]):
        split = split_named(folder.name if folder.parent.name == "images" else folder.parent.name)
        if split and folder.is_dir() and split not in found and _labels_of(folder).is_dir():
            found[split] = folder
    if not found and (root / "images").is_dir() and next((root / "labels").glob("*.txt"), None) is not None:
        found["train"] = root / "images"
    return found


def _labels_of(folder: Path) -> Path:
    """The folder of text files for a folder of pictures: the last `images` in its path read as `labels`."""
    parts = list(folder.parts)
    for at in range(len(parts) - 1, -1, -1):
        if parts[at].lower() == "images":
            return Path(*parts[:at], "labels", *parts[at + 1 :])
    return folder


# --------------------------------------------------------------------------------------------------------------------------- splits


def _read_splits(root: Path, parts: Sequence[tuple[str, list[Path]]], names: tuple[str, ...] | None) -> list[RawSplit]:
    found = {}
    for split, places in parts:
        one = _Found()
        for place in places:
            for folder, pictures in _folders_at(root, place, split, one):
                _read_folder(one, split, root, folder, pictures, whole=place.is_dir())
        found[split] = one
    if len(found) == 1 and "train" in found and parts[0][1] == [root / "images"]:
        found = _by_lists(root, found["train"])
    if names is None:
        highest = max((number for one in found.values() for number in one.classes if number < 10_000), default=-1)
        names = tuple(map(str, range(highest + 1)))
    if not names:
        raise DataError(f"{root}: no class is named (data.yaml, classes.txt) and no line of a label file has one")
    return [_raw(split, one, root, names) for split, one in found.items()]


def _folders_at(root: Path, place: Path, split: str, found: _Found) -> Iterator[tuple[Path, list[str]]]:
    """Folders and the pictures in each that count, for a folder with all below it, or a text file that lists pictures."""
    if place.is_dir():
        for parent, folders, _ in os.walk(place):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            names = sorted(pictures_by_stem(Path(parent)).values())
            if names:
                yield Path(parent), names
        return
    listed: dict[Path, list[str]] = {}
    for line in read_lines(place):
        options = (inside(root, os.path.relpath(place.parent, root), line), inside(root, line))
        path = next((option for option in options if option is not None and option.is_file()), None)
        if path is None or path.suffix.lower() not in SUFFIXES:
            where = f"{os.path.relpath(place, root)} {shortened(line)}"
            found.problems.append(Problem(split, where, "image without file", f"not there below {root}"))
        elif path.name in listed.setdefault(path.parent, []):
            found.problems.append(Problem(split, os.path.relpath(path, root), "picture that is listed twice"))
        else:
            listed[path.parent].append(path.name)
    yield from listed.items()


def _read_folder(found: _Found, split: str, root: Path, folder: Path, pictures: Sequence[str], *, whole: bool) -> None:
    labels = _labels_of(folder)
    known = {path.name for path in labels.glob("*.txt")} if labels.is_dir() else set()
    for picture in pictures:
        name = f"{Path(picture).stem}.txt"
        shown = os.path.relpath(labels / name, root)
        at = len(found.paths)
        found.paths.append(str(folder / picture))
        if name in known:
            known.discard(name)
            _read_labels(found, split, labels / name, shown, at)
        else:
            where = os.path.relpath(folder / picture, root)
            found.problems.append(Problem(split, where, "image without annotation", f"no {shown}", "kept, as one without boxes"))
    if whole and labels != folder:
        for name in sorted(known - {"classes.txt", "labels.txt"}):
            found.problems.append(Problem(split, os.path.relpath(labels / name, root), "annotation without image"))


def _read_labels(found: _Found, split: str, path: Path, shown: str, picture: int) -> None:
    try:
        lines = read_text(path).splitlines()
    except DataError as error:
        found.problems.append(Problem(split, shown, "annotation that cannot be read", str(error)))
        return
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        row, values = len(found.classes), [_number(word) for word in words]
        label = int(values[0]) if values[0].is_integer() and 0 <= values[0] < 2**31 else -1
        if label < 0:
            found.unknown[row] = f"class {shortened(words[0])}"
        found.classes.append(label)
        found.picture.append(picture)
        found.corners.append(_corners(values[1:]))
        found.where.append(f"{shown} line {number}")


def _corners(values: Sequence[float]) -> list[float]:
    """Left, top, right, bottom of a box (four numbers) or an outline (pairs of x and y); NaN for anything else."""
    if len(values) == 4:
        x, y, width, height = values
        return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    if len(values) >= 6 and len(values) % 2 == 0 and all(map(math.isfinite, values)):
        return [min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])]
    return [math.nan] * 4


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan


def _by_lists(root: Path, found: _Found) -> dict[str, _Found]:
    """Pictures of one folder in the splits that train.txt, val.txt and test.txt say; all "train" without such files."""
    lists = split_files(root, ("", "ImageSets", "splits"))
    if not lists:
        return {"train": found}
    of_stem = {Path(path).stem: at for at, path in enumerate(found.paths)}
    parts = {}
    for split, file in lists.items():
        one = parts[split] = _Found()
        renumbered: dict[int, int] = {}
        for line in read_lines(file):
            stem = listed_name(line, of_stem)
            at = of_stem.get(stem)
            where = f"{os.path.relpath(file, root)} {shortened(line)}"
            if at is None:
                one.problems.append(Problem(split, where, "image without file"))
            elif at in renumbered:
                one.problems.append(Problem(split, where, "picture that is listed twice"))
            else:
                renumbered[at] = len(one.paths)
                one.paths.append(found.paths[at])
        for row, at in enumerate(found.picture):
            if at in renumbered:
                if row in found.unknown:
                    one.unknown[len(one.classes)] = found.unknown[row]
                one.picture.append(renumbered[at])
                one.classes.append(found.classes[row])
                one.corners.append(found.corners[row])
                one.where.append(found.where[row])
        places = {os.path.relpath(path, root) for path in one.paths}
        one.problems += [replace_split(problem, split) for problem in found.problems if problem.where in places]
    first = next(iter(parts.values()))
    first.problems += [problem for problem in found.problems if problem.what == "annotation without image"]
    return parts


def replace_split(problem: Problem, split: str) -> Problem:
    """The same problem, in another split."""
    return Problem(split, problem.where, problem.what, problem.detail, problem.action)


def _raw(split: str, found: _Found, root: Path, names: tuple[str, ...]) -> RawSplit:
    labels = np.array(found.classes, dtype=np.int64)
    for row in np.flatnonzero(labels >= len(names)):
        found.unknown[int(row)] = f"class {labels[row]}, of {len(names)}"
    labels[labels >= len(names)] = -1
    boxes = RawBoxes(
        picture=np.array(found.picture, dtype=np.int64),
        corners=np.array(found.corners, dtype=np.float64).reshape(-1, 4),
        labels=labels,
        where=found.where.__getitem__,
        unknown=found.unknown,
    )
    ids = tuple(Path(path).stem for path in found.paths)
    sizes = np.zeros((len(found.paths), 2), dtype=np.int64)
    pictures = FilePictures.of_paths(root, found.paths)
    return RawSplit(split, names, tuple(range(len(names))), pictures, ids, sizes, boxes, found.problems, relative=True)
