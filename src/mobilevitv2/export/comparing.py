"""How far two sets of outputs lie apart: numbers for the report, and whether they agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mobilevitv2.export.request import Suppression
from mobilevitv2.runtime.metadata import Metadata

Array = np.ndarray[Any, Any]
Detections = tuple[Array, Array, Array]
"""Scores, labels and boxes, of one picture."""
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 3e-2, "int8": 0.5, "int8-weights": 0.2}
"""Largest difference of an output as a share of its largest value, for each precision."""
TIES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 3e-2, "int8": 0.1, "int8-weights": 0.05}
"""Two answers tie where PyTorch's own scores for them lie so near, as a share of the largest."""
LEAST_AGREEMENT = {"fp32": 0.999, "fp16": 0.99, "bf16": 0.97, "int8": 0.9, "int8-weights": 0.95}
"""Of answers that are not a tie within the tolerance."""
SAME_BOX = 0.9
"""Overlap from which two boxes are the same one."""
SURE = 0.3
"""Detections from this score on are looked for."""


@dataclass(frozen=True)
class Comparison:
    """The outputs of a file beside those of PyTorch.

    Attributes:
        differences: for each output the largest absolute difference; of detections that went through suppression inside the file,
            over those that PyTorch finds at the same place.
        largest: for each output the largest absolute value in PyTorch.
        agreement: share of equal answers: labels of pictures, classes of pixels, detections found again; 1 where there are none.
        decided: the same among answers that are no tie within the tolerance; of detections the smaller of PyTorch's that the file
            has, and the file's clear ones that PyTorch has.
        answers: what agreement counts: "top-1 labels", "pixels", "detections".
        count: how many were compared.
    """

    differences: Mapping[str, float]
    largest: Mapping[str, float]
    agreement: float
    decided: float
    answers: str
    count: int

    @property
    def relative(self) -> float:
        """The largest difference as a share of its output's largest value."""
        shares = [value / max(self.largest[name], 1e-12) for name, value in self.differences.items()]
        return max(shares, default=0.0)

    def fits(self, precision: str, tolerance: float | None = None) -> bool:
        """Whether the file may be handed over."""
        limit = TOLERANCES[precision] if tolerance is None else tolerance
        close = all(np.isfinite(value) for value in self.differences.values()) and self.relative <= limit
        return bool(close and self.decided >= LEAST_AGREEMENT[precision])


def compare(metadata: Metadata, file: Mapping[str, Array], torch_raw: Mapping[str, Array], *, tolerance: float) -> Comparison:
    """The file's outputs beside PyTorch's raw ones.

    Args:
        metadata: of the file.
        file: its outputs for a batch.
        torch_raw: of the same batch: "logits" and, at their size, "probabilities" or "map_logits" (N, classes, H, W) where the file
            gives those; "scores" and "boxes" of a detector.
        tolerance: within which two answers tie.
    """
    if metadata.task == "detect":
        return _detections(metadata, file, torch_raw, tolerance)
    if metadata.task == "segment" and "mask" in file:
        return _masks(file["mask"], torch_raw["map_logits"], tolerance)
    name = next(iter(file))
    truth = torch_raw[name]
    differences, largest = {name: _largest(file[name] - truth)}, {name: _largest(truth)}
    same, decided, count = _same_classes(file[name], truth, tolerance * _largest(truth))
    return Comparison(differences, largest, same, decided, "pixels" if metadata.task == "segment" else "top-1 labels", count)


def vanished(file: Mapping[str, Array], torch_raw: Mapping[str, Array]) -> str | None:
    """Why two sets of outputs cannot be compared, or would agree and prove nothing, as a sentence; None where they can be."""
    zero = [name for name, value in torch_raw.items() if not np.any(value)]
    if zero:
        return f"PyTorch itself gives only zeros for {' and '.join(zero)}, so nothing could be compared; check the weights."
    if "count" in file:  # suppression inside: as long as what it finds
        return None
    for name, value in file.items():
        expected = torch_raw["map_logits"][:, 0] if name == "mask" else torch_raw.get(name)
        if expected is None or value.shape != expected.shape:
            told = "nothing" if expected is None else str(expected.shape)
            return f"the file gives {name} in the shape {value.shape}, PyTorch {told}."
    return None


def relative_differences(file: Mapping[str, Array], truth: Mapping[str, Array]) -> dict[str, float]:
    """For each output the largest difference as a share of its largest value; infinite where it is no number."""
    shares = {}
    for name, expected in truth.items():
        share = _largest(file[name].astype(np.float64) - expected) / max(_largest(expected), 1e-12)
        shares[name] = share if np.isfinite(share) else float("inf")
    return shares


def _largest(values: Array) -> float:
    return float(np.abs(values.astype(np.float64)).max()) if values.size else 0.0


def _same_classes(file: Array, truth: Array, tie: float) -> tuple[float, float, int]:
    """Share of equal best classes along axis 1, the same where the best leads by more than `tie`, and how many there are."""
    best = truth.argmax(axis=1)
    chosen = file.argmax(axis=1)
    lost = np.take_along_axis(truth, best[:, None], 1) - np.take_along_axis(truth, chosen[:, None], 1)
    return float((best == chosen).mean()), float((lost <= tie).mean()), best.size


