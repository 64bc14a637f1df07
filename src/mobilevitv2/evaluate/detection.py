"""How well a detector finds the objects on one split of a data set: COCO's average precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from mobilevitv2.data.sources import IntArray
from mobilevitv2.errors import ConfigurationError, DataError
from mobilevitv2.evaluate.box_counts import Annotated, DetectionCounter, DetectionResult
from mobilevitv2.evaluate.class_names import classes_of_outputs, output_names
from mobilevitv2.evaluate.coco import require_pycocotools
from mobilevitv2.evaluate.prepared import Group, Readable, Views, prepared
from mobilevitv2.evaluate.running import running, with_bar

__all__ = ["DetectionCounter", "DetectionResult", "evaluate_detection"]

THRESHOLD = 0.01
"""Scores below it are left out, as in the official evaluation: a low bar, since average precision is over all of them."""


class WithBoxes(Readable, Annotated, Protocol):
    """What is needed of a detection split."""


def evaluate_detection(
    model: Callable[..., Any],
    split: WithBoxes,
    *,
    processor: Any,
    batch_size: int = 16,
    workers: int = 0,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
    class_names: Sequence[str] | None = None,
) -> DetectionResult:
    """Run a detector over a split and compare the boxes, in pixels of each picture.

    Args:
        model: MobileViTV2ForObjectDetection, or another whose outputs the processor understands. It is called with pixel values
            (n, channels, height, width). A module is put into evaluation mode meanwhile.
        split: the pictures and their boxes.
        processor: makes the pixel values of one Pillow image, of the whole picture, and has `post_process_object_detection`
            (outputs, threshold=..., target_sizes=...), which gives {"scores", "labels", "boxes"} for each picture.
        batch_size: pictures at a time.
        workers: processes that decode and prepare pictures ahead of the model; 0 for none.
        device: where to compute; a module is moved there meanwhile. None: where the module is, the CPU for functions.
        dtype: arithmetic of a module under autocast, torch.bfloat16 say; None for that of its weights.
        progress: show a progress bar if stderr is a terminal.
        class_names: names of the model's labels in their order. Without them `model.config.id2label` is used, and where there is
            no such thing, the labels are taken to be the data's classes in their order. What is found of other classes is left
            out.

    Raises:
        ConfigurationError: the model knows none of the data's classes, or gave labels beyond its names; a processor without
            `post_process_object_detection`.
        DataError: no picture, or none that can be read.
        MissingDependency: pycocotools is not installed.
    """
    if len(split) == 0:
        raise DataError(f"split {split.name!r} has no pictures to evaluate on")
    if not hasattr(processor, "post_process_object_detection"):
        raise ConfigurationError(
            f"the processor ({type(processor).__name__}) has no post_process_object_detection, which makes boxes of a detector's "
            "outputs; pass MobileViTV2ImageProcessor, or the one that belongs to the model"
        )
    require_pycocotools()  # now, not after an hour of work
    names = output_names(model) if class_names is None else tuple(class_names)
    class_of = classes_of_outputs(split.classes, names)
    counter, unreadable = DetectionCounter(split), []
    views = Views(processor, whole=True)
    with running(model, device, dtype) as (answer, at):
        batches = prepared(split, views, batch_size=batch_size, workers=workers, pin_memory=at.type == "cuda")
        for groups, failed in with_bar(batches, split, batch_size, progress):
            for group in groups:
                outputs = answer(group.views[0])
                answers = processor.post_process_object_detection(outputs, threshold=THRESHOLD, target_sizes=group.sizes)
                _count(counter, group, answers, class_of)
            unreadable += [reason for _, reason in failed]
    return counter.result(unreadable=unreadable)


def _count(counter: DetectionCounter, group: Group, answers: Sequence[Mapping[str, Any]], class_of: IntArray) -> None:
    """The answers for the pictures of a group, with the data's classes."""
    for index, found in zip(group.indices, answers, strict=True):
        scores, boxes = (np.asarray(found[name].float().cpu()) for name in ("scores", "boxes"))
        labels = np.asarray(found["labels"].cpu())
        if labels.size and (labels.min() < 0 or labels.max() >= len(class_of)):
            raise ConfigurationError(
                f"the model gave label {labels.max()}, but there are names for 0 to {len(class_of) - 1}: pass class_names with one "
                "name for each of its labels"
            )
        classes = class_of[labels]
        known = classes < len(counter.split.classes)
        counter.add(index, scores[known], classes[known], boxes[known])
