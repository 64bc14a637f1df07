"""Boxes in PASCAL VOC's xml, as VOC itself and labelImg, Roboflow and others write it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mobilevitv2.data.boxes import RawBoxes, RawSplit
from mobilevitv2.data.problems import Problem, inside, shortened
from mobilevitv2.data.sources import FilePictures, split_named
from mobilevitv2.data.split_files import class_names_in, listed_name, pictures_by_stem, read_lines, split_files
from mobilevitv2.errors import DataError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_MAX_BYTES = 64 * 2**20
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass
class _Found:
    """What the xml files of one split hold."""

    paths: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    picture: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    corners: list[list[float]] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    where: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def parse_xml(path: Path) -> Element:
    """The root of an xml file; without document types, so that no entity can grow or lead elsewhere.

    Raises:
        DataError: it is no xml, too large, or declares a document type.
    """
    from xml.etree.ElementTree import ParseError, TreeBuilder
    from xml.parsers import expat

    content = path.read_bytes() if path.stat().st_size <= _MAX_BYTES else None
    if content is None:
        raise DataError(f"{path} has over {_MAX_BYTES // 2**20} MiB: that is no annotation of one picture")
    builder = TreeBuilder()
    parser = expat.ParserCreate()

    def refuse(name: str, *_: object) -> None:
        raise DataError(f"{path} declares a document type ({shortened(name)}), which annotations have no need of")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
        return builder.close()
    except (expat.ExpatError, ParseError, ValueError, LookupError, AssertionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is no sound xml ({shortened(error, 100)}): write or download it again") from error


def is_voc(root: Path) -> bool:
    """Whether a folder holds xml files below Annotations, or beside its pictures as Roboflow lays them."""
    return any(next(folder.glob("*.xml"), None) is not None for folder in (root / "Annotations", root / "annotations")) or any(
        split_named(folder.name) and next(folder.glob("*.xml"), None) is not None for folder in root.iterdir() if folder.is_dir()
    )


def read_voc_folder(root: Path) -> list[RawSplit]:
    """The splits of ImageSets/Main, or all files as "train"; or folders of pictures and xml named after the splits.

    Raises:
        DataError: no xml file has a box of a class.
    """
    found = {split: _read_split(split, root, *part) for split, part in _parts(root)}
    listed = class_names_in(root)
    seen = sorted({name for one in found.values() for name in one.names})
    names = listed or tuple(seen)
    if not names:
        raise DataError(f"{root}: no annotation has an object with a name, so there is no class to learn")
    return [_raw(split, one, root, names) for split, one in found.items()]


def _parts(root: Path) -> Iterator[tuple[str, tuple[Path, Path, list[str] | None, str]]]:
    """Split, folder of xml, folder of pictures, names listed (None for all), and where they are listed."""
    annotations = next((root / name for name in ("Annotations", "annotations") if (root / name).is_dir()), None)
    if annotations is None:
        for folder in sorted(root.iterdir()):
            split = split_named(folder.name)
            if split and folder.is_dir():
                yield split, (folder, folder, None, folder.name)
        return
    pictures = next((root / name for name in ("JPEGImages", "images", "Images") if (root / name).is_dir()), annotations)
    lists = split_files(root, ("ImageSets/Main", "ImageSets", ""))
    if not lists:
        yield "train", (annotations, pictures, None, annotations.name)
    for split, file in lists.items():
        yield split, (annotations, pictures, read_lines(file), os.path.relpath(file, root))


def _read_split(split: str, root: Path, annotations: Path, folder: Path, listed: list[str] | None, where: str) -> _Found:
    found = _Found()
    pictures = pictures_by_stem(folder)
    stems = listed
    if stems is None:
        stems = sorted({path.stem for path in annotations.glob("*.xml")} | set(pictures))
    seen: set[str] = set()
    for line in stems:
        stem = listed_name(line, pictures)
        if stem in seen:
            found.problems.append(Problem(split, f"{where} {shortened(stem)}", "picture that is listed twice"))
            continue
        seen.add(stem)
        xml = inside(annotations, f"{stem}.xml")
        shown = f"{os.path.relpath(annotations, root)}/{shortened(stem)}.xml"
        if xml is None or not xml.is_file():
            place = f"{where} {shortened(stem)}" if listed is not None else os.path.relpath(folder / pictures[stem], root)
            what = "image without annotation" if stem in pictures else "listed name without image and annotation"
            found.problems.append(Problem(split, place, what, f"no {shown}"))
        elif stem not in pictures:
            found.problems.append(
                Problem(split, shown, "annotation without image", f"no {stem} in {os.path.relpath(folder, root)}")
            )
        else:
            _read_xml(found, split, xml, shown, folder / pictures[stem])
    return found


def _read_xml(found: _Found, split: str, xml: Path, shown: str, picture: Path) -> None:
    try:
        root = parse_xml(xml)
    except (DataError, OSError) as error:
        found.problems.append(Problem(split, shown, "annotation that cannot be read", shortened(error, 200)))
        return
    offset = 1.0 if "VOC" in _text(root, "source/database") else 0.0
    for row, thing in enumerate(root.iter("object"), 1):
        name = _text(thing, "name")
        where = f"{shown} object {row}" + (f" ({shortened(name)})" if name else "")
        if not name:
            found.problems.append(Problem(split, where, "object without a name"))
            continue
        box = thing.find("bndbox")
        edges = [math.nan] * 4 if box is None else [_number(_text(box, key)) for key in _CORNERS]
        found.corners.append([edges[0] - offset, edges[1] - offset, edges[2], edges[3]])
        found.picture.append(len(found.paths))
        found.names.append(name)
        found.difficult.append(_number(_text(thing, "difficult")) == 1)
        found.where.append(where)
    found.paths.append(str(picture))
    found.ids.append(picture.stem)
    found.sizes.append((_pixels(_text(root, "size/width")), _pixels(_text(root, "size/height"))))


def _raw(split: str, found: _Found, root: Path, names: Sequence[str]) -> RawSplit:
    index = {name: at for at, name in enumerate(names)}
    labels = np.array([index.get(name, -1) for name in found.names], dtype=np.int64)
    boxes = RawBoxes(
        picture=np.array(found.picture, dtype=np.int64),
        corners=np.array(found.corners, dtype=np.float64).reshape(-1, 4),
        labels=labels,
        where=found.where.__getitem__,
        unknown={int(row): shortened(found.names[row]) for row in np.flatnonzero(labels < 0)},
        difficult=np.array(found.difficult, dtype=bool),
    )
    sizes = np.array(found.sizes, dtype=np.int64).reshape(-1, 2)
    pictures = FilePictures.of_paths(root, found.paths)
    return RawSplit(split, tuple(names), tuple(range(len(names))), pictures, tuple(found.ids), sizes, boxes, found.problems)


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _pixels(text: str) -> int:
    number = _number(text)
    return round(number) if 0 < number < 2**31 else 0
