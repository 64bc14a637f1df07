"""Data sets for object detection: pictures with boxes, in splits, whatever they lie in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mobilevitv2.data.box_folders import LAYOUTS, read_box_folder
from mobilevitv2.data.box_tables import BOX_FORMATS, read_box_hub, read_box_parquet, read_saved_boxes
from mobilevitv2.data.boxes import BoolArray, BoxTable, FloatArray, RawSplit, put_right
from mobilevitv2.data.coco import read_coco_file
from mobilevitv2.data.headers import filled_sizes
from mobilevitv2.data.opening import Readers, read_source
from mobilevitv2.data.problems import Problem
from mobilevitv2.data.sources import IntArray, PictureSource
from mobilevitv2.data.splits import ORDER, InSplits, PictureReader, check_fraction, stratified
from mobilevitv2.data.yolo import read_yolo_file
from mobilevitv2.errors import ConfigurationError, DataError


@dataclass(frozen=True, eq=False)
class DetectionSplit(PictureReader):
    """One split: pictures, and the boxes in each. Small to pickle; pictures are read when asked for."""

    name: str
    """"train", "validation" or "test"."""
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    """The id of each class in the source's own numbering, COCO's with its gaps say; 0..N - 1 where it has none."""
    image_ids: tuple[int | str, ...] = field(repr=False)
    """The id of each picture in the source: COCO's number, or the file's name without its suffix."""
    pictures: PictureSource = field(repr=False)
    sizes: IntArray | None = field(repr=False)
    """(n, 2): width and height in pixels as annotated, or as in the file where nothing is; 0 where unknown."""
    table: BoxTable = field(repr=False)
    """The boxes of all pictures."""

    def __post_init__(self) -> None:
        count = len(self.pictures)
        if len(self.table) != count or len(self.image_ids) != count or len(self.category_ids) != len(self.classes):
            raise ConfigurationError(
                f"split {self.name!r}: {count} pictures, but boxes of {len(self.table)}, {len(self.image_ids)} ids; "
                f"{len(self.classes)} classes, but {len(self.category_ids)} ids of classes"
            )

    def __len__(self) -> int:
        return len(self.pictures)

    def boxes(self, index: int) -> FloatArray:
        """The boxes of a picture, (boxes, 4): left, top, right, bottom in pixels of the upright picture; inside it, never empty."""
        return self.table.corners[self.table.rows(index)]

    def labels(self, index: int) -> IntArray:
        """The class of each box, (boxes,): indices into `classes`."""
        return self.table.labels[self.table.rows(index)]

    def areas(self, index: int) -> FloatArray:
        """Square pixels of each object, (boxes,): COCO's own, of its outline, where given; else of the box."""
        return self.table.areas[self.table.rows(index)]

    def crowd(self, index: int) -> BoolArray:
        """Whether each box holds a crowd (COCO), (boxes,): nothing to learn from, and nothing counts against finding it."""
        return self.table.crowd[self.table.rows(index)]

    def difficult(self, index: int) -> BoolArray:
        """Whether each box is called difficult (PASCAL VOC), (boxes,)."""
        return self.table.difficult[self.table.rows(index)]

    def select(self, indices: Sequence[int] | NDArray[np.integer]) -> DetectionSplit:
        """Some of the pictures, in the order given."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            image_ids=tuple(self.image_ids[index] for index in chosen),
            pictures=self.pictures.select(chosen),
            sizes=None if self.sizes is None else self.sizes[chosen],
            table=self.table.select(chosen),
        )


@dataclass(frozen=True)
class DetectionData(InSplits[DetectionSplit]):
    """A data set: its classes, and up to three splits."""

    source: str
    classes: tuple[str, ...]
    splits: dict[str, DetectionSplit]
    problems: tuple[Problem, ...] = field(default=(), repr=False)
    """What was broken, and left out or put right when the data were opened; `check_detection_data` reports it."""


def open_detection_data(
    source: str | os.PathLike[str], *, validation_fraction: float = 0.1, seed: int = 0, box_format: str = "xywh"
) -> DetectionData:
    """Find out what a data set is, and list its pictures and boxes; none is decoded yet.

    Broken boxes and pictures do not stop it: they are left out or clipped, and remembered in `problems`.

    Args:
        source: a folder with COCO json (`annotations/instances_train.json` or beside the pictures), PASCAL VOC xml
            (`Annotations`, `JPEGImages`, `ImageSets/Main`) or YOLO txt (`data.yaml`, `images`, `labels`); a single COCO json or
            YOLO yaml file; parquet files, a folder written by `save_to_disk` of `datasets`, or a data set of the hub
            ("owner/name" or "owner/name:config") with columns of pictures and of boxes.
        validation_fraction: where there is no validation split, this part of the train split becomes one, of the pictures of
            each class alike (each picture counts for the rarest class in it); 0 for none. The test split is never touched.
        seed: chooses which pictures that are; the same seed gives the same ones.
        box_format: what the four numbers of a box in a table are, "xywh" (left, top, width, height: COCO's), "xyxy" or "cxcywh", in
            pixels, or in shares of width and height: "relative-xywh" and so on. Files say it themselves.

    VOC's own annotations count pixels from 1, both ends inside, so 1 is taken off left and top. Others in its format (labelImg's
    and such) hold the edges of the box and are taken as they are; files that name a VOC data base are taken for VOC's own.

    Raises:
        DataError: nothing there, no layout known, or nothing usable in it; the message says what was found.
        ConfigurationError: validation_fraction outside 0..1, or an unknown box_format.
        MissingDependency: tables need `datasets`.
    """
    check_fraction(validation_fraction)
    if box_format not in BOX_FORMATS:
        raise ConfigurationError(f"box_format={box_format!r} is not known; choose among {', '.join(BOX_FORMATS)}")
    readers: Readers[list[RawSplit]] = Readers(
        read_box_folder,
        partial(read_box_parquet, box_format=box_format),
        partial(read_saved_boxes, box_format=box_format),
        partial(read_box_hub, box_format=box_format),
        LAYOUTS,
        {".json": read_coco_file, ".yaml": read_yolo_file, ".yml": read_yolo_file},
    )
    name = os.fspath(source)
    found = {split.name: split for split in read_source(name, readers)}
    classes, splits, problems = _united(found)
    if not any(len(split) for split in splits.values()):
        listed = "; ".join(str(problem) for problem in problems[:3])
        raise DataError(f"{name} has no picture that can be used" + (f": {listed}" if listed else ""))
    if validation_fraction > 0 and "train" in splits and "validation" not in splits:
        train = splits["train"]
        kept, held = stratified(_rarest_class(train), validation_fraction, seed)
        if held.size:
            splits |= {"train": train.select(kept), "validation": replace(train.select(held), name="validation")}
    return DetectionData(name, classes, {split: splits[split] for split in ORDER if split in splits}, tuple(problems))


def _united(found: Mapping[str, RawSplit]) -> tuple[tuple[str, ...], dict[str, DetectionSplit], list[Problem]]:
    """One list of classes for all splits: those of the train split in its order, then what others add."""
    order = [split for split in ORDER if split in found]
    index: dict[str, int] = {}
    for split in order:
        for name in found[split].names:
            index.setdefault(name, len(index))
    classes, splits, problems = tuple(index), {}, []
    for split in order:
        raw = found[split]
        raw.sizes = filled_sizes(raw.pictures, raw.sizes)
        table, broken = put_right(raw)
        problems += raw.problems + broken
        to_common = np.array([index[name] for name in raw.names], dtype=np.int64)
        table = replace(table, labels=to_common[table.labels])
        ids = dict(zip(raw.names, raw.category_ids, strict=True))
        others = {name: number for other in found.values() for name, number in zip(other.names, other.category_ids, strict=True)}
        numbers = tuple(ids.get(name, others[name]) for name in classes)
        if len(set(numbers)) < len(numbers):  # splits that number their classes differently
            numbers = tuple(range(len(classes)))
        sizes = raw.sizes if bool((raw.sizes > 0).any()) else None
        splits[split] = DetectionSplit(split, classes, numbers, raw.image_ids, raw.pictures, sizes, table)
    return classes, splits, problems


def _rarest_class(split: DetectionSplit) -> IntArray:
    """Of the classes in each picture the one with the fewest boxes in the split, (n,); one more than all for no boxes."""
    table = split.table
    rank = np.empty(len(split.classes) + 1, dtype=np.int64)  # 0 for the rarest
    counts = np.bincount(table.labels, minlength=len(split.classes))
    rank[np.append(np.argsort(counts, kind="stable"), len(split.classes))] = np.arange(len(split.classes) + 1)
    rarest = np.full(len(split), len(split.classes), dtype=np.int64)
    np.minimum.at(rarest, table.pictures(), rank[table.labels])
    return rarest
