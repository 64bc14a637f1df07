"""How well a segmenter finds the class of each pixel of one split of a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mobilevitv2.class_maps import upsampled
from mobilevitv2.data.sources import IntArray
from mobilevitv2.errors import ConfigurationError, DataError
from mobilevitv2.evaluate.class_names import classes_of_outputs, output_names
from mobilevitv2.evaluate.pixel_counts import (
    SegmentationCounter,
    SegmentationResult,
    SegmentationScores,
    segmentation_scores,
)
from mobilevitv2.evaluate.prepared import Group, Readable, Views, prepared
from mobilevitv2.evaluate.running import logits_of, running, with_bar
from mobilevitv2.image_processing import IGNORED_LABEL

__all__ = [
    "SegmentationCounter",
    "SegmentationResult",
    "SegmentationScores",
    "evaluate_segmentation",
    "segmentation_scores",
]

LOGITS = "(pictures, classes, height, width)"
Mask = np.ndarray[Any, Any]


class WithMasks(Readable, Protocol):
    """What is needed of a segmentation split."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""

    def read_mask(self, index: int) -> Mask:
        """(height, width) class indices; 255 is ignored. ImageError where it cannot be read or has another size."""

    def describe(self, index: int) -> str:
        """The picture's path, for messages."""


def evaluate_segmentation(
    model: Callable[..., Any],
    split: WithMasks,
    *,
    processor: Callable[..., Any],
    batch_size: int = 8,
    workers: int = 0,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    progress: bool = False,
    class_names: Sequence[str] | None = None,
    keep: int = 0,
) -> SegmentationResult:
    """Run a segmenter over a split and count pixels, at each picture's own size.

    The model sees the whole picture, resized as the processor does it and never cropped; its logits are brought to the size of the
    mask (bilinear, corner pixels on corner pixels). All outputs of the model compete, also those of classes that the data lack.

    Args:
        model: MobileViTV2ForSemanticSegmentation, another module, or any function. It is called with pixel values (n, channels,
            height, width) and gives logits (n, outputs, h, w) as a tensor, an array, a tuple that begins with them, or an object
            with `.logits`. A module is put into evaluation mode meanwhile.
        split: the pictures and their masks.
        processor: makes the pixel values of one Pillow image; MobileViTV2ImageProcessor, or any function.
        batch_size: pictures at a time.
        workers: processes that decode and prepare pictures ahead of the model; 0 for none.
        device: where to compute; a module is moved there meanwhile. None: where the module is, the CPU for functions.
        dtype: arithmetic of a module under autocast, torch.bfloat16 say; None for that of its weights.
        scales: sizes to look at, as factors of the processor's; the probabilities of all are averaged at the picture's own size.
        flip: also look at each mirrored.
        progress: show a progress bar if stderr is a terminal.
        class_names: names of the model's outputs in their order. Without them `model.config.id2label` is used, and where there is
            no such thing, the outputs are taken to be the data's classes in their order.
        keep: predicted masks to keep in the result for drawing, of so many pictures from the first on and so many of the worst.

    Raises:
        ConfigurationError: the model knows none of the data's classes, or has another number of outputs than names.
        DataError: no picture, none that can be read, none with labelled pixels, or a mask with a number that is no class.
    """
    if len(split) == 0:
        raise DataError(f"split {split.name!r} has no pictures to evaluate on")
    names = output_names(model) if class_names is None else tuple(class_names)
    views = Views(processor, tuple(scales), whole=True)
    with running(model, device, dtype) as (answer, at):
        pixels = _Pixels(split, classes_of_outputs(split.classes, names), names is not None, at, keep)
        batches = prepared(split, views, batch_size=batch_size, workers=workers, pin_memory=at.type == "cuda", truth=_MaskOf(split))
        for groups, unreadable in with_bar(batches, split, batch_size, progress):
            for group in groups:
                pixels.add(group, _looked_at(answer, group.views, flip=flip))
            pixels.unreadable += [reason for _, reason in unreadable]
    return pixels.result()


@dataclass(frozen=True)
class _MaskOf:
    """A picture's mask as a tensor, which workers hand over without a copy."""

    split: WithMasks

    def __call__(self, index: int) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.split.read_mask(index)))


def _looked_at(answer: Callable[[Tensor], Any], views: Sequence[Tensor], *, flip: bool) -> list[Tensor]:
    """Logits (n, outputs, h, w) of each view, mirrored ones turned back."""
    logits = []
    for pixels in views:
        logits.append(logits_of(answer(pixels), LOGITS))
        if flip:
            logits.append(logits_of(answer(pixels.flip(-1)), LOGITS).flip(-1))
    return logits


