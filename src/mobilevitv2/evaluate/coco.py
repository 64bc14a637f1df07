"""Average precision as COCO defines it, by its own code (pycocotools), on boxes from anywhere."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mobilevitv2.errors import MissingDependency

FloatArray = NDArray[np.float64]
MAX_DETECTIONS = 100
"""Of each picture and class the best so many count."""


class TrueBoxes(NamedTuple):
    """The annotations of one picture; the first dimension of each is the number of boxes."""

    boxes: NDArray[np.float32]
    """(n, 4) left, top, right, bottom in pixels."""
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    """Regions of many objects: detections inside them are neither right nor wrong."""
    areas: NDArray[np.float32]
    """In square pixels; decides between small, medium and large."""
    difficult: NDArray[np.bool_]
    """Objects that need not be found; detections of them are neither right nor wrong."""


class FoundBoxes(NamedTuple):
    """The detections of one picture."""

    boxes: NDArray[np.float32]
    """(n, 4) left, top, right, bottom in pixels."""
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class AveragePrecision:
    """Averages over what has true boxes; NaN where nothing has."""

    by_class: FloatArray
    """(thresholds, classes, sizes): thresholds .5 to .95, sizes all, small (below 32 x 32), medium, large (above 96 x 96)."""
    recall: FloatArray
    """(thresholds, classes, sizes), the share of the true boxes that are found."""


def average_precision(truth: Sequence[TrueBoxes], found: Sequence[FoundBoxes], classes: int) -> AveragePrecision:
    """Compare all pictures of a data set.

    Args:
        truth: of each picture.
        found: of each picture, in the same order.
        classes: how many there are.

    Raises:
        MissingDependency: pycocotools is not installed.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        evaluator = _evaluator(_index(_annotations(truth), len(truth), classes), _index(_detections(found), len(truth), classes))
        evaluator.evaluate()
        evaluator.accumulate()
    precision, recall = evaluator.eval["precision"][..., -1], evaluator.eval["recall"][..., -1]  # at most 100 detections
    without_truth = (precision < 0).any(axis=1)
    by_class = np.where(without_truth, np.nan, precision.mean(axis=1))
    return AveragePrecision(by_class, np.where(recall < 0, np.nan, recall))


def mean(values: FloatArray) -> float | None:
    """The mean without NaN; None of nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def _annotations(truth: Sequence[TrueBoxes]) -> list[dict[str, Any]]:
    return [
        {
            "image_id": image,
            "category_id": int(label),
            "bbox": _corner_and_size(box),
            "area": float(area),
            "iscrowd": int(crowd),
            "difficult": bool(difficult),
        }
        for image, annotated in enumerate(truth)
        for box, label, crowd, area, difficult in zip(*annotated, strict=True)
    ]


def _detections(found: Sequence[FoundBoxes]) -> list[dict[str, Any]]:
    rows = []
    for image, detected in enumerate(found):
        for box, label, score in zip(*detected, strict=True):
            place = _corner_and_size(box)
            rows.append({
                "image_id": image, "category_id": int(label), "bbox": place, "area": place[2] * place[3], "score": float(score)
            })  # fmt: skip
    return rows


def _corner_and_size(box: NDArray[np.float32]) -> list[float]:
    left, top, right, bottom = box.tolist()
    return [left, top, right - left, bottom - top]


def _index(annotations: list[dict[str, Any]], images: int, classes: int) -> Any:
    """Boxes as a `COCO`."""
    from_coco, _ = _pycocotools()
    for number, annotation in enumerate(annotations, 1):  # 0 would mean "not matched"
        annotation["id"] = number
    index = from_coco()
    index.dataset = {
        "images": [{"id": image} for image in range(images)],
        "categories": [{"id": label} for label in range(classes)],
        "annotations": annotations,
    }
    index.createIndex()
    return index


def _evaluator(truth: Any, found: Any) -> Any:
    _, base = _pycocotools()

    class Evaluator(base):  # type: ignore[misc, valid-type]
        """COCO's evaluation, and PASCAL VOC's rule for difficult objects: they are left out with all that is found on them.

        Crowds have that rule already, but are overlapped by whatever lies inside; difficult objects are overlapped as others are.
        """

        def computeIoU(self, image: int, label: int) -> Any:  # noqa: N802
            annotations = self._gts[image, label]
            crowd = [each["iscrowd"] for each in annotations]
            for each in annotations:
                each["iscrowd"] = each["iscrowd"] and not each["difficult"]
            overlaps = super().computeIoU(image, label)
            for each, was in zip(annotations, crowd, strict=True):
                each["iscrowd"] = was
            return overlaps

    for annotation in truth.dataset["annotations"]:
        annotation["iscrowd"] = int(annotation["iscrowd"] or annotation["difficult"])
    evaluator = Evaluator(truth, found, "bbox")
    evaluator.params.maxDets = [MAX_DETECTIONS]
    return evaluator


def require_pycocotools() -> None:
    """MissingDependency, with what to install, where pycocotools is not there."""
    _pycocotools()


def _pycocotools() -> tuple[Any, Any]:
    try:
        from pycocotools.coco import COCO  # no types shipped
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise MissingDependency("average precision needs pycocotools: pip install mobilevitv2[train]") from error
    return COCO, COCOeval
