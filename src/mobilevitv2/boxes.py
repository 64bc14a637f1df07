"""Boxes: two ways to write them, what they overlap, their distance from anchors, and which anchor answers for which object.

A box is four numbers: (centre x, centre y, width, height), called "centred" here, or (left, top, right, bottom), called "corners".
Shape letters: B batch, T true boxes of a picture (padded), A anchors.
"""

from __future__ import annotations

import torch
from torch import Tensor

IOU_EPSILON = 1e-5
"""Added to the union, as in the official code: two boxes without area have IoU zero."""

_MATCHING_ELEMENTS = 2**25
"""Overlaps held at a time while matching (128 MiB as float32)."""


def to_corners(boxes: Tensor) -> Tensor:
    """(..., 4) centred -> (..., 4) corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def to_centred(boxes: Tensor) -> Tensor:
    """(..., 4) corners -> (..., 4) centred."""
    start, end = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(start + end) / 2, end - start], dim=-1)


def overlaps(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every pair: corners (..., T, 4) and (..., A, 4) -> (..., T, A) in 0..1."""
    first, second = first[..., :, None, :], second[..., None, :, :]
    width = (torch.minimum(first[..., 2], second[..., 2]) - torch.maximum(first[..., 0], second[..., 0])).clamp(min=0)
    height = (torch.minimum(first[..., 3], second[..., 3]) - torch.maximum(first[..., 1], second[..., 1])).clamp(min=0)
    shared = width * height
    return shared / (_area(first) + _area(second) - shared + IOU_EPSILON)


def _area(corners: Tensor) -> Tensor:
    return (corners[..., 2] - corners[..., 0]).clamp(min=0) * (corners[..., 3] - corners[..., 1]).clamp(min=0)


def encode(boxes: Tensor, anchors: Tensor, variances: tuple[float, float]) -> Tensor:
    """What a network has to answer at `anchors` to mean `boxes`; both centred (..., 4), with positive sides.

    Args:
        boxes: (..., 4), centred.
        anchors: (..., 4), centred.
        variances: the unit of the centre's distance, in anchor sides, and of the logarithm of the sides' ratio.
    """
    centre = (boxes[..., :2] - anchors[..., :2]) / anchors[..., 2:] / variances[0]
    size = torch.log(boxes[..., 2:] / anchors[..., 2:]) / variances[1]
    return torch.cat([centre, size], dim=-1)


def decode(offsets: Tensor, anchors: Tensor, variances: tuple[float, float]) -> Tensor:
    """The inverse of `encode`: raw offsets (..., 4) at `anchors` (centred) -> boxes (..., 4), centred."""
    centre = offsets[..., :2] * variances[0] * anchors[..., 2:] + anchors[..., :2]
    size = torch.exp(offsets[..., 2:] * variances[1]) * anchors[..., 2:]
    return torch.cat([centre, size], dim=-1)


def match(boxes: Tensor, valid: Tensor, anchors: Tensor, *, threshold: float) -> tuple[Tensor, Tensor]:
    """Which true box each anchor answers for: the one it overlaps most; and each true box gets its best anchor in any case.

    Where several true boxes have the same best anchor, the last of them gets it, as in the official code.

    Args:
        boxes: true boxes (B, T, 4), corners; T at least 1.
        valid: (B, T), False where a row is padding.
        anchors: (A, 4), corners.
        threshold: overlap from which an anchor answers.

    Returns:
        Indices of true boxes (B, A), int64, and whether the anchor answers for one at all (B, A), bool.
    """
    step = max(1, _MATCHING_ELEMENTS // (boxes.shape[1] * anchors.shape[0]))
    if boxes.shape[0] <= step:
        return _match(boxes, valid, anchors, threshold)
    parts = [
        _match(boxes[start : start + step], valid[start : start + step], anchors, threshold)
        for start in range(0, boxes.shape[0], step)
    ]
    return torch.cat([index for index, _ in parts]), torch.cat([answers for _, answers in parts])


def _match(boxes: Tensor, valid: Tensor, anchors: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    shared = torch.where(valid[..., None], overlaps(boxes, anchors), -1.0)  # (B, T, A)
    best, index = shared.max(dim=1)  # (B, A)
    favourite = shared.argmax(dim=2)  # (B, T)
    place = torch.arange(boxes.shape[1], device=boxes.device).expand_as(favourite)
    nobody = torch.full_like(index, -1)
    # The largest index wins, which is the last true box; padding never does.
    claimed = nobody.scatter_reduce(1, favourite, torch.where(valid, place, -1), reduce="amax")
    return torch.where(claimed >= 0, claimed, index), (claimed >= 0) | (best >= threshold)
