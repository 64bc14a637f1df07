"""What the files leave undone, in numpy: probabilities, class maps at the picture's size, suppression."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
STRIP_ELEMENTS = 2**24


def probabilities(logits: Array, activation: str) -> Array:
    """(..., classes) of any float -> probabilities, float32; "softmax" or "sigmoid"."""
    logits = logits.astype(np.float32)
    if activation == "sigmoid":
        return 0.5 * (1 + np.tanh(0.5 * logits))
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Array = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def class_map(logits: Array, size: tuple[int, int]) -> Array:
    """Logits (classes, h, w) -> class of each pixel (height, width), bilinear with corner pixels on corner pixels.

    In strips, because 150 classes at 12 million pixels are 7 GB.
    """
    height, width = size
    classes, rows, columns = logits.shape
    left, right, share = _between(columns, width)
    wide = logits[..., left] + (logits[..., right] - logits[..., left]) * share  # (classes, rows, width)
    above, below, share = _between(rows, height)
    mask = np.empty(size, np.uint8 if classes <= 256 else np.int16)
    step = max(1, STRIP_ELEMENTS // (classes * width))
    for start in range(0, height, step):
        part = slice(start, start + step)
        upper, lower = wide[:, above[part]], wide[:, below[part]]
        mask[part] = (upper + (lower - upper) * share[part, None]).argmax(axis=0)
    return mask


def _between(have: int, want: int) -> tuple[Array, Array, Array]:
    """For each of `want` places on `have` values: the value before, the one after, and how far it lies towards the latter."""
    place = np.arange(want, dtype=np.float32) * np.float32((have - 1) / max(want - 1, 1))
    before = np.minimum(place.astype(np.int64), have - 1)
    return before, np.minimum(before + 1, have - 1), (place - before).astype(np.float32)


def resized_mask(mask: Array, size: tuple[int, int]) -> Array:
    """A finished class map at another (height, width): of the nearest pixel, corner pixels on corner pixels."""
    rows, columns = (
        np.rint(np.arange(want) * ((have - 1) / max(want - 1, 1))).astype(np.int64)
        for have, want in zip(mask.shape, size, strict=True)
    )
    out: Array = mask[rows[:, None], columns[None]]
    return out


def suppress(
    scores: Array, boxes: Array, *, threshold: float, iou: float, candidates: int, detections: int
) -> tuple[Array, Array, Array]:
    """The detections of one picture, the surest first: scores (n,), labels (n,), boxes (n, 4).

    Args:
        scores: (anchors, classes), without background.
        boxes: (anchors, 4), corners.
        threshold: what scores more than this takes part.
        iou: of two boxes of a class that share more than this the surer one stays.
        candidates: of each class that take part at most.
        detections: that are given at most.
    """
    kept: list[tuple[Array, int, Array]] = []
    for label in range(scores.shape[1]):
        column = scores[:, label]
        passing = np.flatnonzero(column > threshold)
        order = passing[np.argsort(-column[passing], kind="stable")][:candidates]
        stays = order[_survivors(boxes[order].astype(np.float64), iou)]
        if len(stays):
            kept.append((column[stays], label, boxes[stays]))
    if not kept:
        return np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros((0, 4), np.float32)
    all_scores = np.concatenate([each[0] for each in kept])
    labels = np.concatenate([np.full(len(each[0]), each[1], np.int64) for each in kept])
    corners = np.concatenate([each[2] for each in kept])
    best = np.argsort(-all_scores, kind="stable")[:detections]
    return all_scores[best], labels[best], corners[best]


def _survivors(boxes: Array, iou: float) -> Array:
    """Indices of the boxes (n, 4), the surest first, that no surer one that stays overlaps by more than `iou`."""
    left, top, right, bottom = boxes.T
    area = np.maximum(right - left, 0) * np.maximum(bottom - top, 0)
    waiting, stays = np.arange(len(boxes)), []
    while len(waiting):
        first, rest = waiting[0], waiting[1:]
        stays.append(first)
        wide = np.minimum(right[first], right[rest]) - np.maximum(left[first], left[rest])
        high = np.minimum(bottom[first], bottom[rest]) - np.maximum(top[first], top[rest])
        shared = np.maximum(wide, 0) * np.maximum(high, 0)
        waiting = rest[shared <= iou * (area[first] + area[rest] - shared)]
    return np.array(stays, np.int64)
