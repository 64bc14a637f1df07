"""Pixels counted by true and predicted class: one confusion matrix, and the scores of segmentation that come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobilevitv2.data.sources import IntArray
from mobilevitv2.errors import ConfigurationError, DataError
from mobilevitv2.text_table import aligned

OTHER = "(another class)"
_UNREADABLE_SHOWN = 5


class SegmentationCounter:
    """Counts pixels by (true class, predicted class).

    The counts are sums: those of several processes or devices can be added (`counts`), and the scores are those of all pixels.

    Args:
        num_classes: of the data.
        ignore_index: in the truth, pixels that do not count.
        device: where to count; the masks are brought there. None: the CPU.
        other: predictions may also be `num_classes`, for a class that the data lack; the matrix then has one more column.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int = 255,
        device: str | torch.device | None = None,
        other: bool = False,
    ) -> None:
        if num_classes < 1:
            raise ConfigurationError(f"num_classes={num_classes} leaves nothing to count; the data should have at least 1.")
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.columns = num_classes + other
        self.counts = torch.zeros(num_classes, self.columns, dtype=torch.int64, device=device or "cpu")

    def add(self, predicted: Tensor, truth: Tensor) -> Tensor:
        """Count the pixels of one picture, or of a batch.

        Args:
            predicted: class indices (..., H, W) of any integer type.
            truth: class indices of the same shape.

        Returns:
            What was added: pixels (num_classes, columns).

        Raises:
            ConfigurationError: shapes that differ, or predictions that are no class.
            DataError: truth that is neither a class nor `ignore_index`, with the values.
        """
        if predicted.shape != truth.shape:
            raise ConfigurationError(
                f"predicted classes of shape {tuple(predicted.shape)} and true ones of {tuple(truth.shape)} are not of the same "
                "pixels; bring the prediction to the size of the mask"
            )
        device = self.counts.device
        predicted, truth = predicted.to(device).long(), truth.to(device).long()
        counted = truth != self.ignore_index
        predicted, truth = predicted[counted], truth[counted]
        self._check(truth, self.num_classes, DataError, "the mask has class numbers", f", {self.ignore_index} (ignored)")
        self._check(predicted, self.columns, ConfigurationError, "the prediction has class numbers", "")
        added = torch.bincount(truth * self.columns + predicted, minlength=self.counts.numel()).view_as(self.counts)
        self.counts += added
        return added

    def _check(self, values: Tensor, limit: int, error: type[Exception], what: str, more: str) -> None:
        if not values.numel():
            return
        low, high = values.aminmax()
        if low < 0 or high >= limit:
            wrong = np.unique(values[(values < 0) | (values >= limit)].cpu().numpy()).tolist()
            listed = ", ".join(map(str, wrong[:8])) + (", ..." if len(wrong) > 8 else "")
            raise error(f"{what} {listed}; {self.num_classes} classes have 0 to {limit - 1}{more}")

    def scores(self) -> SegmentationScores:
        """The scores of what was counted so far."""
        return segmentation_scores(self.counts.cpu().numpy())


@dataclass(frozen=True, eq=False)
class SegmentationScores:
    """Shares, 0..1, of one confusion matrix; NaN where there is nothing to take a share of."""

    miou: float
    """Mean over the classes that have an IoU."""
    pixel_accuracy: float
    mean_accuracy: float
    """Mean of the classes' accuracies (recall), over those with true pixels."""
    iou: np.ndarray[Any, np.dtype[np.float64]]
    """Intersection over union of each class; NaN for those that have no pixel, neither true nor predicted."""
    accuracy: np.ndarray[Any, np.dtype[np.float64]]
    """Share of each class's pixels that are found; NaN for classes without true pixels."""


def segmentation_scores(confusion: IntArray) -> SegmentationScores:
    """Scores of a matrix of pixels (true class, predicted class); a column beyond the classes holds other predictions."""
    classes = len(confusion)
    right, true, predicted = confusion.diagonal(), confusion.sum(1), confusion[:, :classes].sum(0)
    iou, accuracy = _share(right, true + predicted - right), _share(right, true)
    return SegmentationScores(
        miou=_mean(iou),
        pixel_accuracy=float(right.sum() / true.sum()) if true.sum() else float("nan"),
        mean_accuracy=_mean(accuracy),
        iou=iou,
        accuracy=accuracy,
    )


def _share(part: IntArray, whole: IntArray) -> np.ndarray[Any, np.dtype[np.float64]]:
    shares = np.full(len(part), np.nan)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares


