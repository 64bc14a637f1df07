"""From scores and boxes at every anchor to detections: all classes at once, the best first, no two of a class on one object."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from mobilevitv2.errors import ConfigurationError

FIRST_LOOK = 1000
"""Candidates looked at first. Suppression takes them in the order of their scores, so the best few hundred detections seldom need
more, and what they are does not depend on the rest."""


class Detections(NamedTuple):
    """What was found in one picture, the surest first."""

    scores: Tensor
    """(n,), in 0..1."""
    labels: Tensor
    """(n,), int64."""
    boxes: Tensor
    """(n, 4), as they came."""


def detector_answers(outputs: Any) -> tuple[Tensor, Tensor]:
    """Class scores (pictures, anchors, classes + 1) and centred boxes (pictures, anchors, 4) of a detector's output.

    Raises:
        ConfigurationError: anything else.
    """
    logits, boxes = getattr(outputs, "logits", None), getattr(outputs, "pred_boxes", None)
    if not isinstance(logits, Tensor) or not isinstance(boxes, Tensor):
        raise ConfigurationError(
            f"outputs of type {type(outputs).__name__} have no logits and pred_boxes: pass what MobileViTV2ForObjectDetection gave"
        )
    if logits.ndim != 3 or boxes.shape != (*logits.shape[:2], 4):
        raise ConfigurationError(
            f"logits of shape {tuple(logits.shape)} and pred_boxes of shape {tuple(boxes.shape)} are no detector's: they are "
            "(pictures, anchors, classes + 1) and (pictures, anchors, 4)"
        )
    return logits, boxes


def check_detection_numbers(threshold: float, nms_threshold: float, candidates: int, max_detections: int) -> None:
    """Refuse shares outside 0..1 and counts below 1."""
    for name, share in (("threshold", threshold), ("nms_threshold", nms_threshold)):
        if not 0 <= share <= 1:
            raise ConfigurationError(f"{name} is {share}: give a number from 0 to 1")
    for name, count in (("candidates", candidates), ("max_detections", max_detections)):
        if count < 1:
            raise ConfigurationError(f"{name} is {count}: ask for 1 or more")


def suppress(
    scores: Tensor,
    boxes: Tensor,
    *,
    threshold: float,
    nms_threshold: float,
    candidates: int,
    max_detections: int,
) -> Detections:
    """The detections of one picture.

    Args:
        scores: probabilities (anchors, classes), background not among them.
        boxes: (anchors, 4), corners.
        threshold: candidates score more than this.
        nms_threshold: of two candidates of a class that overlap by more than this the surer one stays.
        candidates: at most so many of each class, the surest, take part.
        max_detections: at most so many are given, the surest.
    """
    classes = scores.shape[1]
    flat = scores.flatten()
    passing = (flat > threshold).nonzero()[:, 0]
    found = flat[passing]
    number = min(len(found), max(FIRST_LOOK, max_detections))
    while True:
        best, order = found.topk(number)
        place = passing[order]
        anchor, label = place // classes, place % classes
        if number > candidates:
            taking_part = _rank_in_class(label, classes) < candidates
            best, anchor, label = best[taking_part], anchor[taking_part], label[taking_part]
        kept = _kept(boxes[anchor], best, label, nms_threshold)[:max_detections]
        if len(kept) == max_detections or number == len(found):
            return Detections(best[kept], label[kept], boxes[anchor[kept]])
        number = min(len(found), 4 * number)


def _kept(boxes: Tensor, scores: Tensor, labels: Tensor, nms_threshold: float) -> Tensor:
    if len(scores) == 0:
        return labels
    # torchvision tells classes apart by moving their boxes far from each other. That needs coordinates that are not negative, and
    # digits that float32 does not have: with 80 classes, overlaps near the threshold would fall on the wrong side of it.
    if boxes.device.type != "mps":  # which has no float64
        boxes = boxes.double()
    kept: Tensor = batched_nms(boxes - boxes.min(), scores.to(boxes.dtype), labels, nms_threshold)
    return kept


def _rank_in_class(labels: Tensor, classes: int) -> Tensor:
    """How many labels of the same class stand before each: 0, 0, 1 for a, b, a."""
    order = labels.argsort(stable=True)
    counts = torch.zeros(classes, dtype=torch.int64, device=labels.device).scatter_add_(0, labels, torch.ones_like(labels))
    starts = counts.cumsum(0) - counts
    sorted_rank = torch.arange(len(labels), device=labels.device) - starts[labels[order]]
    return torch.empty_like(sorted_rank).scatter_(0, order, sorted_rank)