def most_probable(logits: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """The output with the highest probability at each pixel, averaged over several views of one picture.

    Args:
        logits: (outputs, h, w) of each view; h and w may differ.
        size: (height, width) wanted.

    Returns:
        (height, width) int64. It is made strip by strip: 150 classes at 12 million pixels would be 7 GB.
    """
    rows = []
    for strips in zip(*(upsampled(each, size) for each in logits), strict=True):
        scores = strips[0]
        if len(strips) > 1:
            scores = strips[0].softmax(0)
            for strip in strips[1:]:
                scores += strip.softmax(0)
        rows.append(scores.max(0).indices)  # several times faster than argmax
    return torch.cat(rows)


class _Pixels:
    """What is kept of each picture while the model runs, and the metrics that come of it."""

    def __init__(self, split: WithMasks, class_of: IntArray, named: bool, device: torch.device, keep: int) -> None:
        self.split, self.named, self.keep = split, named, keep
        self.class_of = torch.from_numpy(class_of).to(device)
        other = bool((class_of == len(split.classes)).any())
        self.counter = SegmentationCounter(len(split.classes), ignore_index=IGNORED_LABEL, device=device, other=other)
        self.picture_miou: list[float | None] = [None] * len(split)
        self.masks: dict[int, Mask] = {}
        self.count = 0
        self.unreadable: list[str] = []

    def add(self, group: Group, logits: Sequence[Tensor]) -> None:
        """Logits (n, outputs, h, w) of each view of some pictures."""
        for each in logits:
            self._check(each, len(group.indices))
        for row, (index, truth) in enumerate(zip(group.indices, group.truths, strict=True)):
            predicted = self.class_of[most_probable([each[row] for each in logits], (truth.shape[0], truth.shape[1]))]
            try:
                added = self.counter.add(predicted, truth)
            except DataError as error:
                raise DataError(f"{self.split.describe(index)}: {error}. Mend the mask, or name all classes of the data") from error
            self.count += 1
            score = segmentation_scores(added.cpu().numpy()).miou
            self.picture_miou[index] = None if np.isnan(score) else score
            self._keep(index, predicted)

    def _check(self, logits: Tensor, pictures: int) -> None:
        outputs = len(self.class_of)
        if logits.shape[:2] != (pictures, outputs):
            whose = "model's class names" if self.named else "data's classes"
            raise ConfigurationError(
                f"the model gave logits of shape {tuple(logits.shape)} for {pictures} pictures; expected are {outputs} outputs, "
                f"one for each of the {whose}"
            )

    def _keep(self, index: int, predicted: Tensor) -> None:
        if not self.keep:
            return
        small = np.uint8 if len(self.split.classes) < 2**8 else np.int32
        self.masks[index] = predicted.cpu().numpy().astype(small)
        if len(self.masks) > 4 * self.keep:  # seldom: the worst are looked for among all pictures
            self._let_go()

    def _let_go(self) -> None:
        """Keep the masks of the first pictures and of the worst."""
        kept = {*sorted(self.masks)[: self.keep], *worst_pictures(self.picture_miou, self.keep)}
        self.masks = {each: mask for each, mask in self.masks.items() if each in kept}

    def result(self) -> SegmentationResult:
        """The metrics over what was added."""
        split, confusion = self.split, self.counter.counts.cpu().numpy()
        if not self.count:
            raise DataError(f"none of the {len(split)} pictures of {split.name!r} can be read; the first: {self.unreadable[0]}")
        if not confusion.any():
            raise DataError(
                f"no mask of {split.name!r} has a labelled pixel: all are {IGNORED_LABEL}, which is ignored; "
                f"look at the masks, {split.describe(0)} for one"
            )
        self._let_go()
        return SegmentationResult.of_counts(
            confusion,
            split=split.name,
            classes=split.classes,
            count=self.count,
            picture_miou=self.picture_miou,
            masks=self.masks,
            unreadable=self.unreadable,
        )


def worst_pictures(picture_miou: Sequence[float | None], count: int) -> list[int]:
    """The indices of the pictures with the lowest mean IoU, the worst first."""
    known = [(score, index) for index, score in enumerate(picture_miou) if score is not None]
    return [index for _, index in sorted(known)[:count]]