def _mean(shares: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    known = shares[~np.isnan(shares)]
    return float(known.mean()) if known.size else float("nan")


@dataclass(frozen=True, eq=False)
class SegmentationResult:
    """Metrics over all pixels of the pictures that could be read. Shares are 0..1."""

    split: str
    classes: tuple[str, ...]
    count: int
    """Pictures."""
    miou: float
    """Mean intersection over union, over the classes that have one."""
    pixel_accuracy: float
    mean_accuracy: float
    """Mean of the classes' accuracies, over those with true pixels."""
    per_class_iou: dict[str, float | None]
    """None for classes that have no pixel, neither in the masks nor in the predictions."""
    per_class_accuracy: dict[str, float | None]
    """Share of each class's pixels that are found; None for classes without pixels in the masks."""
    confusion: IntArray = field(repr=False)
    """Pixels, (true class, predicted class); where the model predicted classes that the data lack, one more column for those."""
    picture_miou: tuple[float | None, ...] = field(default=(), repr=False)
    """For each picture of the split its own mean IoU; None for those that cannot be read or have no labelled pixel."""
    masks: dict[int, np.ndarray[Any, Any]] = field(default_factory=dict, repr=False)
    """Predicted classes (height, width) of the pictures that were to be kept, by their index in the split."""
    unreadable: tuple[str, ...] = ()
    """The reason for each picture left out; it names the picture."""

    @classmethod
    def of_counts(
        cls,
        confusion: IntArray,
        *,
        split: str,
        classes: Sequence[str],
        count: int,
        picture_miou: Sequence[float | None] = (),
        masks: Mapping[int, np.ndarray[Any, Any]] | None = None,
        unreadable: Sequence[str] = (),
    ) -> SegmentationResult:
        """From a matrix of pixels, as `SegmentationCounter.counts` has it."""
        scores = segmentation_scores(confusion)
        if confusion.shape[1] > len(classes) and not confusion[:, len(classes) :].any():
            confusion = confusion[:, : len(classes)]
        return cls(
            split=split,
            classes=tuple(classes),
            count=count,
            miou=scores.miou,
            pixel_accuracy=scores.pixel_accuracy,
            mean_accuracy=scores.mean_accuracy,
            per_class_iou=_by_name(classes, scores.iou),
            per_class_accuracy=_by_name(classes, scores.accuracy),
            confusion=confusion,
            picture_miou=tuple(picture_miou),
            masks=dict(masks or {}),
            unreadable=tuple(unreadable),
        )

    @property
    def predicted_names(self) -> tuple[str, ...]:
        """Names of the columns of `confusion`."""
        return self.classes if self.confusion.shape[1] == len(self.classes) else (*self.classes, OTHER)

    @property
    def counted(self) -> str:
        """What `confusion` counts."""
        return "pixels"

    @property
    def title(self) -> str:
        """One line that heads pictures of this result."""
        return f"{self.split}: {self.count:,} pictures, mIoU {100 * self.miou:.1f} %"

    def to_dict(self) -> dict[str, Any]:
        """All but the single pictures, as JSON can hold it."""
        return {
            "split": self.split,
            "count": self.count,
            "miou": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "per_class_iou": self.per_class_iou,
            "per_class_accuracy": self.per_class_accuracy,
            "confusion": {
                "classes": list(self.classes),
                "predicted": list(self.predicted_names),
                "pixels": self.confusion.tolist(),
            },
            "unreadable": list(self.unreadable),
        }

    def rows(self) -> list[tuple[str, float | None, float | None, float, str, float]]:
        """For each class its name, IoU, accuracy, share of the labelled pixels, and the class most often taken for it with the
        share of its pixels."""
        total, rows = max(1, int(self.confusion.sum())), []
        for index, name in enumerate(self.classes):
            errors = self.confusion[index].copy()
            pixels = int(errors.sum())
            errors[index] = 0
            taken_for = self.predicted_names[int(errors.argmax())] if errors.any() else ""
            wrong = int(errors.max()) / pixels if pixels else 0.0
            rows.append((name, self.per_class_iou[name], self.per_class_accuracy[name], pixels / total, taken_for, wrong))
        return rows

    def table(self) -> str:
        """The metrics as plain text: all, each class, unreadable pictures."""
        text = aligned(
            [
                ("", "pictures", "mIoU %", "mean accuracy %", "pixel accuracy %"),
                (self.split, f"{self.count:,}", *map(percent, (self.miou, self.mean_accuracy, self.pixel_accuracy))),
            ],
            right={1, 2, 3, 4},
        )
        lines = [("class", "IoU %", "accuracy %", "of pixels %", "most often taken for")]
        for name, iou, accuracy, share, taken_for, wrong in self.rows():
            mistake = f"{taken_for} ({100 * wrong:.1f} %)" if taken_for else ""
            lines.append((name, percent(iou), percent(accuracy), percent(share), mistake))
        return text + "\n\n" + aligned(lines, right={1, 2, 3}) + left_out(self.unreadable)


def _by_name(classes: Sequence[str], shares: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float | None]:
    return {name: None if np.isnan(share) else float(share) for name, share in zip(classes, shares, strict=True)}


def percent(share: float | None) -> str:
    """A share 0..1 as per cent with two digits; a dash where there is none."""
    return "-" if share is None or np.isnan(share) else f"{100 * share:.2f}"


def left_out(unreadable: Sequence[str]) -> str:
    """What a table says at its end of pictures that could not be read; nothing where all could."""
    if not unreadable:
        return ""
    more = f"\n  ... and {len(unreadable) - _UNREADABLE_SHOWN} more" if len(unreadable) > _UNREADABLE_SHOWN else ""
    return f"\n\nleft out, unreadable: {len(unreadable)}\n  " + "\n  ".join(unreadable[:_UNREADABLE_SHOWN]) + more
