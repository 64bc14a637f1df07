"""Boxes found and boxes to find, kept picture by picture until COCO's average precision is taken of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mobilevitv2.errors import ConfigurationError, DataError
from mobilevitv2.evaluate.coco import FoundBoxes, TrueBoxes, average_precision, mean
from mobilevitv2.evaluate.pixel_counts import left_out, percent
from mobilevitv2.text_table import aligned

AP50, AP75 = 0, 5
"""Places of the thresholds .5 and .75 among .5, .55, ... .95."""
ALL, SMALL, MEDIUM, LARGE = range(4)


class Annotated(Protocol):
    """What counting needs of a detection split."""

    @property
    def name(self) -> str:
        """ "train", "validation" or "test"."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""

    def __len__(self) -> int: ...

    def describe(self, index: int) -> str:
        """The picture's path, for messages."""

    def boxes(self, index: int) -> NDArray[np.float32]:
        """(n, 4) left, top, right, bottom in pixels."""

    def labels(self, index: int) -> NDArray[np.int64]:
        """(n,) indices into `classes`."""

    def crowd(self, index: int) -> NDArray[np.bool_]:
        """(n,) regions of many objects."""

    def areas(self, index: int) -> NDArray[np.float32]:
        """(n,) in square pixels."""

    def difficult(self, index: int) -> NDArray[np.bool_]:
        """(n,) objects that need not be found."""


