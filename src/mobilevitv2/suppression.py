"""From scores and boxes at every anchor to detections: all classes at once, the best first, no two of a class on one object."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

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


@torch.no_grad()
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