def _masks(mask: Array, logits: Array, tolerance: float) -> Comparison:
    best = logits.argmax(axis=1)
    chosen = np.clip(mask.astype(np.int64), 0, logits.shape[1] - 1)
    lost = (np.take_along_axis(logits, best[:, None], 1) - np.take_along_axis(logits, chosen[:, None], 1))[:, 0]
    # What the file chose is judged by PyTorch's scores: how much worse it is than the best, at worst one pixel in a thousand aside.
    worst = float(np.quantile(lost, 0.999))
    decided = float((lost <= tolerance * _largest(logits)).mean())
    return Comparison({"mask": worst}, {"mask": _largest(logits)}, float((best == chosen).mean()), decided, "pixels", best.size)


def _detections(metadata: Metadata, file: Mapping[str, Array], truth: Mapping[str, Array], tolerance: float) -> Comparison:
    from mobilevitv2.runtime import postprocessing

    limits = metadata.suppression or asdict(Suppression())
    threshold = float(limits["threshold"])
    options: dict[str, Any] = {"iou": limits["iou"]}
    options |= {name: int(limits[name]) for name in ("candidates", "detections")}
    inside = "count" in file
    largest = {"scores": _largest(truth["scores"]), "boxes": max(_largest(truth["boxes"]), 1.0)}
    differences = {name: 0.0 if inside else _largest(file[name] - truth[name]) for name in largest}
    slack = 2 * TOLERANCES[metadata.precision] * largest["scores"]
    found = decided = total = backwards = given = 0
    for index in range(len(truth["scores"])):
        raw = (truth["scores"][index], truth["boxes"][index])
        sure = max(min(SURE, 0.5 * float(raw[0].max())), threshold)
        wanted = postprocessing.suppress(*raw, threshold=sure, **options)
        if inside:
            got = _given(file, index)
            apart = _pair_differences(raw, wanted, got, largest)
            differences = {name: float(np.maximum(value, apart[name])) for name, value in differences.items()}
        else:
            got = postprocessing.suppress(file["scores"][index], file["boxes"][index], threshold=0.9 * sure, **options)
        hits, near = _found_again(wanted, got, tolerance, slack)
        found, decided, total = found + hits, decided + near, total + len(wanted[0])
        clear = _those(got, got[0] > sure + tolerance)
        there = postprocessing.suppress(*raw, **{**options, "threshold": min(0.9 * sure, threshold), "detections": raw[0].size})
        backwards, given = backwards + _found_again(clear, there, tolerance, slack)[1], given + len(clear[0])
    shares = (decided / total if total else 1.0, backwards / given if given else 1.0)
    return Comparison(differences, largest, found / total if total else 1.0, min(shares), "detections", total)


def _given(file: Mapping[str, Array], index: int) -> Detections:
    """What the file found on one picture, with the rows behind the last detection left away."""
    count = int(file["count"][index])
    scores, labels, boxes = (file[name][index][:count] for name in ("scores", "labels", "boxes"))
    return scores, labels, boxes


def _those(detections: Detections, which: Array) -> Detections:
    scores, labels, boxes = detections
    return scores[which], labels[which], boxes[which]


def _pair_differences(
    raw: tuple[Array, Array], wanted: Detections, got: Detections, largest: Mapping[str, float]
) -> dict[str, float]:
    """The largest differences of score and of corner over the pairs of a wanted detection and the one of the file at its place.

    Two anchors of nearly one score may change places in the suppression, so a pair is measured from whichever of PyTorch's anchors
    of that class and place is nearest to what the file gives; `_found_again` judges which one should have been chosen.
    """
    worst = dict.fromkeys(largest, 0.0)
    for score, label, box in zip(*wanted, strict=True):
        partner = _partner(label, box, got)
        if partner is None:
            continue
        told, corners = got[0][partner], got[2][partner]
        place = _overlaps(corners, raw[1]) >= SAME_BOX
        scores, boxes = np.append(raw[0][place, label], score), np.concatenate([raw[1][place], box[None]])
        apart = {"scores": np.abs(scores - told), "boxes": np.abs(boxes - corners).max(axis=1)}
        nearest = int(np.max([apart[name] / largest[name] for name in apart], axis=0).argmin())
        # A score that is no number is no pair's smallest difference: it must show.
        worst = {name: float(np.maximum(value, apart[name][nearest])) for name, value in worst.items()}
    return worst


def _partner(label: Array, box: Array, detections: Detections) -> int | None:
    """Index of the detection of this class that is the same box; None where there is none."""
    overlap = np.where(detections[1] == label, _overlaps(box, detections[2]), 0.0)
    return int(overlap.argmax()) if len(overlap) and overlap.max() >= SAME_BOX else None


def _found_again(wanted: Detections, got: Detections, tolerance: float, slack: float) -> tuple[int, int]:
    """How many of `wanted` have a box of their class at their place, and how many of them or else a near tie elsewhere.

    Only a box whose score is within `slack` of the wanted one counts for the second.
    """
    hits = near = 0
    for score, label, box in zip(*wanted, strict=True):
        partner = _partner(label, box, got)
        same = got[1] == label
        overlap = _overlaps(box, got[2][same])
        # Two boxes of nearly one score may change places in the suppression; then the other one is there.
        tie = bool(len(overlap)) and bool((np.abs(got[0][same] - score) <= tolerance).any()) and overlap.max() >= 0.4
        hits += partner is not None
        near += tie or (partner is not None and bool(np.abs(got[0][partner] - score) <= slack))
    return hits, near


def _overlaps(box: Array, others: Array) -> Array:
    wide = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    high = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    shared = np.maximum(wide, 0) * np.maximum(high, 0)
    area = (box[2] - box[0]) * (box[3] - box[1]) + (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    out: Array = shared / np.maximum(area - shared, 1e-12)
    return out