class Numbered(Protocol):
    """The ids that a detection split came with."""

    @property
    def image_ids(self) -> tuple[int | str, ...]:
        """Of each picture."""

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Of each class."""


class DetectionCounter:
    """Collects detections and compares them with the annotations of a split.

    Pictures that nothing was added for are left out, with their annotations. As in COCO, crowds are neither to be found nor wrong
    to find, and an object's annotated area decides whether it is small; PASCAL VOC's difficult objects count as crowds do.
    """

    def __init__(self, split: Annotated) -> None:
        self.split = split
        self.found: dict[int, FoundBoxes] = {}

    def add(self, index: int, scores: Any, labels: Any, boxes: Any) -> None:
        """The detections of one picture, in any order.

        Args:
            index: of the picture in the split.
            scores: (n,), an array, a list or a tensor on any device, as the others.
            labels: (n,) indices into the split's classes.
            boxes: (n, 4) left, top, right, bottom in pixels of the picture.

        Raises:
            ConfigurationError: an index, shapes or labels that do not fit, or numbers that are none.
        """
        if not 0 <= index < len(self.split):
            raise ConfigurationError(f"picture {index} is not in split {self.split.name!r}, which has {len(self.split)}")
        found = FoundBoxes(
            boxes=_array(boxes, np.float32).reshape(-1, 4),
            labels=_array(labels, np.int64),
            scores=_array(scores, np.float32),
        )
        count, classes = len(found.boxes), len(self.split.classes)
        if found.labels.shape != (count,) or found.scores.shape != (count,):
            raise ConfigurationError(
                f"picture {index} has {count} boxes, but labels of shape {found.labels.shape} and scores of {found.scores.shape}"
            )
        if wrong := _outside(found.labels, classes):
            raise ConfigurationError(f"picture {index} has detections of class {wrong}; there are 0 to {classes - 1}")
        if not (np.isfinite(found.boxes).all() and np.isfinite(found.scores).all()):
            raise ConfigurationError(f"picture {index} has boxes or scores that are no numbers; the model's weights may be damaged")
        self.found[index] = found

    def result(self, *, unreadable: Sequence[str] = ()) -> DetectionResult:
        """The metrics over the pictures that were added.

        Raises:
            DataError: none was added. MissingDependency: pycocotools is not installed.
        """
        if not self.found:
            why = f"; the first: {unreadable[0]}" if unreadable else ""
            raise DataError(f"none of the {len(self.split)} pictures of {self.split.name!r} has an answer{why}")
        indices = sorted(self.found)
        truth = [self._truth(index) for index in indices]
        classes = self.split.classes
        precision = average_precision(truth, [self.found[index] for index in indices], len(classes))
        counted = [each.labels[~(each.crowd | each.difficult)] for each in truth]
        boxes = np.bincount(np.concatenate(counted), minlength=len(classes))
        by_class = precision.by_class
        return DetectionResult(
            split=self.split.name,
            classes=classes,
            count=len(indices),
            ap=mean(by_class[..., ALL]),
            ap50=mean(by_class[AP50, :, ALL]),
            ap75=mean(by_class[AP75, :, ALL]),
            ap_small=mean(by_class[..., SMALL]),
            ap_medium=mean(by_class[..., MEDIUM]),
            ap_large=mean(by_class[..., LARGE]),
            recall=mean(precision.recall[..., ALL]),
            per_class={name: mean(by_class[:, i, ALL]) for i, name in enumerate(classes)},
            per_class_ap50={name: mean(by_class[AP50, i : i + 1, ALL]) for i, name in enumerate(classes)},
            per_class_boxes={name: int(boxes[i]) for i, name in enumerate(classes)},
            found=self.found,
            unreadable=tuple(unreadable),
        )

    def _truth(self, index: int) -> TrueBoxes:
        split = self.split
        truth = TrueBoxes(
            np.asarray(split.boxes(index), dtype=np.float32).reshape(-1, 4),
            np.asarray(split.labels(index), dtype=np.int64),
            np.asarray(split.crowd(index), dtype=bool),
            np.asarray(split.areas(index), dtype=np.float32),
            np.asarray(split.difficult(index), dtype=bool),
        )
        if wrong := _outside(truth.labels, len(split.classes)):
            raise DataError(f"{split.describe(index)} has boxes of class {wrong}; there are 0 to {len(split.classes) - 1}")
        return truth


def _array(values: Any, dtype: Any) -> NDArray[Any]:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=dtype)


def _outside(labels: NDArray[np.int64], classes: int) -> str:
    """The labels that are no class, listed; "" where there are none."""
    wrong = np.unique(labels[(labels < 0) | (labels >= classes)]).tolist()
    return ", ".join(map(str, wrong[:8])) + (", ..." if len(wrong) > 8 else "")


@dataclass(frozen=True, eq=False)
class DetectionResult:
    """COCO's metrics on the pictures that could be read. Shares are 0..1; None where there is no true box to find."""

    split: str
    classes: tuple[str, ...]
    count: int
    """Pictures."""
    ap: float | None
    """Average precision, the mean over ten overlaps (.5 to .95) and the classes that have boxes."""
    ap50: float | None
    """At overlap .5."""
    ap75: float | None
    ap_small: float | None
    """Of objects with an area below 32 x 32 pixels."""
    ap_medium: float | None
    ap_large: float | None
    """Of objects with an area above 96 x 96 pixels."""
    recall: float | None
    """Average recall: the mean share of boxes found, over the overlaps and classes, with at most 100 detections a class."""
    per_class: dict[str, float | None]
    """AP of each class."""
    per_class_ap50: dict[str, float | None]
    per_class_boxes: dict[str, int]
    """Boxes to find, without crowds and difficult ones."""
    found: dict[int, FoundBoxes] = field(repr=False)
    """For each picture that could be read, by its index in the split, what was found."""
    unreadable: tuple[str, ...] = ()
    """The reason for each picture left out; it names the picture."""

    @property
    def title(self) -> str:
        """One line that heads pictures of this result."""
        return f"{self.split}: {self.count:,} pictures, AP {percent(self.ap)} %, AP50 {percent(self.ap50)} %"

    def to_dict(self) -> dict[str, Any]:
        """All but the boxes found, as JSON can hold it."""
        return {
            "split": self.split,
            "count": self.count,
            "ap": self.ap,
            "ap50": self.ap50,
            "ap75": self.ap75,
            "ap_small": self.ap_small,
            "ap_medium": self.ap_medium,
            "ap_large": self.ap_large,
            "recall": self.recall,
            "per_class": self.per_class,
            "per_class_ap50": self.per_class_ap50,
            "per_class_boxes": self.per_class_boxes,
            "unreadable": list(self.unreadable),
        }

    def coco_results(self, split: Numbered) -> list[dict[str, Any]]:
        """What was found in COCO's result format, with the ids of the data: a list of image_id, category_id, bbox and score."""
        return [
            {
                "image_id": split.image_ids[index],
                "category_id": split.category_ids[label],
                "bbox": [round(value, 2) for value in (left, top, right - left, bottom - top)],
                "score": round(score, 5),
            }
            for index, found in sorted(self.found.items())
            for (left, top, right, bottom), label, score in zip(*(each.tolist() for each in found), strict=True)
        ]

    def table(self) -> str:
        """The metrics as plain text: all, each class that has boxes, unreadable pictures."""
        shown = (self.ap, self.ap50, self.ap75, self.ap_small, self.ap_medium, self.ap_large, self.recall)
        head = ("", "pictures", "boxes", "AP %", "AP50 %", "AP75 %", "small %", "medium %", "large %", "recall %")
        boxes = f"{sum(self.per_class_boxes.values()):,}"
        text = aligned([head, (self.split, f"{self.count:,}", boxes, *map(percent, shown))], right=range(1, len(head)))
        lines = [("class", "boxes", "AP %", "AP50 %")]
        for name, boxes_of_class in self.per_class_boxes.items():
            if boxes_of_class:
                ap, ap50 = self.per_class[name], self.per_class_ap50[name]
                lines.append((name, f"{boxes_of_class:,}", percent(ap), percent(ap50)))
        without = len(self.classes) - len(lines) + 1
        text += "\n\n" + aligned(lines, right={1, 2, 3})
        return text + (f"\n  ({without} classes without boxes)" if without else "") + left_out(self.unreadable)
