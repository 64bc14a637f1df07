"""Boxes in the columns of tables: parquet files, folders that `datasets` saved, data sets of the hub."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mobilevitv2.data.boxes import RawBoxes, RawSplit
from mobilevitv2.data.problems import shortened
from mobilevitv2.data.tables import (
    IMAGE_COLUMNS,
    Table,
    check_picture_column,
    choose_column,
    import_datasets,
    load_hub,
    load_parquet,
    load_saved,
)
from mobilevitv2.errors import DataError

BOX_FORMATS = ("xywh", "xyxy", "cxcywh", "relative-xywh", "relative-xyxy", "relative-cxcywh")
_OBJECT_COLUMNS = ("objects", "annotations", "object", "annotation", "instances", "faces", "targets")
_BOX_NAMES = ("bbox", "bboxes", "boxes", "box")
_CLASS_NAMES = ("category", "categories", "category_id", "category_ids", "label", "labels", "class", "classes", "class_labels")
_CROWD_NAMES = ("iscrowd", "is_crowd", "crowd")
_ID_NAMES = ("image_id", "id", "file_name")


def read_box_parquet(files: Sequence[Path], *, box_format: str) -> list[RawSplit]:
    """Parquet files, the split of each by its name or its folder's."""

    def choose(features: Mapping[str, Any], where: str) -> list[str]:
        return _columns(features, where).all

    return _united(load_parquet(files, choose), box_format)


def read_saved_boxes(folder: Path, *, box_format: str) -> list[RawSplit]:
    """A folder that `save_to_disk` wrote."""
    return _united(load_saved(folder), box_format)


def read_box_hub(name: str, *, box_format: str) -> list[RawSplit]:
    """A data set of the hub, "owner/name" or "owner/name:config"."""
    return _united(load_hub(name), box_format)


class _Columns:
    """Which column, and which field in it, holds what."""

    def __init__(self, image: str, holder: str | None, fields: Mapping[str, Any], features: Mapping[str, Any], where: str) -> None:
        self.image, self.holder, self.fields = image, holder, fields
        self.box = _first(_BOX_NAMES, fields)
        self.label = _first([name for name in _CLASS_NAMES if name != holder], fields)
        self.area = _first(("area", "areas"), fields)
        self.crowd = _first(_CROWD_NAMES, fields)
        self.id = _first(_ID_NAMES, features) if holder or _first(("image_id",), features) else None
        self.width, self.height = _first(("width",), features), _first(("height",), features)
        if self.box is None:
            raise DataError(
                f"{where}: no boxes; a column objects of bbox and category is needed. Columns: {shortened(features, 200)}"
            )

    @property
    def all(self) -> list[str]:
        """The columns to load."""
        inner = [self.holder] if self.holder else [self.box, self.label, self.area, self.crowd]
        return [name for name in dict.fromkeys([self.image, *inner, self.id, self.width, self.height]) if name]


def _first(names: Sequence[str], among: Mapping[str, Any]) -> str | None:
    lowered = {name.lower(): name for name in among}
    return next((lowered[name] for name in names if name in lowered), None)


def _columns(features: Mapping[str, Any], where: str) -> _Columns:
    datasets = import_datasets()
    image = choose_column(features, IMAGE_COLUMNS, datasets.Image, "pictures", where)
    check_picture_column(features, image, where)
    for name in [*_OBJECT_COLUMNS, *features]:
        fields = _fields(features.get(name))
        if fields and _first(_BOX_NAMES, fields):
            return _Columns(image, name, fields, features, where)
    return _Columns(image, None, features, features, where)


def _fields(feature: Any) -> Mapping[str, Any]:
    """The fields of a struct, or of the structs in a list."""
    while isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    while type(feature).__name__ in ("List", "LargeList", "Sequence") and hasattr(feature, "feature"):
        feature = feature.feature
    return feature if isinstance(feature, dict) else {}


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """The names of a ClassLabel inside lists, None for other types."""
    while isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    while hasattr(feature, "feature"):
        feature = feature.feature
    return tuple(feature.names) if type(feature).__name__ == "ClassLabel" else None


def _united(tables: Mapping[str, Table], box_format: str) -> list[RawSplit]:
    columns = {split: _columns(table.features, table.where) for split, table in tables.items()}
    cells = {split: _cells(table, columns[split]) for split, table in tables.items()}
    names: tuple[str, ...] | None = ("object",)
    known = [one for one in columns.values() if one.label]
    if known:
        names = _class_names(known[0].fields[known[0].label]) if known[0].label else None
    if names is None:
        names = _names_seen([label for rows in cells.values() for row in rows for label in row["label"]])
    return [_raw(table, columns[split], cells[split], names, box_format) for split, table in tables.items()]


