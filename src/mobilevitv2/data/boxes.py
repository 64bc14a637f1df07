"""Boxes of many pictures as flat arrays: as a file has them, put right, and ready to use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mobilevitv2.data.problems import Problem
from mobilevitv2.data.sources import IntArray, PictureSource

FloatArray: TypeAlias = NDArray[np.float32]
BoolArray: TypeAlias = NDArray[np.bool_]

_SLACK = 1.0
"""Pixels that a box may reach beyond its picture without a word: tools round so."""


@dataclass(frozen=True, eq=False)
class BoxTable:
    """The boxes of n pictures one after another; those of picture i are rows offsets[i] to offsets[i + 1]."""

    offsets: IntArray
    """(n + 1,)."""
    corners: FloatArray
    """(m, 4): left, top, right, bottom in pixels."""
    labels: IntArray
    """(m,)."""
    areas: FloatArray
    """(m,) square pixels."""
    crowd: BoolArray
    """(m,)."""
    difficult: BoolArray
    """(m,)."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def rows(self, index: int) -> slice:
        """The rows of one picture."""
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"picture {index} of {count}")
        index %= count
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def counts(self) -> IntArray:
        """Boxes of each picture, (n,)."""
        return np.diff(self.offsets)

    def pictures(self) -> IntArray:
        """The picture of each box, (m,)."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.counts())

    def select(self, indices: IntArray) -> BoxTable:
        """The boxes of some pictures, in the order given."""
        counts = self.counts()[indices]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        rows = np.arange(int(offsets[-1])) + np.repeat(self.offsets[:-1][indices] - offsets[:-1], counts)
        return BoxTable(offsets, self.corners[rows], self.labels[rows], self.areas[rows], self.crowd[rows], self.difficult[rows])


@dataclass(eq=False)
class RawBoxes:
    """The boxes of one split as a file has them, in any order, right or wrong."""

    picture: IntArray
    """(m,), the number of each box's picture."""
    corners: NDArray[np.float64]
    """(m, 4): left, top, right, bottom in pixels."""
    labels: IntArray
    """(m,), indices into the split's names; -1 where the class is unknown."""
    where: Callable[[int], str]
    """Where a box is written, for messages."""
    unknown: dict[int, str] = field(default_factory=dict)
    """What the class of a box reads where it is unknown."""
    areas: NDArray[np.float64] | None = None
    """(m,), NaN where not given."""
    crowd: BoolArray | None = None
    difficult: BoolArray | None = None


@dataclass(eq=False)
class RawSplit:
    """One split as a reader found it."""

    name: str
    names: tuple[str, ...]
    """Class names, as this split has them."""
    category_ids: tuple[int, ...]
    pictures: PictureSource
    image_ids: tuple[int | str, ...]
    sizes: IntArray
    """(n, 2): width and height; 0 where not written."""
    boxes: RawBoxes
    problems: list[Problem] = field(default_factory=list)
    relative: bool = False
    """Whether the corners are shares of width and height."""


def put_right(split: RawSplit) -> tuple[BoxTable, list[Problem]]:
    """Drop what is no box, clip what reaches out of its picture, drop what is there twice; each is remembered."""
    raw, problems = split.boxes, list[Problem]()
    size = split.sizes[raw.picture].astype(np.float64).reshape(-1, 2)
    sized = np.asarray((size > 0).all(axis=1))
    corners = raw.corners.astype(np.float64).reshape(-1, 4)
    if split.relative:
        corners = corners * np.tile(size, 2)
    kept = np.ones(len(corners), dtype=bool)

    def drop(which: BoolArray, what: str, detail: Callable[[int], str]) -> None:
        rows = np.flatnonzero(which & kept).tolist()
        problems.extend(Problem(split.name, raw.where(row), what, detail(row)) for row in rows)
        kept[which] = False

    drop(raw.labels < 0, "unknown class", lambda row: raw.unknown.get(row, ""))
    finite = np.asarray((np.isfinite(corners) & (np.abs(corners) < 1e9)).all(axis=1))
    drop(~finite, "box that is no four numbers", lambda row: _written(raw.corners[row]))
    # Seen as they will be kept: a box thinner than 32 bits can tell has no area.
    corners = np.where(finite[:, None], corners, 0.0).astype(np.float32).astype(np.float64)
    if split.relative:
        drop(~sized, "box in a picture of unknown size", lambda row: "")
    empty = (corners[:, 2] <= corners[:, 0]) | (corners[:, 3] <= corners[:, 1])
    drop(empty, "box of no area", lambda row: _written(raw.corners[row]))
    limits = np.where(sized[:, None], np.tile(size, 2), np.inf)
    clipped = np.clip(corners, 0.0, limits)
    gone = (clipped[:, 2] <= clipped[:, 0]) | (clipped[:, 3] <= clipped[:, 1])
    drop(gone, "box outside its picture", lambda row: f"{_written(corners[row])} in {_size(size[row])}")
    reaching = (np.abs(clipped - corners) > _SLACK).any(axis=1) & kept
    for row in np.flatnonzero(reaching):
        detail = f"{_written(corners[row])} in {_size(size[row])}"
        problems.append(Problem(split.name, raw.where(int(row)), "box partly outside its picture", detail, "clipped"))
    drop(_repeated(raw, clipped), "box that is there twice", lambda row: _written(clipped[row]))
    return _table(split, clipped.astype(np.float32), kept), problems


def _repeated(raw: RawBoxes, corners: NDArray[np.float64]) -> BoolArray:
    """Whether a box of the same picture, class and corners came before, (m,)."""
    if not len(corners):
        return np.zeros(0, dtype=bool)
    keys = np.column_stack([raw.picture.astype(np.float64), raw.labels.astype(np.float64), corners])
    _, first = np.unique(keys, axis=0, return_index=True)
    repeated = np.ones(len(corners), dtype=bool)
    repeated[first] = False
    return repeated


def _table(split: RawSplit, corners: FloatArray, kept: BoolArray) -> BoxTable:
    raw = split.boxes
    rows = np.flatnonzero(kept)
    rows = rows[np.argsort(raw.picture[rows], kind="stable")]
    counts = np.bincount(raw.picture[rows], minlength=len(split.pictures))
    corners = corners[rows]
    own = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    given = np.zeros(len(rows)) if raw.areas is None else raw.areas[rows]
    areas = np.where(np.isfinite(given) & (given > 0) & (given < 1e18), given, own).astype(np.float32)
    none = np.zeros(len(rows), dtype=bool)
    return BoxTable(
        np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
        corners,
        raw.labels[rows],
        areas,
        none if raw.crowd is None else raw.crowd[rows],
        none if raw.difficult is None else raw.difficult[rows],
    )


def _written(corners: Sequence[float] | NDArray[np.float64]) -> str:
    return " ".join(f"{float(number):.6g}" for number in corners)


def _size(size: NDArray[np.float64]) -> str:
    return f"{size[0]:g} x {size[1]:g}"
