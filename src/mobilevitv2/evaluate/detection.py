"""How well a detector finds the objects on one split of a data set: COCO's average precision."""

from __future__ import annotations

from mobilevitv2.evaluate.box_counts import DetectionCounter, DetectionResult

__all__ = ["DetectionCounter", "DetectionResult"]