def _names_seen(labels: Sequence[object]) -> tuple[str, ...]:
    """Texts sorted; whole numbers as classes 0 up to the highest."""
    texts = {label for label in labels if isinstance(label, str)}
    if texts:
        return tuple(sorted(texts))
    highest = max((label for label in labels if isinstance(label, int) and 0 <= label < 100_000), default=-1)
    if highest < 0:
        raise DataError("the data have no box with a class: none of the rows has a category")
    return tuple(map(str, range(highest + 1)))


def _cells(table: Table, columns: _Columns) -> list[dict[str, list[Any]]]:
    """For each row the lists of boxes, labels, areas and crowd flags, as long as each other."""
    if len(table.rows) == 0:
        return []
    held = table.arrow(columns.holder).to_pylist() if columns.holder else None
    wanted = {"box": columns.box, "label": columns.label, "area": columns.area, "crowd": columns.crowd}
    flat = {} if held is not None else {name: table.arrow(name).to_pylist() for name in wanted.values() if name}
    rows = []
    for number in range(len(table.rows)):
        row: dict[str, list[Any]] = {}
        cell = held[number] if held is not None else {name: values[number] for name, values in flat.items()}
        for key, name in wanted.items():
            row[key] = _list(cell, name)
        count = len(row["box"])
        for key in wanted:
            row[key] = (row[key] + [None] * count)[:count] if key != "label" or columns.label else [0] * count
        rows.append(row)
    return rows


def _list(cell: Any, name: str | None) -> list[Any]:
    if cell is None or name is None:
        return []
    if isinstance(cell, list):
        return [one.get(name) if isinstance(one, dict) else None for one in cell]
    values = cell.get(name)
    return values if isinstance(values, list) else []


def _raw(
    table: Table, columns: _Columns, rows: Sequence[Mapping[str, list[Any]]], names: tuple[str, ...], box_format: str
) -> RawSplit:
    pictures = table.pictures(columns.image)
    index: dict[object, int] = {name: at for at, name in enumerate(names)} | {at: at for at in range(len(names))}
    boxes = [box for row in rows for box in row["box"]]
    values = [label for row in rows for label in row["label"]]
    labels = np.array([index.get(value, -1) if isinstance(value, (int, str)) else -1 for value in values], dtype=np.int64)
    counts = [len(row["box"]) for row in rows]
    picture = np.repeat(np.arange(len(rows), dtype=np.int64), counts)
    first = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
    raw = RawBoxes(
        picture=picture,
        corners=_corners(boxes, box_format),
        labels=labels,
        where=lambda row: f"{pictures.describe(int(picture[row]))} box {row - int(first[picture[row]]) + 1}",
        unknown={int(row): f"category {shortened(values[row])}" for row in np.flatnonzero(labels < 0)},
        areas=np.array([_number(area) for row in rows for area in row["area"]], dtype=np.float64),
        crowd=np.array([crowd in (1, True) for row in rows for crowd in row["crowd"]], dtype=bool),
    )
    sizes = np.zeros((len(rows), 2), dtype=np.int64)
    for at, name in enumerate((columns.width, columns.height)):
        if name:
            sizes[:, at] = [_pixels(value) for value in table.arrow(name).to_pylist()]
    relative = box_format.startswith("relative-")
    ids = _ids(table, columns)
    return RawSplit(table.split, names, tuple(range(len(names))), pictures, ids, sizes, raw, relative=relative)


def _ids(table: Table, columns: _Columns) -> tuple[int | str, ...]:
    """The ids of a column, if they are numbers or words and no two the same; else the rows' numbers."""
    values = table.arrow(columns.id).to_pylist() if columns.id else []
    good = values and all(isinstance(value, (int, str)) for value in values) and len(set(values)) == len(values)
    return tuple(values) if good else tuple(range(len(table.rows)))


def _corners(boxes: Sequence[object], box_format: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    corners = np.full((len(boxes), 4), math.nan)
    for row, box in enumerate(boxes):
        if isinstance(box, list) and len(box) == 4:
            corners[row] = [_number(value) for value in box]
    kind = box_format.removeprefix("relative-")
    with np.errstate(all="ignore"):  # numbers beyond all measure are dropped later
        if kind == "cxcywh":
            corners[:, :2] -= corners[:, 2:] / 2
        if kind != "xyxy":
            corners[:, 2:] += corners[:, :2]
    return corners


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _pixels(value: object) -> int:
    number = _number(value)
    return round(number) if 0 < number < 2**31 else 0
