"""How well a segmenter finds the class of each pixel of one split of a data set."""

from __future__ import annotations

from mobilevitv2.evaluate.pixel_counts import (
    SegmentationCounter,
    SegmentationResult,
    SegmentationScores,
    segmentation_scores,
)

__all__ = ["SegmentationCounter", "SegmentationResult", "SegmentationScores", "segmentation_scores"]
