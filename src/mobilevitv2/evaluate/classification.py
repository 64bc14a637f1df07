"""Accuracy of a classifier on one split of a data set: over all, by class, by group, and what is taken for what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mobilevitv2.data.classification import PictureSplit
from mobilevitv2.data.sources import IntArray
from mobilevitv2.errors import ConfigurationError, DataError
from mobilevitv2.evaluate.class_names import classes_of_outputs, output_names
from mobilevitv2.evaluate.confusion import save_confusion_matrix
from mobilevitv2.evaluate.pixel_counts import OTHER, left_out
from mobilevitv2.evaluate.prepared import Views, prepared
from mobilevitv2.evaluate.running import logits_of, running, with_bar
from mobilevitv2.text_table import aligned

__all__ = ["ClassificationResult", "evaluate_classification", "save_confusion_matrix"]

_WORST = 10


@dataclass(frozen=True, eq=False)
class ClassificationResult:
    """Metrics on the pictures that could be read. Accuracies are shares, 0..1."""

    split: str
    classes: tuple[str, ...]
    count: int
    top1: float
    top5: float
    """The true class among the five best (of fewer classes, among all)."""
    loss: float
    """Mean cross-entropy in nats, over the pictures whose class the model has."""
    per_class: dict[str, float | None]
    """None for classes without a picture."""
    per_group: dict[str, float]
    """Top-1 of each group, sorted by name; empty where the data have no groups."""
    group_counts: dict[str, int]
    confusion: IntArray
    """Pictures, (true class, predicted class); where the model has classes that the data lack, one more column for those."""
    predictions: IntArray = field(repr=False)
    """For each picture of the split the predicted class, (n,); len(classes) for one the data lack, -1 for unreadable ones."""
    unreadable: tuple[str, ...] = ()
    """The reason for each picture left out; it names the picture."""

    @property
    def predicted_names(self) -> tuple[str, ...]:
        """Names of the columns of `confusion`."""
        return self.classes if self.confusion.shape[1] == len(self.classes) else (*self.classes, OTHER)

    @property
    def counted(self) -> str:
        """What `confusion` counts."""
        return "pictures"

    @property
    def title(self) -> str:
        """One line that heads pictures of this result."""
        return f"{self.split}: {self.count:,} pictures, top-1 {100 * self.top1:.1f} %"

    def to_dict(self) -> dict[str, Any]:
        """All but `predictions`, as JSON can hold it."""
        return {
            "split": self.split,
            "count": self.count,
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "per_class": self.per_class,
            "per_group": {name: {"count": self.group_counts[name], "top1": top1} for name, top1 in self.per_group.items()},
            "confusion": {
                "classes": list(self.classes),
                "predicted": list(self.predicted_names),
                "counts": self.confusion.tolist(),
            },
            "unreadable": list(self.unreadable),
        }

    def table(self) -> str:
        """The metrics as plain text: all, groups, the weakest classes, unreadable pictures."""
        rows = [("", "pictures", "top-1 %"), (self.split, f"{self.count:,}", f"{100 * self.top1:.2f}")]
        rows += [(f"  {name}", f"{self.group_counts[name]:,}", f"{100 * top1:.2f}") for name, top1 in self.per_group.items()]
        text = aligned(rows, right={1, 2})
        text += f"\n\ntop-5 {100 * self.top5:.2f} %, loss {self.loss:.4f}"
        if weakest := self._weakest():
            text += "\n\n" + aligned([("weakest classes", "pictures", "top-1 %", "most often taken for"), *weakest], right={1, 2})
        return text + left_out(self.unreadable)

    def _weakest(self) -> list[tuple[str, str, str, str]]:
        known = [(top1, index) for index, top1 in enumerate(self.per_class.values()) if top1 is not None and top1 < 1]
        rows = []
        for top1, index in sorted(known)[:_WORST]:
            errors = self.confusion[index].copy()
            errors[index] = 0
            taken_for = f"{self.predicted_names[errors.argmax()]} ({errors.max()})"
            rows.append((self.classes[index], f"{self.confusion[index].sum():,}", f"{100 * top1:.1f}", taken_for))
        return rows


def evaluate_classification(
    model: Callable[..., Any],
    split: PictureSplit,
    *,
    processor: Callable[..., Any],
    batch_size: int = 64,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    workers: int = 0,
    progress: bool = False,
    class_names: Sequence[str] | None = None,
) -> ClassificationResult:
    """Run a classifier over a split and count.

    All outputs of the model compete, also those of classes that the data lack.

    Args:
        model: MobileViTV2ForImageClassification, another module, or any function. It is called with pixel values
            (n, channels, height, width), a tensor that numpy functions take as well, and gives logits (n, outputs) as a tensor, an
            array, a tuple that begins with them, or an object with `.logits`. A module is put into evaluation mode meanwhile.
        split: the pictures.
        processor: makes the pixel values of one Pillow image; MobileViTV2ImageProcessor, or any function.
        batch_size: pictures at a time.
        device: where to compute; a module is moved there meanwhile. None: where the module is, the CPU for functions.
        dtype: arithmetic of a module under autocast, torch.bfloat16 say; None for that of its weights.
        workers: processes that decode and prepare pictures ahead of the model; 0 for none.
        progress: show a progress bar if stderr is a terminal.
        class_names: names of the model's outputs in their order. Without them `model.config.id2label` is used, and where there is
            no such thing, the outputs are taken to be the data's classes in their order.

    Raises:
        ConfigurationError: the model knows none of the data's classes, or has another number of outputs than names.
        DataError: no picture, or none that can be read.
    """
    if len(split) == 0:
        raise DataError(f"split {split.name!r} has no pictures to evaluate on")
    if split.labels.min() < 0 or split.labels.max() >= len(split.classes):
        raise DataError(
            f"split {split.name!r} has labels outside 0..{len(split.classes) - 1}: check_classification_data names them"
        )
    names = output_names(model) if class_names is None else tuple(class_names)
    counted = _Counter(split, names)
    with running(model, device, dtype) as (answer, at):
        batches = prepared(split, Views(processor), batch_size=batch_size, workers=workers, pin_memory=at.type == "cuda")
        for groups, unreadable in with_bar(batches, split, batch_size, progress):
            for group in groups:
                counted.add(group.indices, logits_of(answer(group.views[0]), "(pictures, classes)"))
            counted.unreadable += [reason for _, reason in unreadable]
    return counted.result()


class _Counter:
    """What is kept of each picture while the model runs, and the metrics that come of it."""

    def __init__(self, split: PictureSplit, names: tuple[str, ...] | None) -> None:
        self.split = split
        self.outputs = len(split.classes) if names is None else len(names)
        self.named = names is not None
        self.class_of = classes_of_outputs(split.classes, names)
        self.output_of = np.full(len(split.classes) + 1, -1, dtype=np.int64)  # the last for classes that the data lack
        self.output_of[self.class_of] = np.arange(self.outputs)
        self.predictions = np.full(len(split), -1, dtype=np.int64)
        self.top5 = np.zeros(len(split), dtype=bool)
        self.losses = np.full(len(split), np.nan)
        self.unreadable: list[str] = []

    def add(self, indices: Sequence[int], logits: Tensor) -> None:
        """Logits (n, outputs) of the pictures by those indices."""
        if logits.shape != (len(indices), self.outputs):
            whose = "model's class names" if self.named else "data's classes"
            raise ConfigurationError(
                f"the model gave logits of shape {tuple(logits.shape)} for {len(indices)} pictures; expected are {self.outputs} "
                f"outputs, one for each of the {whose}"
            )
        targets = torch.from_numpy(self.output_of[self.split.labels[indices]]).to(logits.device)
        best = logits.topk(min(5, self.outputs)).indices
        losses = F.cross_entropy(logits, targets.clamp(min=0), reduction="none")
        self.predictions[indices] = self.class_of[best[:, 0].cpu().numpy()]
        self.top5[indices] = (best == targets[:, None]).any(1).cpu().numpy()
        self.losses[indices] = torch.where(targets >= 0, losses, torch.nan).cpu().numpy()

    def result(self) -> ClassificationResult:
        """The metrics over what was added."""
        split, classes = self.split, self.split.classes
        read = np.flatnonzero(self.predictions >= 0)
        if not read.size:
            raise DataError(f"none of the {len(split)} pictures of {split.name!r} can be read; the first: {self.unreadable[0]}")
        truth, predicted = split.labels[read], self.predictions[read]
        columns = len(classes) + bool((self.class_of == len(classes)).any())
        confusion = np.bincount(truth * columns + predicted, minlength=len(classes) * columns).reshape(len(classes), columns)
        totals, right = confusion.sum(1), confusion.diagonal()
        correct = truth == predicted
        groups = np.array(split.groups or [], dtype=object)[read] if split.groups is not None else np.array([], dtype=object)
        members = {str(name): groups == name for name in sorted(set(groups.tolist()))}
        known = ~np.isnan(self.losses[read]) | (self.output_of[truth] >= 0)  # a model that gives NaN has a loss of NaN
        return ClassificationResult(
            split=split.name,
            classes=classes,
            count=int(read.size),
            top1=float(correct.mean()),
            top5=float(self.top5[read].mean()),
            loss=float(self.losses[read][known].mean()) if known.any() else float("nan"),
            per_class={name: float(right[i] / totals[i]) if totals[i] else None for i, name in enumerate(classes)},
            per_group={name: float(correct[which].mean()) for name, which in members.items()},
            group_counts={name: int(which.sum()) for name, which in members.items()},
            confusion=confusion.astype(np.int64),
            predictions=self.predictions,
            unreadable=tuple(self.unreadable),
        )
